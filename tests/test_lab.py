"""The batch runner: what is wrong in a sweep file is refused, and what happens to a sweep leaves runs that can be gone on with."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import pandas
import psutil
import pytest

from vox import job, lab, sweep

ROOT = Path(__file__).parent.parent
PARAMETERS = """
steps: int = 3  # of work
rate: float = 0.5
name: str = ""
changes: dict = {}
fast = True
limit = None
seed: int = 0
out: str = ""
"""
WORK = """
import json, os, time
from pathlib import Path

out = Path(out)
started = out / "steps.txt"
done = len(started.read_text().split()) if started.exists() else 0
for step in range(done, steps):
    time.sleep(0.1)
    with open(started, "a") as file:
        file.write(f"{step}\\n")
"""
FAIL = """
if name == "fails":
    raise RuntimeError("this one fails")
if name == "full":
    with open("/dev/full", "w") as disk:
        disk.write("no room")
if name == "dies":
    os.kill(os.getpid(), 9)
"""
END = """
metrics = {"finished": name != "cut", "score": {"value": steps * 10 + seed, "parts": [rate, changes.get("fsq.dim", 0)]},
           "threads": os.environ["OMP_NUM_THREADS"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
(out / "aside").write_text(json.dumps(metrics))
os.replace(out / "aside", out / "metrics.json")
with open(out / "ended.txt", "a") as file:
    file.write("ended\\n")
"""


def write_notebook(path, cells=(WORK, FAIL, END), parameters=PARAMETERS):
    """A notebook of a second, with checkpoints; `name` makes it fail in one way or another."""
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in (parameters, *cells)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a notebook, where runs go too."""
    monkeypatch.setenv("VOX_HOME", str(tmp_path))
    write_notebook(tmp_path / "work.ipynb")
    return tmp_path


def sweep_file(home, text, name="s"):
    path = home / f"{name}.yaml"
    path.write_text(f"notebook: work.ipynb\n{text}\n", encoding="utf-8")
    return path


def command(*arguments, **options):
    """`python -m vox.lab` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "vox.lab", *map(str, arguments)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell has started in the background ignores Ctrl-C
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed, **options)


def ended(process):
    """(exit status, standard output, standard error) of a process, when it ends."""
    out, complaint = process.communicate(timeout=600)
    return process.returncode, out, complaint


KINDS = ("vox.lab", "vox.job", "spawn_main", "ipykernel")  # runners, processes of runs, workers and kernels, by their command lines


def kernels(home):
    """The processes that have the runs of this folder in hand."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended
            line = " ".join(process.cmdline())
            if process.environ().get("VOX_HOME") == str(home) and any(kind in line for kind in KINDS):
                found.append(process)
    return found


def all_gone(home, seconds=120):
    """Whether they all end by themselves."""
    deadline = time.monotonic() + seconds
    while kernels(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not kernels(home)


# ---------------------------------------------------------------------------------------------------------- sweep files


def test_a_grid_becomes_runs(home):
    grid = "{steps: [1, 2], changes: [{}, {train.join: 0}]}"
    plan = sweep.read(sweep_file(home, f"base: {{rate: 1}}\ngrid: {grid}\nseeds: [0, 7]\nresources: {{threads: 2}}"))
    assert [run.parameters for run in plan.runs][:3] == [
        {"rate": 1, "steps": 1, "changes": {}, "seed": 0},
        {"rate": 1, "steps": 1, "changes": {}, "seed": 7},
        {"rate": 1, "steps": 1, "changes": {"train.join": 0}, "seed": 0},
    ]
    assert len(plan.runs) == 8 and len({run.folder for run in plan.runs}) == 8
    assert plan.runs[7].name.startswith("steps-2_changes.train.join-0_seed-7-") and Path(plan.runs[7].folder).parent == home / "runs" / "s"
    assert {run.threads for run in plan.runs} == {2} and all(run.out for run in plan.runs)
    assert {run.state() for run in plan.runs} == {"waiting"} and not (home / "runs").exists()


def test_a_list_replaces_what_the_base_says(home):
    plan = sweep.read(sweep_file(home, "base: {steps: 1, changes: {a: 1}}\nlist:\n- {}\n- {changes: {b: 2.5}, name: a/b c}"))
    assert [run.parameters["changes"] for run in plan.runs] == [{"a": 1}, {"b": 2.5}]
    assert plan.runs[1].name.startswith("changes.b-2.5_name-a-b-c-")
    assert [run.parameters for run in sweep.read(sweep_file(home, "")).runs] == [{}]


def test_a_run_is_known_by_its_parameters_and_not_by_its_name(home):
    one = sweep.read(sweep_file(home, "grid: {steps: [1]}\nseeds: [0, 1]")).runs[0]
    Path(one.folder).mkdir(parents=True)
    grown = sweep.read(sweep_file(home, "grid: {steps: [1, 2]}\nseeds: [0, 1]")).runs
    assert grown[0].folder == one.folder and grown[1].name.startswith("steps-1_seed-1-")
    other = sweep.read(sweep_file(home, "base: {rate: 0.1}\ngrid: {steps: [1]}\nseeds: [0, 1]")).runs[0]
    assert other.folder != one.folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {step: 3}", "work.ipynb does not know a parameter: an unknown name 'step': did you mean 'steps'"),
        ("grid: {zzz: [3]}", "unknown name 'zzz': there are steps, rate, name, changes, fast, limit, seed"),
        ("base: {steps: many}", "steps is of type int in work.ipynb, not 'many'"),
        ("base: {steps: 1.5}", "steps is of type int in work.ipynb, not 1.5"),
        ("base: {steps: true}", "steps is of type int in work.ipynb, not True"),
        ("grid: {steps: [1, '2']}", "steps is of type int in work.ipynb, not '2'"),
        ("base: {rate: 1e-3}", r"rate is of type float in work.ipynb, not '1e-3': YAML wants a point in it, as in 1.0e-03"),
        ("base: {fast: 1}", "fast is of type bool in work.ipynb, not 1"),
        ("base: {changes: [1]}", r"changes is of type dict in work.ipynb, not \[1\]"),
        ("base: {changes: {1: 2}}", "changes has a key that is not a text"),
        ("base: {changes: {a: .nan}}", "changes.a cannot be nan"),
        ("base: {limit: 2026-01-01}", "limit cannot be datetime.date"),
        ("base: {out: runs/x}", "`out` is the run's folder, which the runner gives"),
        ("bases: {steps: 3}", "the file has an unknown name 'bases': did you mean 'base'"),
        ("base: [steps]", "`base` must hold"),
        ("grid: {steps: 3}", "`grid` must hold"),
        ("grid: {steps: []}", "`grid` must hold"),
        ("list: {steps: 3}", "`list` must hold"),
        ("grid: {steps: [3]}\nlist: [{}]", "give one of them"),
        ("grid: {steps: [3, 3]}", "two runs are the same"),
        ("base: {steps: 1, steps: 2}", "'steps' is given twice"),
        ("seeds: 3", "`seeds` must be a list of whole numbers"),
        ("base: {seed: 1}\nseeds: [0]", "`seed` is given among the parameters and by `seeds`"),
        ("resources: {thread: 1}", "`resources` has an unknown name 'thread': did you mean 'threads'"),
        ("resources: {threads: 0}", "threads: 0, which must be a whole number, at least 1"),
        ("resources: {gpus: -1}", "gpus: -1, which must be a whole number, at least 0"),
        ("base: {steps", "while parsing"),
    ],
)
def test_each_mistake_in_a_file_is_named(home, text, message, capsys):
    path = sweep_file(home, text)
    with pytest.raises(ValueError, match=f"(?s)s.yaml: .*{message}"):
        sweep.read(path)
    assert lab.main(["sweep", str(path)]) == 2 and "s.yaml" in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_files_that_are_not_there(home, capsys):
    assert lab.main(["status", str(home / "no.yaml")]) == 2 and "no.yaml is not there" in capsys.readouterr().err
    (home / "s.yaml").write_text("notebook: none.ipynb")
    assert lab.main(["status", str(home / "s.yaml")]) == 2 and "there is no notebook" in capsys.readouterr().err
    (home / "s.yaml").write_text("")
    assert lab.main(["status", str(home / "s.yaml")]) == 2 and "the file must hold" in capsys.readouterr().err
    assert lab.main(["status", str(home)]) == 2 and f"{home} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": 3}', '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}'])
