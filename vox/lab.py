"""Many runs of a notebook: `python -m vox.lab sweep|status|collect FILE.yaml`. `vox.sweep` says what such a file holds.

    sweep    executor → `vox.job.execute`, one call per run → a process of its own → papermill → the notebook's kernel

    runs/<sweep>/<what varies>-<hash>/   the executed notebook, params.json, log.txt, what the notebook leaves, and last
                                         metrics.json, whose presence means done (unless it says "finished": false)

Notable choices
- any `concurrent.futures` executor will do, local processes or a Dask cluster: `vox.job` says what its workers do;
- Ctrl-C, a kill and a lost machine all leave runs that the same command goes on with.

The notebook, too, finds what it needs to be a job here: `check_parameters` and `peak_memory`.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import types
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from vox import sweep as sweeps
from vox.files import cores
from vox.job import execute, fail
from vox.sweep import Run, Sweep, flatten

NOT_PARAMETERS = ("In", "Out")  # what Jupyter keeps beside the reader's names
PLAIN = (str, int, float, bool, list, tuple, dict, types.NoneType)  # what papermill can inject


def check_parameters(namespace: dict, **rules) -> dict:
    """Refuse parameters that the notebook does not have, or whose values it cannot use. Call it in the cell after the parameters.

    papermill only warns of a mistyped name and injects it, and the run would go on with the default: so every plain value
    in `namespace`, the notebook's `globals()`, must have a rule. In a kernel that has passed once, names are not looked at
    again: by then the notebook has its own.

    Args: namespace; rules, for each parameter a type (str, bool, int, float; numbers are finite and not negative) or a
        collection of the values it may have.
    Returns the parameters. Raises ValueError naming a wrong one.
    """
    if not namespace.get("_parameters_checked"):
        names = {name for name, value in namespace.items() if isinstance(value, PLAIN) and not name.startswith("_")}
        unknown = sorted(names - set(rules) - set(NOT_PARAMETERS))
        if unknown:
            raise ValueError(f"unknown parameter {', '.join(map(repr, unknown))}: this notebook has {', '.join(rules)}")
    for name, rule in rules.items():
        value = namespace[name]
        if not isinstance(rule, type):
            if value not in tuple(rule):
                raise ValueError(f"{name} must be one of {', '.join(map(str, rule))}, not {value!r}")
            continue
        kinds = (int, float) if rule is float else (rule,)
        if not isinstance(value, kinds) or isinstance(value, bool) != (rule is bool):
            raise ValueError(f"{name} must be of type {rule.__name__}, not {value!r}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    namespace["_parameters_checked"] = True
    return {name: namespace[name] for name in rules}


def peak_memory(device) -> float:
    """The most gigabytes this process has held so far: of a GPU what torch allocated, else its resident memory (Linux, macOS)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ---- many runs -------------------------------------------------------------------------------------------------------


def sweep(path, executor: Executor | None = None) -> dict[str, dict]:
    """Do all runs of a sweep file that are not done, and say what became of each.

    Finished runs are skipped, killed ones go on from their checkpoint, failed ones are tried again. A bar on standard error shows
    the time left. Ctrl-C ends the runs, which takes up to half a minute, and raises KeyboardInterrupt.

    Args: path of the file; executor, anything like those of `concurrent.futures`; it is shut down. Local processes by default.
    Returns for each run that was tried: name → what `execute` says of it.
    Raises ValueError if the file is wrong, before anything runs, or if it is being run by somebody else.
    """
    plan = sweeps.read(path)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / ".lock", timeout=0):
            todo = [run for run in plan.runs if not run.done()]
            return _all(plan, todo, executor or local(plan, len(todo))) if todo else {}
    except Timeout as error:
        raise ValueError(f"{path} is being run already: wait for it, or stop it") from error


def _all(plan: Sweep, todo: list[Run], executor: Executor) -> dict[str, dict]:
    """Hand the runs to the executor and report each as it ends."""
    marker, results = todo[0].marker, {}
    marker.touch()
    bar = tqdm(total=len(plan.runs), initial=len(plan.runs) - len(todo), desc=plan.name, unit="run", smoothing=0)
    with bar, executor:
        waiting = {}
        try:
            for run in todo:
                waiting[executor.submit(execute, run)] = run
            _report(waiting, results, bar)
        except BaseException:
            marker.unlink(missing_ok=True)
            bar.write("stopping: runs write their checkpoints", file=sys.stderr)
            _report(waiting, results, bar)
            raise
    marker.unlink(missing_ok=True)
    return results


