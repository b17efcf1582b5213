"""The code that a notebook defines, without running what it does: for tests of what it teaches.

>>> code = definitions("notebooks/03_fsq.ipynb")
>>> code.FSQ(4, levels=9)
"""

import ast
import os
import types
from pathlib import Path

import nbformat

DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def definitions(path) -> types.SimpleNamespace:
    """A namespace of the notebook's imports, its parameters, and its functions and classes.

    Executed in order, in the notebook's folder: the cell tagged `parameters`, and of all others the imports, functions and classes.
    A definition that needs a value which only another cell computes fails when it is called; a test can set it: `code.value = ...`.
    """
    path = Path(path)
    notebook, module = nbformat.read(path, as_version=4), types.ModuleType(path.stem)
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            tree = ast.parse(cell.source)
            if "parameters" not in cell.metadata.get("tags", []):
                tree.body = [node for node in tree.body if isinstance(node, DEFINING)]
            exec(compile(tree, f"{path.name}, cell {number}", "exec"), vars(module))
    finally:
        os.chdir(here)
    return module
