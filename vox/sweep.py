"""Sweep files: a notebook and the parameters of many runs of it, checked before anything runs.

    notebook: ../12_scale.ipynb        # from the folder of this file
    base: {preset: nano, hours: 0.1}   # parameters of every run
    grid:                              # every combination of these values; or `list:`, one set of parameters per run
      steps: [100, 200]
      changes: [{}, {train.join: 0}]
    seeds: [0, 1, 2]                   # values of the parameter `seed`: every run above once with each
    resources: {threads: 1, gpus: 0, workers: 2}

Notable choices
- papermill only warns of a parameter that the notebook does not have, and takes a text for a number. So names are compared
  with the notebook's parameters cell, and types with its annotations and defaults, for all runs before the first one starts;
- a run is known by a hash of its notebook's name and the parameters that the file gives it. What else the file says may
  change without a finished run being done again;
- grid and list replace a parameter of `base` as a whole, a dictionary too.
"""

import ast
import contextlib
import difflib
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from vox.files import read_json, run_folder

SECTIONS = ("notebook", "base", "grid", "list", "seeds", "resources")
RESOURCES = {"threads": 1, "gpus": 0, "workers": None}  # of a run, and runs at once (None: as many as there are cores or GPUs for)
KINDS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Run:
    """One run of a sweep: a notebook, its parameters, and the folder that they belong to."""

    notebook: str
    folder: str  # absolute
    parameters: dict  # what the file gives, without `out`
    out: bool  # whether the notebook has a parameter `out`, which is then the folder
    threads: int = 1
    gpus: int = 0

    @property
    def name(self) -> str:
        """The name of the folder."""
        return Path(self.folder).name

    @property
    def marker(self) -> Path:
        """A file beside the folder: runs of the sweep go on as long as it is there."""
        return Path(self.folder).parent / ".running"

    @property
    def lock(self) -> FileLock:
        """Held by the process that runs it."""
        return FileLock(Path(self.folder) / ".lock")

    def metrics(self) -> dict | None:
        """What is in metrics.json; None if it is not there, or is not whole."""
        try:
            metrics = read_json(Path(self.folder) / "metrics.json")
        except (FileNotFoundError, ValueError):
            return None
        return metrics if isinstance(metrics, dict) else None

    def done(self) -> bool:
        """Whether the run has finished: metrics.json is there and does not say "finished": false, and nothing failed after it."""
        metrics = self.metrics()
        return metrics is not None and metrics.get("finished", True) and not self.error()

    def error(self) -> str:
        """Why the last attempt failed; "" if it did not."""
        try:
            return read_json(Path(self.folder) / "error.json")["error"]
        except FileNotFoundError:
            return ""
        except ValueError as error:
            return str(error)

    def state(self) -> str:
        """done, running, failed, begun (killed, stopped or out of time: it goes on with the next sweep) or waiting."""
        if not Path(self.folder).is_dir():
            return "waiting"
        if self.done():
            return "done"
        try:
            with self.lock.acquire(timeout=0):
                return "failed" if self.error() else "begun"
        except Timeout:
            return "running"


@dataclass(frozen=True)
class Sweep:
    """A sweep file that has been read and found good."""

    name: str
    folder: Path
    runs: list[Run]
    workers: int | None