def test_a_notebook_that_is_none_is_named(home, text):
    (home / "work.ipynb").write_text(text)
    with pytest.raises(ValueError, match="s.yaml: .*work.ipynb cannot be read as a notebook"):
        sweep.read(sweep_file(home, ""))


def test_the_stored_sweeps_are_right():
    files = sorted((ROOT / "notebooks" / "sweeps").glob("*.yaml"))
    assert files and all(sweep.read(path).runs for path in files)


# ---------------------------------------------------------------------------------------------- states, tables, workers


def leave(run, **files):
    """What a run could have left."""
    for name, tree in files.items():
        path = Path(run.folder) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree))


def test_states_tell_what_was_left(home, capsys):
    path = sweep_file(home, "seeds: [0, 1, 2, 3, 4, 5, 6]")
    runs = sweep.read(path).runs
    leave(runs[1], params={})
    leave(runs[2], metrics={"finished": False})
    leave(runs[3], metrics='{"half')
    leave(runs[4], metrics={"score": 3})
    leave(runs[5], metrics={"finished": True}, error={"error": "the last cell failed"})
    leave(runs[6], params={})
    with runs[6].lock:
        states = list(lab.status(path).values())
        assert lab.main(["status", str(path)]) == 1
    assert states == ["waiting", "begun", "begun", "begun", "done", "failed", "running"]
    said = capsys.readouterr().out
    assert "7 runs: 1 waiting, 3 begun, 1 done, 1 failed, 1 running" in said and "the last cell failed" in said
    table = lab.collect(path)
    assert table.to_dict("records") == [{"run": runs[4].name, "seed": 4, "metrics.score": 3}]


