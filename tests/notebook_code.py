"""The code that a notebook defines, without running what it does: for tests of what it teaches.

>>> code = definitions("notebooks/03_fsq.ipynb")
>>> code.FSQ(4, levels=9)
"""

import ast
import contextlib
import types
from pathlib import Path

import nbformat

DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def defines(node) -> bool:
    """Whether a statement only gives a name to something: an import, a function, a class, or a plain value (`rate = 16000`)."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and all(isinstance(name, ast.Name) for name in targets):
        with contextlib.suppress(ValueError):
            ast.literal_eval(node.value)
            return True
    return isinstance(node, DEFINING)


def definitions(path) -> types.ModuleType:
    """A module of what the notebook imports and defines, and of its cell tagged `parameters`; nothing else of it runs.

    A function that needs a value which only another cell computes fails when it is called; a test can give it: `code.value = ...`.
    Such values must not stand in a default or a decorator.
    """
    path = Path(path)
    module = types.ModuleType(path.stem)
    with contextlib.chdir(path.parent):
        for number, cell in enumerate(nbformat.read(path.name, as_version=4).cells):
            if cell.cell_type == "code":
                tree = ast.parse(cell.source)
                if "parameters" not in cell.metadata.get("tags", []):
                    tree.body = [node for node in tree.body if defines(node)]
                exec(compile(tree, f"{path.name}, cell {number}", "exec"), vars(module))
    return module
