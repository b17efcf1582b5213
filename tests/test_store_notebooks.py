"""What is stored of a notebook is what a reader needs."""

import nbformat
from store_notebooks import clean
from test_notebooks import problems


def test_traces_of_a_run_are_removed():
    v4 = nbformat.v4
    picture = v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=9, metadata={"x": 1})
    bar = v4.new_output("stream", name="stderr", text="10 of 10 steps")
    cells = [
        v4.new_markdown_cell("# One"),
        v4.new_code_cell("a = 1", execution_count=7, metadata={"tags": ["parameters"], "papermill": {"duration": 1.0}}),
        v4.new_code_cell("a = 2", execution_count=8, metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell("a", execution_count=9, metadata={"execution": {}}, outputs=[bar, picture]),
    ]
    metadata = {"widgets": {}, "kernelspec": {"name": "other", "display_name": "Other"}, "language_info": {"name": "python"}}
    notebook = clean(v4.new_notebook(cells=cells, metadata=metadata))
    assert problems(notebook) == []
    assert [cell.source for cell in notebook.cells] == ["# One", "a = 1", "a"]
    assert [output.output_type for output in notebook.cells[2].outputs] == ["execute_result"]
    assert notebook.cells[2].outputs[0].execution_count == 2


def test_printed_text_is_one_output():
    v4 = nbformat.v4
    printed = [v4.new_output("stream", name=name, text=text) for name, text in (("stdout", "a\n"), ("stderr", "bar"), ("stdout", "b\n"))]
    picture = v4.new_output("display_data", data={"text/plain": "picture"})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    cell = v4.new_code_cell("a", outputs=[*printed, picture, v4.new_output("stream", name="stdout", text="c\n")])
    outputs = clean(v4.new_notebook(cells=[cell], metadata=metadata)).cells[0].outputs
    assert [output.get("text") for output in outputs] == ["a\nb\n", None, "c\n"]


def test_of_a_widget_its_picture_is_stored():
    v4 = nbformat.v4
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    widget, both = v4.new_output("display_data", data=view), v4.new_output("display_data", data=view | {"image/png": "AA=="})
    picture = v4.new_output("display_data", data={"image/png": "AA=="}, metadata={"image/png": {"alt": "a tone", "width": 9}, "x": 1})
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    bar = v4.new_output("display_data", data=view | {"text/plain": "0 examples"})
    cell = v4.new_code_cell("a", outputs=[widget, picture, bar, both])
    outputs = clean(v4.new_notebook(cells=[cell], metadata=metadata)).cells[0].outputs
    assert [output.data for output in outputs] == [{"image/png": "AA=="}] * 2
    assert [output.metadata for output in outputs] == [{"image/png": {"alt": "a tone"}}, {}]