def test_tables_are_flat(home, capsys):
    path = sweep_file(home, "grid: {changes: [{}, {train.join: 0}]}")
    assert list(lab.collect(path).columns) == ["run"] and lab.main(["collect", str(path)]) == 0
    assert capsys.readouterr().out == "run\n"
    for number, run in enumerate(sweep.read(path).runs):
        leave(run, metrics={"legs": [{"wer": number}, {"wer": 0.5}], "empty": []})
    table = lab.collect(path)
    assert list(table.columns) == ["run", "changes.train.join", "metrics.legs.0.wer", "metrics.legs.1.wer"]
    assert table["metrics.legs.0.wer"].tolist() == [0, 1] and table["changes.train.join"].isna().tolist() == [True, False]


def test_workers_are_as_many_as_there_is_room_for(home, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    cases = ("{}", 20, 8), ("{threads: 3}", 20, 2), ("{threads: 9}", 20, 1), ("{workers: 3}", 20, 3), ("{}", 5, 5)
    for resources, runs, workers in cases:
        plan = sweep.read(sweep_file(home, f"resources: {resources}"))
        with lab.local(plan, runs) as executor:
            assert executor._max_workers == workers
    plan = sweep.read(sweep_file(home, "resources: {gpus: 2}"))
    monkeypatch.setattr(lab, "visible_gpus", lambda: ["0"])
    with pytest.raises(ValueError, match="a run of s wants 2 GPUs, and torch finds 1 here"):
        lab.local(plan, 3)
    monkeypatch.setattr(lab, "visible_gpus", lambda: ["0", "3", "5", "6", "7"])
    with lab.local(plan, 9) as executor:
        shares = {executor.submit(_my_gpus).result() for _ in range(2)}
        assert executor._max_workers == 2 and shares <= {"0,3", "5,6"}


def _my_gpus():
    return os.environ["CUDA_VISIBLE_DEVICES"]


# --------------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.slow
def test_a_sweep_leaves_what_it_promises(home, capsys):
    path = sweep_file(home, "base: {rate: 2}\ngrid: {changes: [{fsq.dim: 4}, {}]}\nresources: {threads: 3, workers: 2}")
    status, out, complaint = ended(command("sweep", path))
    assert status == 0 and "2 runs: 2 done" in out, complaint
    assert "2/2" in complaint and "<00:00" in complaint  # the bar, and no time left
    for run in sweep.read(path).runs:
        folder = Path(run.folder)
        assert json.loads((folder / "params.json").read_text()) == run.parameters
        assert nbformat.read(folder / "work.ipynb", 4).cells[-1].execution_count == 5 and (folder / "log.txt").exists()
    table = lab.collect(path)
    assert table["metrics.score.parts.1"].tolist() == [4, 0] and table["metrics.score.parts.0"].tolist() == [2, 2]
    assert table["metrics.threads"].tolist() == ["3", "3"] and table["metrics.gpus"].tolist() == ["", ""]
    before = {path: path.stat().st_mtime_ns for path in (home / "runs").rglob("*.*") if path.is_file()}
    assert lab.main(["sweep", str(path)]) == 0 and lab.sweep(path) == {}  # finished runs are skipped
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all_gone(home)


FAILURES = """
list:
- {name: good}
- {name: fails}
- {name: full}
- {name: dies}
- {name: cut}
- {name: good, seed: 1}
resources: {workers: 2}
"""


@pytest.mark.slow
def test_failures_are_told_and_the_others_go_on(home):
    """A cell that raises, a disk that is full for the notebook, a kernel that dies; and one for which the runner cannot write."""
    path = sweep_file(home, FAILURES)
    runs = sweep.read(path).runs
    full = Path(runs[5].folder)
    full.mkdir(parents=True)
    (full / "work.ipynb").symlink_to("/dev/full")  # the executed notebook does not fit
    status, out, complaint = ended(command("sweep", path))
    assert status == 1 and "6 runs: 1 done, 4 failed, 1 begun" in out, complaint
    assert f'FAILED {runs[1].name}: cell [4] (if name == "fails":): RuntimeError: this one fails' in complaint
    assert f"log: {runs[1].folder}/log.txt" in complaint
    assert f'FAILED {runs[2].name}: cell [4] (if name == "fails":): OSError: [Errno 28] No space left on device' in complaint
    assert f"FAILED {runs[3].name}: DeadKernelError" in complaint
    assert f"FAILED {runs[5].name}: OSError: [Errno 28] No space left on device" in complaint
    assert list(lab.status(path).values()) == ["done", "failed", "failed", "failed", "begun", "failed"]
    assert len(lab.collect(path)) == 1 and all_gone(home)

    (full / "work.ipynb").unlink()  # there is room again, and one mistake is mended
    write_notebook(home / "work.ipynb", (WORK, FAIL.replace('"fails"', '"-"'), END))
    status, out, _ = ended(command("sweep", path))
    assert status == 1 and "3 done, 2 failed, 1 begun" in out
    assert list(lab.status(path).values()) == ["done", "done", "failed", "failed", "begun", "done"]
    assert (Path(runs[1].folder) / "steps.txt").read_text().split() == ["0", "1", "2"]  # the work before the failure was kept


def test_a_run_that_fails_after_its_metrics_is_not_done(home):
    write_notebook(home / "work.ipynb", (WORK, END, FAIL))
    run = sweep.read(sweep_file(home, "base: {name: fails, steps: 0}")).runs[0]
    run.marker.parent.mkdir(parents=True)
    assert job.execute(run)["state"] == "begun" and not Path(run.folder).exists()  # no marker: nothing starts
    run.marker.touch()
    for _ in range(2):
        assert job.execute(run)["state"] == run.state() == "failed" and run.metrics()["finished"]


def test_the_runner_says_done_for_notebooks_that_leave_no_metrics(home):
    write_notebook(home / "work.ipynb", ("print(word)",), 'word = "a"')
    run = sweep.read(sweep_file(home, "base: {word: b}")).runs[0]
    assert not run.out
    run.marker.parent.mkdir(parents=True)
    run.marker.touch()
    assert job.execute(run)["state"] == "done" and run.metrics() == {"finished": True}
    lines = (Path(run.folder) / "log.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("[IPKernelApp]")][-1] == "b"  # a kernel may speak of itself at any time


def test_a_folder_that_cannot_be_written_is_a_failure_of_one_run(home):
    run = sweep.read(sweep_file(home, "")).runs[0]
    run.marker.parent.mkdir(parents=True)
    run.marker.touch()
    Path(run.folder).write_text("a file is in the way")
    result = job.execute(run)
    assert result["state"] == "failed" and "could not write" in result["error"] and run.name in result["error"]


class Broken(ThreadPoolExecutor):
    """An executor whose workers are lost."""

    def submit(self, *_):
        return super().submit(lambda: 1 / 0)


def test_any_executor_and_one_that_breaks(home, capsys):
    path = sweep_file(home, "base: {steps: 0}\nseeds: [0, 1]")
    results = lab.sweep(path, Broken(1))
    assert [result["error"] for result in results.values()] == ["ZeroDivisionError: division by zero"] * 2
    assert set(lab.status(path).values()) == {"failed"} and "FAILED seed-0" in capsys.readouterr().err
    results = lab.sweep(path, ThreadPoolExecutor(2))
    assert {result["state"] for result in results.values()} == {"done"} and len(lab.collect(path)) == 2


TWELVE = "base: {steps: 5}\ngrid: {rate: [0.1, 0.2, 0.3, 0.4]}\nseeds: [0, 1, 2]\nresources: {workers: 2}"


def steps_of(run):
    path = Path(run.folder) / "steps.txt"
    return path.read_text().split() if path.exists() else []


@pytest.mark.slow
def test_killed_three_times_and_the_same_table(home, monkeypatch):
    """SIGKILL at random moments, to the runner alone (its family must follow by itself) or to all processes at once."""
    whole = home / "whole"
    monkeypatch.setenv("VOX_HOME", str(whole))
    status, _, complaint = ended(command("sweep", sweep_file(home, TWELVE)))
    assert status == 0, complaint
    expected = lab.collect(home / "s.yaml")
    monkeypatch.setenv("VOX_HOME", str(home))
    path, dice = home / "s.yaml", random.Random()
    runs = sweep.read(path).runs
    for kill, done in (("runner", 1), ("all", 4), ("runner", 8)):
        process = command("sweep", path)
        while sum(run.done() for run in runs) < done:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 2))
        assert process.poll() is None
        for victim in [process] if kill == "runner" else kernels(home):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.communicate()
    status, out, complaint = ended(command("sweep", path))
    assert status == 0 and "12 runs: 12 done" in out, complaint
    pandas.testing.assert_frame_equal(lab.collect(path), expected)
    for run in runs:
        last = Path(run.folder) / "ended.txt"  # a kill may have come between the metrics and it
        assert not last.exists() or last.read_text() == "ended\n"
        assert sorted(set(steps_of(run))) == ["0", "1", "2", "3", "4"]
    assert sum(len(steps_of(run)) for run in runs) == 12 * 5  # no step was taken again
    assert all_gone(home)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_runs_can_be_gone_on_with(home, stop):
    path = sweep_file(home, "base: {steps: 100}\nseeds: [0, 1, 2]\nresources: {workers: 2}")
    runs = sweep.read(path).runs
    process = command("sweep", path, start_new_session=True)  # Ctrl-C goes to every process of a terminal's group
    while len(steps_of(runs[0])) < 3 or len(steps_of(runs[1])) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert lab.status(path)[runs[0].name] == "running"
    assert lab.main(["sweep", str(path)]) == 2  # refused: it is being run
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    status, _, complaint = ended(process)
    assert status == (130 if stop == signal.SIGINT else -signal.SIGTERM), complaint
    assert "the same command goes on" in complaint or stop == signal.SIGTERM
    assert all_gone(home) and list(lab.status(path).values()) == ["begun", "begun", "waiting"]
    taken = len(steps_of(runs[0]))
    sweep_file(home, "base: {steps: 100}\nseeds: [0]")
    process = command("sweep", path)
    while len(steps_of(runs[0])) < taken + 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert steps_of(runs[0]) == [str(step) for step in range(len(steps_of(runs[0])))] and all_gone(home)


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(home):
    from distributed import LocalCluster

    path = sweep_file(home, "seeds: [0, 1, 2]\nlist: [{name: good}, {name: fails}]\nresources: {gpus: 1, threads: 2}")
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with LocalCluster(**options) as cluster:
        status, _, complaint = ended(command("sweep", path, "--scheduler", cluster.scheduler_address))
        assert status == 2 and "no worker of" in complaint and "--resources GPU=1" in complaint
    with LocalCluster(**options, resources={"GPU": 1}) as cluster:
        status, out, complaint = ended(command("sweep", path, "--scheduler", cluster.scheduler_address))
    assert status == 1 and "6 runs: 3 done, 3 failed" in out, complaint
    assert "RuntimeError: this one fails" in complaint
    table = lab.collect(path)
    assert table["metrics.score.value"].tolist() == [30, 31, 32] and set(table["metrics.threads"]) == {"2"}
    assert all_gone(home)


@pytest.mark.slow
@pytest.mark.notebook
def test_the_smoke_sweep(tmp_path, monkeypatch):
    """Notebook 12 in four short runs, as the README says, in five minutes on two cores at most."""
    monkeypatch.setenv("VOX_HOME", str(tmp_path))
    monkeypatch.delenv("VOX_BUDGET", raising=False)
    path, began = ROOT / "notebooks" / "sweeps" / "smoke.yaml", time.monotonic()
    status, out, complaint = ended(command("sweep", path))
    assert status == 0 and "4 runs: 4 done" in out, complaint
    assert time.monotonic() - began < 300
    table = lab.collect(path)
    assert table["metrics.training.steps"].tolist() == [4] * 4 and table["metrics.threads"].tolist() == [1] * 4
    assert table["metrics.parameters.batch"].tolist() == table["batch"].tolist() == [2, 2, 4, 4]
    assert table["metrics.training.last.total"].nunique() == 4
    assert {"model", "voxcpm", "legs", "12_scale.ipynb"} <= {path.name for path in Path(sweep.read(path).runs[0].folder).iterdir()}
