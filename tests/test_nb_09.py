"""Notebook 09: what it builds by hand is what vox measures with, its exercises can be solved, its Explorer draws what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from notebook_code import definitions

from vox import metrics
from vox.exercises import Exercises
from vox.intervals import bootstrap, share

ROOT = Path(__file__).parent.parent
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [("", ""), ("nine", "")],
    2: [(300, "")],
    3: [((0.1, 0.6), ""), ((0.2, 0.1), "")],
    4: [(100, ""), (500, "")],
    5: [(metrics.units, ""), (lambda text: (1, 1), "")],
}


@pytest.fixture(scope="module")
def notebook():
    return definitions(ROOT / "notebooks/09_evaluate.ipynb")


@pytest.fixture(scope="module")
def exercises():
    return Exercises("09_evaluate")


def test_edits_are_those_of_vox(notebook):
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "三", "四"]
    for _ in range(60):
        r, h = (" ".join(rng.choice(words, rng.integers(low, 8))) for low in (1, 0))
        table = notebook.edits(metrics.units(r).split(), metrics.units(h).split())
        assert (table[-1, -1], len(table) - 1) == metrics.errors(r, h)


def test_the_walk_costs_what_the_table_says(notebook):
    """Each step of the way is one of the three, and the edits on it add up to the corner."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        r, h = rng.integers(0, 3, rng.integers(1, 9)), rng.integers(0, 3, rng.integers(1, 9))
        d = notebook.edits(list(r), list(h))
        path, cost = notebook.walk(d), 0
        assert path[0] == (0, 0) and tuple(path[-1]) == (len(r), len(h))
        for (i, j), (k, m) in zip(path, path[1:], strict=False):
            assert (k - i, m - j) in ((1, 1), (1, 0), (0, 1))
            cost += (r[k - 1] != h[m - 1]) if (k - i, m - j) == (1, 1) else 1
        assert cost == d[-1, -1]


def test_ctc_sums_are_those_of_torch(notebook):
    rng = np.random.default_rng(2)
    P = rng.dirichlet([1, 1, 1], 5)
    total = notebook.sums(P)
    assert np.isclose(sum(total.values()), 1)
    for text in ((1,), (1, 2), (2, 2)):
        loss = torch.nn.functional.ctc_loss(torch.tensor(P).log()[:, None], torch.tensor([text]), (5,), (len(text),), reduction="sum")
        assert np.isclose(total[text], torch.exp(-loss))


def test_intervals_and_crossing_are_those_of_vox(notebook):
    rng = np.random.default_rng(3)
    counts = notebook.world(rng, 30)
    assert np.allclose(notebook.resampled(counts), bootstrap(counts, "ratio"))
    assert np.allclose(notebook.wilson(0, 17), share([False] * 17)[1:3])
    same, different = rng.normal(1, 1, 50).round(1), rng.normal(0, 1, 80).round(1)
    assert np.isclose(notebook.crossing(same, different)[1], metrics.eer(same, different))


def test_warping_is_that_of_vox(notebook):
    a, b = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (20, 31))
    path = np.array(notebook.walk(notebook.warp(a.numpy().astype(float), b.numpy().astype(float))))[1:] - 1
    assert np.array_equal(path.T, metrics.align(a, b))


def test_the_explorer_draws_what_it_is_asked(notebook):
    """Noise as loud as it says, another sound for another setting, and the unbroken one heard without an error."""
    from vox import judge

    base = dict(noise="none", pace=175, pitch=50)
    notebook.base, notebook.noises, notebook.RATE = base, {"none": None, "0 dB": 0}, metrics.SAMPLE_RATE
    notebook.judges = judge.load()
    clean, loud = notebook.broken(**base), notebook.broken(**base | {"noise": "0 dB"})
    assert torch.isclose((loud - clean).norm() / clean.norm(), torch.tensor(1.0), atol=0.1)
    assert len(notebook.broken(**base | {"pace": 300})) < 0.8 * len(clean)
    figure, note, (sound, rate) = notebook.explore(**base)
    assert "0 of 5 words wrong" in note and "1.00" in note and rate == 16000 and torch.equal(sound, clean)
    assert len(figure.axes) == 2  # the spectrogram and its scale


def test_tables_of_the_paper_are_read(notebook):
    found = notebook.plain_and_hard("Ablation: guidance", 1)
    assert len(found) == 5 and ("2.0", 0.93, 8.87) in found
