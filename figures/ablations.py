"""Draw figures/ablations_*.png, with the data behind each beside it, by running notebook 10 on the committed results.

python figures/ablations.py
"""

import tempfile
from pathlib import Path

import papermill

FIGURES = Path(__file__).resolve().parent
NOTEBOOK = FIGURES.parent / "notebooks/10_ablations.ipynb"

with tempfile.TemporaryDirectory() as aside:
    settings = dict(cwd=str(NOTEBOOK.parent), kernel_name="python3")
    papermill.execute_notebook(str(NOTEBOOK), str(Path(aside) / NOTEBOOK.name), {"out": str(FIGURES)}, **settings)
