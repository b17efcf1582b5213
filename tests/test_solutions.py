"""Exercises of all lessons: each is set in its notebook, its solution passes its own check, nearly right answers do not. The nearly right
answers stand with the other tests of a notebook, in `WRONG`. And of the whole course: the five questions at the end are answered."""

import contextlib
import importlib
import io
import re

import nbformat
import pytest
import torch
from test_notebooks import COURSE, FOOTER, LESSONS

from vox.exercises import Exercises

ALL = {path.stem: Exercises(path.stem) for path in LESSONS}
WRONG = {name: importlib.import_module(f"test_nb_{name[:2]}").WRONG for name in ALL}  # exercise → [(answer, a word of what it is told)]


def told(name, k, answer) -> str:
    """What `check` says of an answer."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ALL[name].check(k, answer)
    return printed.getvalue()


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, exercises in ALL.items() for k in exercises.numbers])
def test_the_solution_is_right_and_the_stub_is_still_to_do(name, k):
    torch.manual_seed(0)
    assert told(name, k, getattr(ALL[name].module, f"exercise_{k}")()) == f"exercise {k}: right\n"
    assert "still to do" in told(name, k, None) and "still to do" in told(name, k, ...)


@pytest.mark.parametrize(
    ("name", "k", "answer", "word"),
    [(name, k, *case) for name, answers in WRONG.items() for k, cases in answers.items() for case in cases],
)
def test_a_nearly_right_answer_is_not_yet_right(name, k, answer, word):
    said = told(name, k, answer)
    assert "not yet" in said and word in said and "could not be checked" not in said


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_exercise_is_set_and_tried(path):
    exercises, source = ALL[path.stem], "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert exercises.numbers == sorted(WRONG[path.stem]) and len(exercises) >= 4
    assert sorted({int(k) for k in re.findall(r"ex\.check\((\d+), ", source)}) == exercises.numbers


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_five_questions_are_answered_where_the_answers_say(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    questions = cells[-1].partition(FOOTER[-1])[2]
    sections = set(re.findall(r"^## (\d+) · ", "\n".join(cells), re.M))
    answers = Exercises(path.stem).module.ANSWERS
    assert isinstance(answers, tuple) and len(answers) == len(re.findall(r"^\d\. ", questions, re.M)) == 5
    assert f"Answers: [solutions/{path.stem}.py](solutions/{path.stem}.py)." in questions
    for answer in answers:
        named = set(re.findall(r"\d+", " ".join(re.findall(r"\bsections? (\d+(?:(?:, | and )\d+)*)", answer))))
        assert named and named <= sections, f"sections {sorted(named - sections)} are not there, or none is named: {answer}"
