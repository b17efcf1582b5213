"""The front door opens: one list of packages, exact pins, and make targets that install what is missing and nothing twice."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#"))


# ---------------------------------------------------------------------------------------------------------- the packages


def test_constraints_are_exact_and_name_no_address():
    for name, version in PINS.items():
        assert name == canonicalize_name(name) and re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version), f"{name}=={version}"
    assert PINS["torch"] == PINS["torchaudio"] == "2.11.0" and PINS["voxcpm"] == "2.0.3"


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)])
def test_every_direct_dependency_is_pinned_and_the_pin_is_what_runs(requirement):
    name = canonicalize_name(Requirement(requirement).name)
    assert name in PINS, f"constraints.txt does not pin {name}"
    assert importlib.metadata.version(name) == PINS[name]


def test_every_import_is_a_declared_dependency():
    """What `import vox` loads is in the dependencies; what a function, a widget or book loads may also come with the lab or the cluster."""
    package = {"PIL": "pillow", "yaml": "pyyaml"}  # where the module's name is not the package's
    runtime = {canonicalize_name(name) for name in PROJECT["dependencies"]}
    for path in (ROOT / "vox").glob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            always = node in module.body and path.stem not in ("widgets", "microphone", "book")
            allowed = runtime if always else runtime | set(EXTRAS["lab"]) | set(EXTRAS["cluster"])
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"vox"}:
                name = canonicalize_name(package.get(top, top))
                assert name in allowed, f"vox/{path.name} imports {top}, which pyproject.toml does not list"


def test_conda_installs_what_pyproject_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"] and "pip" in plain
    python = next(item.split("=")[1] for item in plain if item.startswith("python="))
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])
    constraint, editable = pip["pip"]
    assert constraint == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", editable)[1].split(",")
    assert extras == list(EXTRAS)


# ------------------------------------------------------------------------------------------------------------------ make

# Stands in for python3: "creates" an environment whose programs only note how they were called; pip fails while a file `break` exists.
PYTHON = """#!/bin/sh
case "$1" in
  -c) exit ${OLD:-0} ;;
  -m) echo "venv $3" >> calls; rm -rf .venv; mkdir -p .venv/bin
      for program in pip jupyter papermill python ruff voila; do
        printf '#!/bin/sh\\necho "%s $*" >> calls\\n' $program > .venv/bin/$program; chmod +x .venv/bin/$program
      done
      echo 'test ! -e break' >> .venv/bin/pip ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """make(target, **environment) → (exit status, what was called, what was printed) in a folder with the project's front door files."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "python").chmod(0o755)

    def make(target, **environment):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        command = ["make", target, "PYTHON=./python"]
        own = {"CHROMIUM": "/usr/bin/chromium"}  # whether or not there is one: no test installs anything
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | own | environment, capture_output=True, text=True)
        return done.returncode, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else [], done.stdout + done.stderr

    make.folder = tmp_path
    return make


def test_make_lab_installs_once(clone):
    status, calls, _ = clone("lab")
    assert status == 0 and calls[0] == "venv --clear"
    assert calls[1] == "pip install -c constraints.txt -e .[lab]" and calls[2].startswith("jupyter lab")
    status, calls, _ = clone("lab")
    assert status == 0 and len(calls) == 1 and calls[0].startswith("jupyter lab")


def test_make_app_shows_the_panel(clone):
    status, calls, _ = clone("app", ARGS="--port=1")
    assert status == 0 and calls[1:] == ["pip install -c constraints.txt -e .[lab]", "voila notebooks/app.ipynb --port=1"]


def test_make_run_is_the_main_job(clone):
    """First the shipped model speaks, then one is trained, with ARGS, then the page; in one folder, the tour in its own below it."""
    status, calls, printed = clone("run", ARGS="-p seed 1")
    assert status == 0 and "runs/first_words" in printed
    tour, training, page = calls[-3:]
    assert tour.startswith("papermill") and "notebooks/00_tour.ipynb runs/first_words/00_tour.ipynb" in tour
    assert tour.endswith("-p out runs/first_words/tour")
    assert training.startswith("papermill") and "notebooks/07_voxcpm.ipynb runs/first_words/07_voxcpm.ipynb -p preset nano" in training
    assert training.endswith("-p out runs/first_words -p seed 1")
    assert page == "python -m vox.report runs/first_words"
    assert all("--cwd notebooks" in call for call in (tour, training))
    assert not any("[lab,test" in call for call in calls)


def test_make_run_ends_where_a_step_fails(clone):
    """Without the shipped weights, say, there is no training that nobody asked for alone."""
    clone("lab")
    (clone.folder / ".venv/bin/papermill").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    status, calls, printed = clone("run")
    assert status != 0 and not calls and "Done" not in printed


def test_make_test_adds_the_test_packages_and_runs_everything(clone):
    clone("run")
    status, calls, _ = clone("test")
    assert status == 0 and "pip install -c constraints.txt -e .[lab,test,parity,metrics,community]" in calls
    assert "pip install -c constraints.txt --no-deps voxcpm" in calls and "ruff check ." in calls
    assert calls[-1].startswith("python -m pytest") and calls[-1].endswith("--nbval-lax --nbval-current-env tests notebooks")
    assert "venv --clear" not in calls  # it builds on what `make run` installed
    assert not [call for call in clone("test")[1] if call.startswith(("pip", "venv"))]
    assert not [call for call in clone("run")[1] if call.startswith(("pip", "venv"))]


@pytest.mark.parametrize(
    ("user", "apt", "calls"),
    [
        (0, "true", ["apt-get update -q", "apt-get install -qy --no-install-recommends chromium"]),
        (0, "false", ["apt-get update -q", "python -m playwright install chromium"]),
        (1000, "true", ["python -m playwright install chromium"]),
    ],
)
def test_make_test_gets_a_browser_where_there_is_none(clone, user, apt, calls):
    clone("test")
    assert not [call for call in clone("test")[1] if "chromium" in call]  # there is one
    for name, script in (("id", f"echo {user}"), ("apt-get", f'echo "apt-get $*" >> calls; {apt}')):
        (clone.folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (clone.folder / name).chmod(0o755)
    status, made, _ = clone("test", CHROMIUM="", PATH=f"{clone.folder}:{os.environ['PATH']}")
    assert status == 0 and [call for call in made if "apt-get" in call or "playwright" in call] == calls
    (clone.folder / ".venv/bin/python").write_text('#!/bin/sh\ncase "$2" in playwright) exit 1;; esac\n', encoding="utf-8")
    if user:
        status, _, printed = clone("test", CHROMIUM="", PATH=f"{clone.folder}:{os.environ['PATH']}")
        assert status == 0 and "tests/browser is skipped" in printed


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_list_of_packages_is_installed(clone, name):
    clone("lab")
    later = (clone.folder / ".venv/lab.done").stat().st_mtime + 5
    os.utime(clone.folder / name, (later, later))
    assert clone("lab")[1][:1] == ["pip install -c constraints.txt -e .[lab]"]


@pytest.mark.parametrize("before", [(), ("run",), ("test",)])
def test_a_broken_off_install_is_not_taken_for_a_finished_one(clone, before):
    """Whatever was installed before: after a pip that failed, the next make starts from an empty environment."""
    for target in before:
        clone(target)
    later = clone.folder.stat().st_mtime + 5
    os.utime(clone.folder / "constraints.txt", (later, later))
    (clone.folder / "break").touch()
    assert clone("test")[0] != 0
    assert not list((clone.folder / ".venv").glob("*.done"))
    (clone.folder / "break").unlink()
    os.utime(clone.folder / "constraints.txt")
    status, calls, _ = clone("test")
    assert status == 0 and calls[0] == "venv --clear" and calls[-1].startswith("python -m pytest")


def test_an_old_python_is_refused_with_a_remedy(clone):
    status, calls, printed = clone("lab", OLD="1")
    assert status != 0 and not calls and "Python 3.11 or newer" in printed and "PYTHON=" in printed


def test_plain_make_says_what_there_is():
    printed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("make lab", "make run", "make test"):
        assert target in printed


# -------------------------------------------------------------------------------------------------- continuous integration


def test_ci_runs_every_test(clone):
    """The script itself, in a folder with the front door: it stops at the first failure and its last word is pytest's."""
    (clone.folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", clone.folder / ".ci" / "run")
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"PYTHON": "./python"}
    command = ["bash", ".ci/run"]
    assert subprocess.run(command, cwd=clone.folder, env=environment).returncode == 0
    last = (clone.folder / "calls").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith("python -m pytest") and last.endswith("tests notebooks")
    (clone.folder / ".venv/bin/ruff").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert subprocess.run(command, cwd=clone.folder, env=environment).returncode != 0