def _report(waiting: dict, results: dict, bar):
    """Until nothing is waited for: note, and print, what has ended."""
    while waiting:
        ended, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        for future in ended:
            run, error = waiting.pop(future), future.exception()
            if error is None:
                result = future.result()
            elif run.marker.exists():  # the executor broke: a lost worker, a package that the cluster lacks
                result = fail(Path(run.folder), f"{type(error).__name__}: {error}")
            else:
                result = {"state": "begun", "error": ""}
            results[run.name] = result
            bar.update(result["state"] == "done")
            if result["error"]:
                bar.write(f"FAILED {run.name}: {result['error']}\n       log: {run.folder}/log.txt", file=sys.stderr)
            elif "seconds" in result:
                bar.write(f"{result['state']:7}{run.name} in {result['seconds']:.0f} s", file=sys.stderr)
        bar.refresh()


def local(plan: Sweep, runs: int) -> Executor:
    """Processes of this machine: as many as the file says, or as there are cores (or GPUs) for."""
    first = plan.runs[0]
    workers, shares = plan.workers or max(1, cores() // first.threads), multiprocessing.get_context("spawn").SimpleQueue()
    if first.gpus:
        gpus = visible_gpus()
        if len(gpus) < first.gpus:
            raise ValueError(f"a run of {plan.name} wants {first.gpus} GPUs, and torch finds {len(gpus)} here: lower gpus in `resources`")
        workers = min(plan.workers or len(gpus), len(gpus) // first.gpus)
    workers = min(workers, runs)
    for number in range(workers):
        shares.put(",".join(gpus[number * first.gpus : (number + 1) * first.gpus]) if first.gpus else "")
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _worker, (shares,))


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def _worker(shares):
    """Prepare a local worker: it has GPUs of its own, leaves Ctrl-C to its parent, and ends when that does."""
    os.environ["CUDA_VISIBLE_DEVICES"] = shares.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def cluster(address: str, gpus: int):
    """The executor of a Dask cluster (extra `cluster`). Its workers need this package and the same file system.

    Args: address of the scheduler; gpus per run, which workers declare by `dask worker --resources GPU=1`.
    Raises ValueError if no worker has so many.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs the package distributed: pip install -c constraints.txt -e '.[lab,cluster]'") from error
    with Client(address) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if gpus and not any(worker["resources"].get("GPU", 0) >= gpus for worker in workers):
            raise ValueError(f"no worker of {address} has {gpus} GPUs: start them with `dask worker --resources GPU={gpus}`")
        yield client.get_executor(pure=False, **({"resources": {"GPU": gpus}} if gpus else {}))


def status(path) -> dict[str, str]:
    """name → state of every run of a sweep file: done, running, failed, begun or waiting."""
    return {run.name: run.state() for run in sweeps.read(path).runs}


def collect(path):
    """The finished runs of a sweep file as a pandas table: a row for each run and seed.

    Columns: run, the name; the parameters that the file gives; and metrics.… from metrics.json. What is nested there has names
    such as changes.train.join or metrics.legs.0.steps.
    """
    import pandas

    done = [run for run in sweeps.read(path).runs if run.done()]
    rows = [{"run": run.name} | flatten(run.parameters) | flatten({"metrics": run.metrics()}) for run in done]
    columns = dict.fromkeys(["run", *(name for row in rows for name in row)])
    return pandas.DataFrame(rows, columns=sorted(columns, key=lambda name: name.startswith("metrics.")))  # parameters first


# ---- the command line ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 all runs are done, 1 some failed, 2 the file is wrong, 3 some are not done, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m vox.lab", description="Run a notebook many times, as a sweep file says.")
    parser.add_argument("command", choices=("sweep", "status", "collect"), help="do the runs; say how far they are; print a CSV table")
    parser.add_argument("file", help="a sweep file, such as notebooks/sweeps/smoke.yaml")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="sweep on the Dask cluster of this scheduler instead of this machine")
    options = parser.parse_args(arguments)
    try:
        if options.command == "collect":
            print(collect(options.file).to_csv(index=False), end="")
            return 0
        if options.command == "status":
            return _summary(options.file, status(options.file), verbose=True)
        results = _sweep_on(options.scheduler, options.file)
        tried = {name: result["state"] for name, result in results.items()}  # a full disk may have kept no word of a failure
        return _summary(options.file, status(options.file) | tried)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130


def _sweep_on(scheduler: str | None, path) -> dict[str, dict]:
    if not scheduler:
        return sweep(path)
    gpus = sweeps.read(path).runs[0].gpus
    with cluster(scheduler, gpus) as executor:
        return sweep(path, executor)


def _summary(path, states: dict[str, str], verbose: bool = False) -> int:
    """Print how many runs are done and, if `verbose`, each. Returns the exit status."""
    for run in sweeps.read(path).runs if verbose else ():
        print(f"{states[run.name]:9}{run.name}" + (f": {run.error()}" if states[run.name] == "failed" else ""))
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    print(f"{len(states)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0 if set(counts) == {"done"} else 1 if "failed" in counts else 3


if __name__ == "__main__":
    sys.exit(main())