class _Loader(yaml.SafeLoader):
    """YAML, of which a key given twice is an error (plain YAML keeps the last)."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path) -> Sweep:
    """Read a sweep file. Raises ValueError naming the file, what is wrong with it and what would be right."""
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        return _sweep(path, tree)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is not there") from error
    except OSError as error:  # a folder, say
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}. Name a sweep file") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def flatten(tree, name: str = "") -> dict:
    """Dictionaries in dictionaries and lists as one, with keys such as "legs.0.steps". What is empty vanishes."""
    if not isinstance(tree, dict | list):
        return {name: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in pairs:
        flat |= flatten(value, f"{name}.{key}".lstrip("."))
    return flat


# ---- from the file to its runs ---------------------------------------------------------------------------------------


def _sweep(path: Path, tree) -> Sweep:
    tree = _section(tree, "the file", SECTIONS)
    if not isinstance(tree.get("notebook"), str):
        raise ValueError("`notebook` must name a notebook, from the folder of this file")
    notebook = (path.parent / tree["notebook"]).resolve()
    known = parameters_of(notebook)
    resources = _resources(tree.get("resources", {}))
    root = run_folder(Path("runs") / path.stem).absolute()
    places = {}
    for parameters in _combinations(tree):
        _check(parameters, known, notebook.name)
        key = _hash(notebook.name, parameters)
        if key in places:
            raise ValueError(f"two runs are the same: {parameters}")
        places[key] = parameters
    names = _names(list(places.values()))
    runs = []
    for (key, parameters), name in zip(places.items(), names, strict=True):
        folder = next(root.glob(f"*-{key}"), root / f"{name}-{key}")  # its name may be from before the file had grown
        runs.append(Run(str(notebook), str(folder), parameters, "out" in known, resources["threads"], resources["gpus"]))
    return Sweep(path.stem, root, runs, resources["workers"])


def parameters_of(notebook) -> dict[str, dict]:
    """The parameters of a notebook as papermill finds them: name → {inferred_type_name, default, help, ...}, all texts."""
    import papermill

    if not Path(notebook).is_file():
        raise ValueError(f"there is no notebook {notebook}")
    try:
        return papermill.inspect_notebook(str(notebook))
    except Exception as error:  # each part of a notebook that is wrong has an error of its own
        raise ValueError(f"{notebook} cannot be read as a notebook: {error}") from error


def _section(tree, where: str, names) -> dict:
    if not isinstance(tree, dict):
        raise ValueError(f"{where} must hold `name: value` pairs, not {tree!r}")
    for name in tree:
        if name not in names:
            raise ValueError(f"{where} has {_unknown(name, names)}")
    return tree


def _unknown(name, names) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"an unknown name {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}")


def _resources(tree) -> dict:
    tree = _section(tree, "`resources`", RESOURCES)
    for name, value in tree.items():
        least = 0 if name == "gpus" else 1
        if type(value) is not int or value < least:
            raise ValueError(f"`resources` has {name}: {value!r}, which must be a whole number, at least {least}")
    return RESOURCES | tree


def _combinations(tree: dict) -> list[dict]:
    """The parameters of every run."""
    base, grid, sets, seeds = tree.get("base", {}), tree.get("grid"), tree.get("list"), tree.get("seeds")
    if not isinstance(base, dict):
        raise ValueError(f"`base` must hold `name: value` pairs, not {base!r}")
    if grid is not None and sets is not None:
        raise ValueError("`grid` and `list` are two ways to say the same: give one of them")
    if grid is not None:
        if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise ValueError("`grid` must hold `name: [value, value]` pairs, with at least one value each")
        sets = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if sets is not None and not (isinstance(sets, list) and sets and all(isinstance(one, dict) for one in sets)):
        raise ValueError("`list` must hold one or more sets of `name: value` pairs")
    runs = [base | one for one in sets or [{}]]
    if seeds is None:
        return runs
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"`seeds` must be a list of whole numbers, such as [0, 1, 2], not {seeds!r}")
    if any("seed" in one for one in runs):
        raise ValueError("`seed` is given among the parameters and by `seeds`: leave out one of them")
    return [one | {"seed": seed} for one in runs for seed in seeds]


def _check(parameters: dict, known: dict, notebook: str):
    """Refuse names that the notebook does not have, and values it could not take or JSON could not hold."""
    for name, value in parameters.items():
        if name == "out":
            raise ValueError("`out` is the run's folder, which the runner gives: leave it out")
        if name not in known:
            raise ValueError(f"{notebook} does not know a parameter: {_unknown(name, [n for n in known if n != 'out'])}")
        _check_plain(name, value)
        kind = _kind(known[name])
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind or object)
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"{name} is of type {kind.__name__} in {notebook}, not {value!r}{_hint(kind, value)}")


def _check_plain(name: str, value):
    """A value that JSON and papermill hold as it is: no date, no NaN, no key that is a number."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} has a key that is not a text: put it in quotes: {value!r}")
        for key, part in value.items():
            _check_plain(f"{name}.{key}", part)
    elif isinstance(value, list):
        for part in value:
            _check_plain(name, part)
    elif value is not None and not isinstance(value, str | int | float) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} cannot be {value!r}: a finite number, a text, true, false, or a list or dictionary of these")


def _kind(parameter: dict):
    """The type that a parameter's annotation or, without one, its default asks for; None if any will do."""
    word = re.match(r"\w*", parameter["inferred_type_name"]).group()
    if word != "None":
        return KINDS.get(word)
    with contextlib.suppress(ValueError, SyntaxError):
        return KINDS.get(type(ast.literal_eval(parameter["default"])).__name__)
    return None


def _hint(kind, value) -> str:
    """YAML takes 1e-3 for a text."""
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return f": YAML wants a point in it, as in {float(value):.1e}"
    return ""


def _hash(notebook: str, parameters: dict) -> str:
    text = json.dumps({"notebook": notebook, "parameters": parameters}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _names(sets: list[dict]) -> list[str]:
    """Names that say in what the runs differ."""
    flat = [flatten(parameters) for parameters in sets]
    order = dict.fromkeys(name for parameters in sets for name in parameters)
    keys = dict.fromkeys(key for name in order for parameters in sets for key in flatten({name: parameters.get(name, {})}))
    varied = [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
    words = ["_".join(f"{key}-{one[key]}" for key in varied if key in one) for one in flat]
    return [re.sub(r"[^\w.+-]+", "-", word)[:80].strip("-") or "default" for word in words]
