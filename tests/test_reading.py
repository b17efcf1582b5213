"""What is read beside the notebooks is true: quoted messages exist, tables can be read by machine, the map leads somewhere."""

import ast
import functools
import re
import runpy
from pathlib import Path

import pytest

from vox import files

ROOT = Path(__file__).parent.parent
PAPER = (ROOT / "notebooks/paper.md").read_text(encoding="utf-8")
MAP = (ROOT / "notebooks/README.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
MESSAGES = re.findall("^> `(.*)`$", TROUBLE, re.MULTILINE)


def templates(node):
    """The texts that an expression can give, with … for every value put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)]
    return []


@functools.cache
def spoken():
    """Every text written in vox, as templates."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "vox").glob("*.py"))]
    return {text for tree in trees for node in ast.walk(tree) for text in templates(node)}


def fits(message, template):
    """Whether a template can give the quoted message. In both, … is any text; words have to agree."""
    pattern = ".*".join(re.escape(part) for part in template.split("…"))
    return bool(re.fullmatch(pattern, message, re.DOTALL)) and len(template.replace("…", "")) >= 0.6 * len(message.replace("…", ""))


def test_messages_are_told_apart():
    assert fits("a.wav cannot be read: convert it", "… cannot be read: convert it")
    assert not fits("a.wav cannot be read: convert it", "… cannot be read: delete it")
    assert not fits("a.wav cannot be read: convert it", "…: …")


@pytest.mark.parametrize("message", MESSAGES)
def test_every_quoted_message_is_one_of_vox(message):
    assert any(fits(message, template) for template in spoken())


def test_troubleshooting_quotes_messages_and_names_variables_that_exist():
    assert len(MESSAGES) >= 15
    source = "".join(path.read_text(encoding="utf-8") for path in (*(ROOT / "vox").glob("*.py"), ROOT / "Makefile"))
    for name in re.findall(r"`((?:VOX|GOMP)_[A-Z]+)", TROUBLE):
        assert name in source, name


def table(title):
    """Rows of the first table under a heading of paper.md."""
    part = PAPER.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    ("title", "first", "rows"),
    [("Results on Seed-TTS-eval", 2, 20), ("Ablation: size of FSQ", 1, 7), ("Ablation: architecture", 1, 5), ("Ablation: guidance", 1, 5)],
)
def test_tables_of_results_are_whole(title, first, rows):
    """Six figures a row, each a percentage or a dash; VoxCPM's own rows agree where they appear twice."""
    _, _, *body = table(title)
    assert len(body) == rows
    for row in body:
        values = [cell.strip() for cell in row[first:]]
        assert len(values) == 6 and all(value == "–" or 0 < float(value) < 100 for value in values), row


def test_figures_that_appear_twice_agree():
    def figures(title, name, first):
        (row,) = [row for row in table(title) if row[0].strip() == name]
        return [float(cell) for cell in row[first:]]

    best = figures("Results on Seed-TTS-eval", "VoxCPM", 2)
    assert best == figures("Ablation: training phase", "stable and decay", 1) == figures("Ablation: guidance", "2.0", 1)
    assert figures("Ablation: size of FSQ", "d256 s9 (default)", 1) == figures("Ablation: architecture", "default", 1)


@pytest.mark.parametrize("path", ["README.md", "TROUBLESHOOTING.md", "notebooks/README.md", "notebooks/paper.md"])
def test_links_of_pages_lead_somewhere(path):
    page = ROOT / path
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_map_names_every_notebook_and_every_box_is_stored_as_drawn():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"({path.name})" in MAP, f"{path.name} is not on the map"
    drawn = runpy.run_path(str(ROOT / "figures/figure1.py"))
    stored = files.read_json(ROOT / "figures/figure1.json")
    assert list(stored["boxes"]) == list(drawn["BOXES"])
    for name, box in stored["boxes"].items():
        assert box["notebook"] == drawn["BOXES"][name][3] and box["notebook"] in MAP
    assert {end for arrow in stored["arrows"] for end in (arrow["from"], arrow["to"])} == set(stored["boxes"])
