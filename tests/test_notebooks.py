"""Every notebook is fit to be read as it is stored, and runs from top to bottom in its short form.

Two programs run them, since each misses what the other sees: papermill here (unknown magics, the parameters cell), and nbval
beside these tests in `make test` (exceptions inside widgets). VOX_BUDGET caps the training steps in both.
"""

import ast
import os
import re
from pathlib import Path

import nbformat
import papermill
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LARGEST = 500_000  # bytes: GitHub stops showing larger ones at random
MACHINE_PATH = re.compile(r"(?<![\w.])(/home/|/Users/|/root/|/tmp/|/work/|/mnt/|[A-Z]:\\)[\w.-]+")

COURSE = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.name)]  # what is read one after another
LESSONS = [path for path in NOTEBOOKS if re.match(r"0[1-69]_", path.name)]  # the notebooks that build a part by hand
HEADER = ("**You will**", "| **You need** |", "| **Paper** |", "| **Time** |", "**Where we are in the paper's Figure 1.**")
FOOTER = ("## What you now know", "**To try.**", "**Next.**", "**Five questions.**")
CHECK = "nbval-check-output"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(FOLDER).as_posix())


def texts(output):
    """What an output shows as text, embedded pictures and sounds left out."""
    data = output.get("data", {})
    shown = [output.get("text", ""), *(data[kind] for kind in data if kind.startswith("text/"))]
    return re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", "\n".join(shown))


def problems(notebook) -> list[str]:
    """What keeps a stored notebook from being read or run by others; empty if nothing does."""
    found = []
    meta = notebook.metadata
    if meta.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if "widgets" in meta:
        found.append("metadata.widgets is stored: GitHub may refuse to show the notebook")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("it was not run once from top to bottom: execution counts are not 1, 2, 3 …")
    if not any(cell.outputs for cell in code):
        found.append("no cell has an output: a reader who does not run it sees nothing")
    if sum("parameters" in cell.metadata.get("tags", []) for cell in code) > 1:
        found.append("more than one cell is tagged parameters")
    for number, cell in enumerate(notebook.cells):
        if {"papermill", "execution"} & set(cell.metadata):
            found.append(f"cell {number} stores when it ran")
        if MACHINE_PATH.search(cell.source) or any(MACHINE_PATH.search(texts(output)) for output in cell.get("outputs", [])):
            found.append(f"cell {number} shows a path of one machine")
        if cell.cell_type == "code":
            try:
                ast.parse(cell.source)
            except SyntaxError:
                found.append(f"cell {number} is not plain Python (a magic, a shell line, a half line)")
            if "get_ipython" in cell.source:
                found.append(f"cell {number} uses get_ipython")
            if any(output.output_type == "error" for output in cell.outputs):
                found.append(f"cell {number} stores an error")
    return found


def good_notebook():
    output = nbformat.v4.new_output("stream", text="done in runs/first_words\n")
    cells = [
        nbformat.v4.new_markdown_cell("# One"),
        nbformat.v4.new_code_cell("steps = 3", execution_count=1, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(steps)", execution_count=2, outputs=[output]),
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def test_a_good_notebook_has_no_problems():
    notebook = good_notebook()
    data = {"text/html": '<audio src="data:audio/mpeg;base64,AA/tmp/BB==">', "image/png": "AA/tmp/BB=="}  # letters like a path's
    notebook.cells[2].outputs.append(nbformat.v4.new_output("display_data", data=data))
    assert problems(notebook) == []


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda nb: nb.metadata.kernelspec.update(name="conda-env"), "kernel"),
        (lambda nb: nb.metadata.update(widgets={"state": {}}), "metadata.widgets"),
        (lambda nb: nb.cells[2].update(execution_count=7), "top to bottom"),
        (lambda nb: nb.cells[1].update(execution_count=None), "top to bottom"),
        (lambda nb: nb.cells[2].update(outputs=[]), "no cell has an output"),
        (lambda nb: nb.cells[2].metadata.update(tags=["parameters"]), "more than one"),
        (lambda nb: nb.cells[2].metadata.update(execution={"iopub.status.busy": "2025"}), "when it ran"),
        (lambda nb: nb.cells[2].update(source="%matplotlib inline"), "plain Python"),
        (lambda nb: nb.cells[2].update(source="!pip install vox"), "plain Python"),
        (lambda nb: nb.cells[2].update(source="get_ipython().run_line_magic('time', 'x')"), "get_ipython"),
        (lambda nb: nb.cells[2].update(source="open('/home/me/x.wav')"), "path of one machine"),
        (lambda nb: nb.cells[0].update(source="see /Users/me/notes"), "path of one machine"),
        (lambda nb: nb.cells[2].outputs[0].update(text="/".join(("", "tmp", "kernel", "3.py:1: UserWarning"))), "path of one machine"),
        (lambda nb: nb.cells[2].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])), "stores an error"),
    ],
)
def test_each_problem_is_seen(spoil, word):
    notebook = good_notebook()
    spoil(notebook)
    found = problems(notebook)
    assert len(found) == 1 and word in found[0], found


