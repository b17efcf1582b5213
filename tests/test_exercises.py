"""Exercises say right, not yet and still to do, and never stop a notebook."""

import pytest

from vox.exercises import Exercises

SOLUTIONS = '''
def exercise_1():
    """Count to two."""
    return 2


def check_1(answer):
    assert answer == 2, f"{answer} is not two"
'''


@pytest.fixture
def exercises(tmp_path):
    (tmp_path / "03_toy.py").write_text(SOLUTIONS)
    return Exercises("03_toy", tmp_path)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (2, "right"),
        (3, "not yet: 3 is not two"),
        (None, "still to do"),
        (..., "still to do"),
    ],
)
def test_answers_are_judged(exercises, capsys, answer, verdict):
    exercises.check(1, answer)
    assert capsys.readouterr().out == f"exercise 1: {verdict}\n"


def test_an_answer_of_another_kind_is_not_yet_right(exercises, capsys):
    exercises.module.check_1 = lambda answer: answer + 1
    exercises.check(1, "two")
    assert "not yet: it could not be checked (TypeError" in capsys.readouterr().out


def test_solutions_and_hints_are_shown(exercises, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    exercises.hint(1)
    assert capsys.readouterr().out == "Count to two.\n" and len(exercises) == 1
    exercises.show(1)
    assert "return 2" in shown[0].data and "is not two" not in shown[0].data


def test_what_is_not_there_is_named(exercises, tmp_path):
    with pytest.raises(ValueError, match="03_toy has no exercise 4; it has 1"):
        exercises.show(4)
    with pytest.raises(ValueError, match="no solutions for '04_toy'; there are some for: 03_toy"):
        Exercises("04_toy", tmp_path)
    (tmp_path / "05_toy.py").write_text("def exercise_2():\n    return 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="05_toy has no check_2 beside its exercise_2"):
        Exercises("05_toy", tmp_path)