def test_the_workflow_runs_the_same_script():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


SKIPS = """
import pytest

def test_runs():
    pass

def test_skips():
    pytest.skip("not here")

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    assert False
"""


@pytest.mark.parametrize("ci", [True, False])
def test_where_ci_is_set_a_skipped_parity_or_notebook_test_fails(tmp_path, ci):
    import nbformat

    (tmp_path / "tests" / "parity").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_plain.py").write_text(SKIPS, encoding="utf-8")
    (tmp_path / "tests" / "parity" / "test_same.py").write_text(SKIPS, encoding="utf-8")
    (tmp_path / "tests" / "parity" / "test_none.py").write_text(
        "import pytest\n\npytest.importorskip('no_such_package')\n", encoding="utf-8"
    )
    cells = [nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_code_cell("# NBVAL_SKIP\n2 + 2")]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "n.ipynb")
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | ({"CI": "true"} if ci else {})
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "--nbval-lax", "--nbval-current-env", "tests", "notebooks"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    closing = done.stdout.strip().splitlines()[-1]
    if ci:  # the parity skip and the skipped cell fail, and the file that skips itself is an error; the plain skip stays one
        assert done.returncode != 0
        counts = ("2 failed", "3 passed", "1 skipped", "2 xfailed", "1 error")
        assert all(count in closing for count in counts), done.stdout
        assert "test_none.py" in done.stdout and "counts as a failure where CI is set" in done.stdout
    else:
        assert done.returncode == 0
        assert "3 passed" in closing and "4 skipped" in closing and "2 xfailed" in closing, done.stdout