@every_notebook
def test_stored_notebooks_are_fit_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert problems(notebook) == []
    assert path.stat().st_size <= LARGEST, f"{path.stat().st_size} bytes: store fewer or smaller pictures and sounds"


@every_notebook
def test_links_lead_somewhere(path):
    """A notebook that is only planned is named and not linked; addresses of the web are not tried."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


def form_problems(name, notebook) -> list[str]:
    """What a notebook lacks of the form that all of the course share; empty if nothing."""
    found, cells = [], notebook.cells
    first, last = cells[0].source, cells[-1].source
    if not first.startswith(f"# {name[:2]} · "):
        found.append(f"the title does not begin with # {name[:2]} · ")
    found += [f"the header lacks {part}" for part in HEADER if part not in first]
    found += [f"the footer lacks {part}" for part in FOOTER if part not in last]
    if len(re.findall(r"^\d\. ", last.partition(FOOTER[-1])[2], re.M)) != 5:
        found.append("the footer does not ask five questions")
    for number, (cell, after) in enumerate(zip(cells, [*cells[1:], None], strict=True)):
        pictures = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if pictures and (after is None or after.cell_type != "markdown"):
            found.append(f"cell {number} shows a picture and no text says what to see in it")
    return found


def lesson_problems(notebook) -> list[str]:
    """What a lesson lacks beyond that: text, short cells, checked outputs."""
    found, cells = [], notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    if len(cells) <= 2 * len(code):
        found.append(f"{len(code)} code cells and {len(cells) - len(code)} of text: say more between them")
    lines = sorted(len(cell.source.splitlines()) for cell in code)
    if lines[len(lines) // 2] > 10 or lines[-1] > 24:
        found.append(f"code cells are too long: {lines[len(lines) // 2]} lines in the median, {lines[-1]} the longest")
    checked = [cell for cell in code if CHECK in cell.metadata.get("tags", [])]
    if len(checked) < 10 or not all(cell.outputs for cell in checked):
        found.append(f"{len(checked)} cells tagged {CHECK}, and each of at least ten needs an output")
    return found


def good_lesson():
    cell, output = nbformat.v4.new_code_cell, nbformat.v4.new_output("stream", text="True\n")
    picture = nbformat.v4.new_output("display_data", data={"image/png": "AA=="})
    cells = [nbformat.v4.new_markdown_cell("\n".join(("# 03 · One", *HEADER))), nbformat.v4.new_markdown_cell("Text.")]
    for _ in range(10):
        cells += [cell("print(True)", outputs=[output], metadata={"tags": [CHECK]}), nbformat.v4.new_markdown_cell("Text.")]
    cells += [cell("figure", outputs=[picture]), nbformat.v4.new_markdown_cell("\n".join(FOOTER) + "\n1. a\n2. b\n3. c\n4. d\n5. e")]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cells: cells[0].update(source=cells[0].source.replace("03", "04")), ["title"]),
        (lambda cells: cells[0].update(source=cells[0].source.replace("| **Time** |", "")), ["header lacks | **Time** |"]),
        (lambda cells: cells[-1].update(source=cells[-1].source.replace("**Next.**", "")), ["footer lacks **Next.**"]),
        (lambda cells: cells[-1].update(source=cells[-1].source.replace("5. e", "")), ["five questions"]),
        (lambda cells: cells.__delitem__(slice(3, 8, 2)), ["say more"]),
        (lambda cells: cells[2].update(source="x\n" * 25), ["too long"]),
        (lambda cells: cells[2].update(outputs=[]), ["needs an output"]),
        (lambda cells: cells[2].metadata.update(tags=[]), ["9 cells tagged"]),
        (lambda cells: cells.insert(-1, nbformat.v4.new_code_cell("x")), ["no text says"]),
        (lambda cells: None, []),
    ],
)
def test_what_a_lesson_lacks_is_seen(spoil, words):
    notebook = good_lesson()
    spoil(notebook.cells)
    found = form_problems("03_one.ipynb", notebook) + lesson_problems(notebook)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True)), found


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.name)
def test_notebooks_have_one_form(path):
    assert form_problems(path.name, nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_lessons_explain_and_check(path):
    assert lesson_problems(nbformat.read(path, as_version=4)) == []


@pytest.mark.notebook
@every_notebook
def test_notebooks_run_in_short_form(path, tmp_path):
    assert int(os.environ["VOX_BUDGET"]) <= 10
    known = papermill.inspect_notebook(str(path))
    parameters = {"out": str(tmp_path / "out")} if "out" in known else {}  # a real run's results stay as they are
    settings = dict(cwd=str(path.parent), kernel_name="python3", progress_bar=False, execution_timeout=900)
    papermill.execute_notebook(str(path), str(tmp_path / path.name), parameters, **settings)
