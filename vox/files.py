"""Files that are whole or not there: everything is written aside and renamed into place. And where runs go, on how many cores."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
HOME = _REPOSITORY if (_REPOSITORY / "pyproject.toml").is_file() else Path.cwd()  # elsewhere if installed away from it


def cache_folder() -> Path:
    """The folder of everything that can be made again: data/cache of the repository, or what VOX_CACHE says."""
    return HOME / os.environ.get("VOX_CACHE", "data/cache")


def run_folder(name) -> Path:
    """Where a run with this name (such as "runs/x") goes: under the variable VOX_HOME, or under the repository.

    So a notebook finds its run wherever it was started from, and tests keep theirs apart. Absolute paths stay as they are.
    """
    return Path(os.environ.get("VOX_HOME", HOME)) / name


def cores() -> int:
    """How many processor cores this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def replacing(path):
    """A path to write to instead of `path`; renamed to `path` when the block ends well, deleted when it does not.

    >>> with replacing("table.json") as aside:
    ...     aside.write_text("[]")

    A reader, a crash or a full disk never meets half a file. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path, tree):
    """Write `tree` as indented JSON. Raises ValueError for NaN and infinity, which JSON has no word for."""
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path) -> dict:
    """Read a JSON file. Raises ValueError that names the file if it holds something else."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}): restore it, or delete it to start anew") from error
