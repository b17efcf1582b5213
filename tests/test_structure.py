"""The house keeps its shape: floors, no import cycle, short modules, documented names."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vox"
FLOORS = [  # a module imports only from floors below its own
    {"files"},
    {"provenance", "sweep"},
    {"config", "audio", "text", "intervals"},
    {"transformer", "fsq", "flow", "batch", "espeak", "phrases", "layout", "state", "vae_stream"},
    {"sentences", "vae", "vae_loss", "locenc", "tslm", "ralm", "locdit", "prompts", "loop"},
    {"generate"},
    {"voxcpm", "fast", "feed", "learner"},
    {"corpus", "train", "official", "judge"},
    {"metrics"},
    {"probes", "judge_train", "hub_judges", "ablations"},
    {"inside"},
    {"job"},
    {"lab"},
    {"plots", "microphone"},
    {"report", "book", "widgets", "exercises", "check"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
TENSOR = re.compile(r"\b(Tensor|LongTensor|ndarray)\b")
SHAPE = re.compile(r"\[[^\]]*\]|0-d|scalar")


def imports(path):
    """(module of vox, whether it is imported as soon as the file is) for every import in a file."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.removeprefix("vox.") for alias in node.names if alias.name.startswith("vox.")]
        elif isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").split(".")[0] == "vox"):
            source = (node.module or "").removeprefix("vox").lstrip(".")
            names = [source] if source else [alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()]
        yield from ((name.split(".")[0], id(node) not in inside) for name in names)


def test_imports_are_seen(tmp_path):
    """The reader of imports itself: every spelling, at load and inside a function."""
    source = "import vox.config\nfrom vox import audio, preset\nfrom vox.text import cardinal\nfrom .flow import draw\nfrom . import fsq\n"
    (tmp_path / "m.py").write_text(source + "import torch\ndef f():\n    from vox.official import save\n", encoding="utf-8")
    assert set(imports(tmp_path / "m.py")) == {(name, True) for name in ("config", "audio", "text", "flow", "fsq")} | {("official", False)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_floors(path):
    assert path.stem in FLOOR, f"vox/{path.name} has no floor: give it one here"
    for name, _ in imports(path):
        assert FLOOR[name] < FLOOR[path.stem], f"vox/{path.name} imports {name}, which is not below it"


def test_no_import_cycle():
    graph = {path.stem: {name for name, at_load in imports(path) if at_load} for path in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def public(node, prefix=""):
    """(name, definition) of every public function, class and method under a node."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


def takes_tensors(definition):
    """Whether an argument is a tensor; a dictionary of them has no one shape."""
    arguments = definition.args
    kinds = [ast.unparse(argument.annotation) for argument in arguments.args + arguments.kwonlyargs if argument.annotation]
    return any(TENSOR.search(kind) for kind in kinds if not kind.startswith("dict"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_everything_public_is_documented(path):
    """A docstring for every module, class, function and method, with shapes where tensors go in.

    A `forward` may leave both to its class: the docstring, and the shapes in comments at the end of lines.
    """
    source = path.read_text(encoding="utf-8")
    module = ast.parse(source)
    assert ast.get_docstring(module), f"vox/{path.name} has no docstring"
    definitions = dict(public(module))
    lacking = []
    for name, definition in definitions.items():
        text = ast.get_docstring(definition) or ""
        if name.endswith(".forward"):
            owner = definitions.get(name.removesuffix(".forward"), module)
            text += (ast.get_docstring(owner) or "") + " ".join(re.findall("#.*", ast.get_source_segment(source, definition)))
        if not text:
            lacking.append(f"{name} has no docstring")
        elif isinstance(definition, ast.FunctionDef) and takes_tensors(definition) and not SHAPE.search(text):
            lacking.append(f"{name} takes tensors and says no shape")
    assert not lacking, f"vox/{path.name}: {'; '.join(lacking)}"
