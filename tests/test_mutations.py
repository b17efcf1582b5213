"""tests/mutate.py breaks what is there, and its last run found every mutation noticed."""

import mutate
import pytest

from vox.files import HOME, read_json

RESULT = read_json(mutate.RESULT)


@pytest.mark.parametrize("mutation", mutate.MUTATIONS, ids=lambda mutation: mutation.what)
def test_every_mutation_changes_a_line_that_is_there_and_was_noticed(mutation):
    source = (HOME / "vox" / f"{mutation.module}.py").read_text(encoding="utf-8")
    assert mutate.broken(mutation, source) != source
    compile(mutate.broken(mutation, source), mutation.module, "exec")
    assert (HOME / "notebooks" / f"{mutation.notebook}.ipynb").exists()
    row = next(row for row in RESULT["rows"] if row["what"] == mutation.what)
    assert row["noticed"] and {name: row[name] for name in mutation._fields} == mutation._asdict()


def test_a_line_that_is_gone_is_named():
    with pytest.raises(ValueError, match=r"vox/fsq.py holds .* 0 times"):
        mutate.broken(mutate.MUTATIONS[3], "")


def test_the_table_for_readers_is_that_of_the_run():
    shown = (HOME / "notebooks/README.md").read_text(encoding="utf-8")
    for row in RESULT["rows"]:
        assert f"| {row['what']} | `vox/{row['module']}.py` | {row['notebook']}, {row['noticed'].partition(':')[0].lower()} |" in shown
