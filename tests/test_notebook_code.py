"""What tests take out of a notebook: its definitions, and nothing that it does."""

from pathlib import Path

import nbformat
from notebook_code import definitions


def test_definitions_are_taken_and_nothing_else_runs(tmp_path):
    cells = [
        "steps: int = 3\nname = ''.join('ab')",
        "import math\nfrom pathlib import Path\n\ntotal = sum(range(steps))\nrate = 16000",
        "class Box:\n    def area(self, r):\n        return math.pi * r * r\n\nprint('not here')\nfound = open('nowhere').read()",
        "found[0] = 'not here'",
        "def grown(x):\n    'x plus what was found'\n    return x + found + steps",
    ]
    cells = [nbformat.v4.new_markdown_cell("# One"), *map(nbformat.v4.new_code_cell, cells)]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    here = Path.cwd()
    code = definitions(tmp_path / "a.ipynb")
    assert Path.cwd() == here
    assert (code.steps, code.name, code.rate, round(code.Box().area(1), 2)) == (3, "ab", 16000, 3.14)
    assert not hasattr(code, "total") and not hasattr(code, "found")
    code.found = 4
    assert code.grown(1) == 8
