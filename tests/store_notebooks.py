"""Run notebooks from top to bottom in full and store them as readers meet them: outputs, no traces of the machine or the clock.

python tests/store_notebooks.py notebooks/07_voxcpm.ipynb
"""

import sys
import tempfile
from pathlib import Path

import nbformat
import papermill

from vox.files import replacing

WIDGET = "application/vnd.jupyter.widget-view+json"


def joined(outputs):
    """Text that was printed piece by piece as one output: how it was cut is a matter of the clock."""
    whole = []
    for output in outputs:
        if whole and output.output_type == whole[-1].output_type == "stream" and output.name == whole[-1].name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def is_bare(data) -> bool:
    """Whether an output is a widget and shows nothing without a kernel: a control, or a progress bar, which has words for a twin."""
    return WIDGET in data and set(data) <= {WIDGET, "text/plain"}


def clean(notebook):
    """Keep what teaches: no progress bars, no widget state, no timing, no injected parameters."""
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info")}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = joined(output for output in cell.outputs if output.get("name") != "stderr")
            cell.outputs = [output for output in cell.outputs if not is_bare(output.get("data", {}))]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)  # without a kernel there is no widget; its picture follows
                if "metadata" in output:
                    alt = output.metadata.get("image/png", {}).get("alt")
                    output.metadata = {"image/png": {"alt": alt}} if alt else {}
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook


def store(path: Path):
    """Execute in a fresh run folder and replace the stored notebook; an error leaves it as it was."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(cwd=str(path.parent), kernel_name="python3", progress_bar=False, stderr_file=sys.stderr)
        out = {"out": str(Path(folder) / "out")} if "out" in papermill.inspect_notebook(str(path)) else {}
        notebook = papermill.execute_notebook(str(path), str(Path(folder) / path.name), out, **settings)
    with replacing(path) as aside:
        nbformat.write(clean(notebook), aside)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
