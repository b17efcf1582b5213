"""Draw figures/tour.png, what the shipped model says in notebook 00, with what was measured and how it was made beside it.

python figures/tour.py
"""

import shutil
import tempfile
from pathlib import Path

import papermill

from vox import files, provenance

FIGURES = Path(__file__).resolve().parent
NOTEBOOK = FIGURES.parent / "notebooks/00_tour.ipynb"

with tempfile.TemporaryDirectory() as aside:
    papermill.execute_notebook(str(NOTEBOOK), f"{aside}/tour.ipynb", {"out": aside}, cwd=str(NOTEBOOK.parent), kernel_name="python3")
    metrics = files.read_json(Path(aside) / "metrics.json")
    del metrics["parameters"]["out"]
    shutil.copyfile(Path(aside) / "sheet.png", FIGURES / "tour.png")
made = {"command": "python figures/tour.py", **provenance.machine()}
files.write_json(FIGURES / "tour.json", {"made": made, "metrics": metrics})
