"""One run of a sweep: papermill on a notebook, in a process of its own.

    execute   in a worker of an executor: starts `attempt`, waits, and ends it if the sweep stops
    attempt   the process of the run: papermill, which starts the notebook's kernel

Notable choices
- the worker only waits, so it may be a process, a thread or part of a cluster: a run that crashes takes no worker along, its
  working directory is its own, and its threads are set before torch is loaded;
- nothing has to be told to many places when a sweep stops. Runs go on as long as the sweep's marker file is there; and a
  process whose parent has died ends by itself, down to the kernel;
- a run holds a lock on its folder: what an earlier sweep has left running is waited for, not done twice;
- the notebook resumes by itself, from the checkpoints in its folder; it is only called again.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from vox.files import write_json
from vox.sweep import Run

POLL = 0.2  # seconds between two looks at the marker
GRACE = 20.0  # seconds that an interrupted notebook has to write its checkpoint
ORPHAN = 1.5  # seconds after which a kernel whose parent was killed is gone: it looks for it every second
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_stopping = threading.Event()


def execute(run: Run) -> dict:
    """Do a run in a process of its own and wait for it; end it if the sweep's marker goes. This is what executors are given.

    Returns {"state": "done" | "failed" | "begun", "error": why it failed, "seconds": of this attempt}.
    """
    began, folder = time.monotonic(), Path(run.folder)
    if not run.marker.exists():
        return {"state": "begun", "error": "", "seconds": 0.0}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "ab") as log, _process(run, log) as process:
            stopped = _wait(process, run)
            answer = process.stdout.read()
    except OSError as error:
        return fail(folder, f"the runner could not write here: {error}") | {"seconds": time.monotonic() - began}
    if answer:
        result = json.loads(answer)
    elif stopped:
        result = {"state": "begun", "error": ""}
    else:
        status = process.returncode
        reason = f"was killed by {signal.Signals(-status).name} (out of memory?)" if status < 0 else f"ended with status {status}"
        result = fail(folder, f"the process of the run {reason}")
    return result | {"seconds": time.monotonic() - began}


def _process(run: Run, log):
    """Start `attempt`. It lives no longer than its standard input is open."""
    package = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | dict.fromkeys(THREADS, str(run.threads))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    if not run.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8")
    command = [sys.executable, "-c", "from vox.job import attempt; attempt()"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # a session of its own: Ctrl-C is not for it
    with contextlib.suppress(BrokenPipeError):  # it has ended already
        process.stdin.write(json.dumps(asdict(run)) + "\n")
        process.stdin.flush()
    return process


def _wait(process, run: Run) -> bool:
    """Wait for the process of a run. Returns whether it was told to stop."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
            return process.stdin.closed
        if not process.stdin.closed and not run.marker.exists():
            process.stdin.close()


def fail(folder: Path, error: str) -> dict:
    """Leave word of a failure in the folder, if the disk takes it."""
    with contextlib.suppress(OSError):
        write_json(folder / "error.json", {"error": error})
    return {"state": "failed", "error": error}


def attempt():
    """The process of one run: standard input says which and, by its end, when to stop; the last thing written is the result."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # workers ignore Ctrl-C, and the kernel must not
    run = Run(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_at_the_end_of_input, daemon=True).start()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # whatever else is printed here and in the kernel goes to the log
        try:
            result = _locked(run)
        except Exception as error:
            result = fail(Path(run.folder), f"{type(error).__name__}: {error}")
        json.dump(result, answer)


def _stop_at_the_end_of_input():
    """Interrupt the kernel, as Ctrl-C would, so that training writes a checkpoint; then end it, and this process."""
    import psutil

    while os.read(0, 1):
        pass
    _stopping.set()
    kernels = psutil.Process().children()
    for kernel in kernels:
        with contextlib.suppress(psutil.NoSuchProcess):
            kernel.send_signal(signal.SIGINT)
    psutil.wait_procs(kernels, timeout=GRACE)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    time.sleep(5)  # for the main thread to store the notebook and end
    os._exit(1)


def _locked(run: Run) -> dict:
    """Do the run, unless it turns out to be done, while nobody else does."""
    folder = Path(run.folder)
    begun = (folder / "params.json").exists()
    with run.lock:
        if begun:
            time.sleep(ORPHAN)
        if run.done():
            return {"state": "done", "error": ""}
        if (folder / "error.json").exists():  # metrics that came before a failure do not count
            (folder / "metrics.json").unlink(missing_ok=True)
            (folder / "error.json").unlink()
        write_json(folder / "params.json", run.parameters)
        error = _papermill(run)
        if _stopping.is_set() and not (error is None and run.done()):
            return {"state": "begun", "error": ""}
        if error:
            return fail(folder, error)
        if run.metrics() is None:
            write_json(folder / "metrics.json", {"finished": True})
        return {"state": "done" if run.done() else "begun", "error": ""}


def _papermill(run: Run) -> str | None:
    """Execute the notebook. Returns the cell that failed and its error, None if all went well."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook, folder = Path(run.notebook), Path(run.folder)
    parameters = run.parameters | ({"out": folder.as_posix()} if run.out else {})
    settings = dict(cwd=str(notebook.parent), progress_bar=False, stdout_file=sys.stderr, stderr_file=sys.stderr)
    try:
        papermill.execute_notebook(str(notebook), str(folder / notebook.name), parameters, **settings)
    except PapermillExecutionError as error:
        line = next(filter(None, map(str.strip, error.source.splitlines())), "")
        return f"cell [{error.exec_count}] ({line[:60]}): {error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that died, a disk that is full
        return f"{type(error).__name__}: {error}"
    return None
