"""Notebook 04: its block, stack and cache equal `vox`, its pictures can be drawn, its solutions solve its exercises."""

import dataclasses
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions

import vox
from vox import transformer, tslm
from vox.config import TransformerConfig

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "04_tslm.ipynb"
CONFIG = TransformerConfig(layers=3, hidden=48, ffn=80, heads=6, kv_heads=2, mup=True)
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [(lambda width, positions: 10000.0, "")],
    2: [(lambda config, positions, bytes_each: 2 * config.layers * config.hidden * positions * bytes_each, "")],
    3: [(lambda T, w: torch.ones(T, T, dtype=torch.bool).tril(), "")],
    4: [(lambda width: torch.arange(width), "")],
    5: [(lambda q, k, omega: q @ k.T * omega, "")],
}


@pytest.fixture(scope="module")
def code():
    return definitions(NOTEBOOK)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twins(code, config):
    """The same weights in the notebook's TSLM and in ours."""
    torch.manual_seed(0)
    theirs, ours = tslm.TSLM(config, 20).eval(), code.TSLM(config, 20).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_norm_and_rotation_equal_vox(code):
    torch.testing.assert_close(code.RMSNorm(32, 1e-5)(normal(2, 3, 32)), transformer.RMSNorm(32, 1e-5)(normal(2, 3, 32)))
    x, theta = normal(1, 2, 9, 16), 500.0
    rope = transformer.LongRoPE(vox.config.RopeConfig(theta=theta), 16)
    angles = torch.arange(9)[:, None] * code.frequencies(16, theta)
    torch.testing.assert_close(code.rotate(x, angles), transformer.rotate(x, *rope(0, 9, x.device)), atol=1e-5, rtol=1e-5)
    a, b = torch.tensor([0.3, -1.0]), torch.tensor([0.8, 0.4])  # the toy: only the difference of the angles counts
    torch.testing.assert_close(code.turn(a, 2.0) @ code.turn(b, 1.2), code.turn(a, 0.8) @ b)


@pytest.mark.parametrize("changes", [{}, {"mup": False}, {"kv_heads": 6}, {"heads": 3, "kv_heads": 1}])
@torch.no_grad()
def test_tslm_and_cache_equal_vox(code, changes):
    ours, theirs = twins(code, dataclasses.replace(CONFIG, **changes))
    tokens = torch.arange(14).view(2, 7)
    torch.testing.assert_close(ours.embed(tokens), theirs.embed(tokens))
    x, whole = ours.embed(tokens), theirs(theirs.embed(tokens))
    torch.testing.assert_close(ours(x), whole, atol=1e-5, rtol=1e-4)
    cache = code.Cache(ours.config.layers)
    assert not len(cache) and bool(cache)  # an empty cache must be used, too
    stepped = torch.cat((ours(x[:, :3], cache), *(ours(x[:, t : t + 1], cache) for t in range(3, 7))), 1)
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=1e-4)
    assert len(cache) == 7


def test_attention_weights_are_causal_and_add_up(code):
    q, k, v = normal(1, 4, 3, 8), normal(1, 2, 5, 8, seed=1), normal(1, 2, 5, 8, seed=2)
    _, weights = code.attend(q, k, v)  # three queries at the end of five positions
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3))
    assert (weights[..., 0, 3:] == 0).all() and (weights[..., 1, 4:] == 0).all() and (weights[..., 2, :] > 0).all()


def test_scales_hold_the_stream(code):
    deep, shallow = (code.growth(n, mup=True) for n in (32, 4))
    assert abs(deep / shallow - 1) < 0.2 and code.growth(32, mup=False) > 2 * code.growth(4, mup=False)


def test_counting_by_hand(code):
    """A character always followed by the same one costs next to nothing if one knows the one before, ln 2 if one does not."""
    code.train = code.held_out = [[1, *[5, 6] * 500]]
    assert code.count_model(0) == pytest.approx(0.693, abs=0.01)
    assert code.count_model(1) < 0.01


def test_pictures(code):
    figure, note = code.draw_rope(10000.0, 0, 1)
    assert isinstance(figure, Figure) and "score 1.00" in note
    assert code.draw_rope(100.0, 40, 4)[1].split(";")[0] == code.draw_rope(100.0, 10, 1)[1].split(";")[0]  # a stretch of 4
    code.tokens, code.maps = {"a b": ["a", " ", "b"]}, {"a b": torch.eye(3).expand(2, 2, 3, 3)}
    figure, note = code.draw_attention("a b", 1, 0)
    assert isinstance(figure, Figure) and note.startswith("100% of the attention") and note.endswith("0, 1, 2")
    code.moved = dict.fromkeys(("a b", "b a"), {"h": torch.eye(3), "μ": torch.eye(3)})
    code.tokens["b a"] = ["b", " ", "a"]
    assert isinstance(code.draw_influence(["a b", "b a"]), Figure)


def test_a_word_that_moves_nothing_does_not_rise(code):
    """A head that always looks at the same token has no correlation with time, and must not win for that."""
    assert code.rise(torch.eye(4)) == pytest.approx(1) and code.rise(torch.eye(4).flip(0)) == pytest.approx(-1)
    assert code.rise(torch.tensor([[0.0, 1.0]] * 4)) == -1


def test_words_exchanged_for_ralm_alone(code):
    """TSLM's states stay, μ moves; with the text unchanged nothing moves."""
    torch.manual_seed(0)
    code.tiny = vox.VoxCPM(vox.preset("nano")).eval()
    wav, samples = torch.randn(8000), code.tiny.config.patch_samples
    x, E, audio, ids = code.sequence("one two", wav)
    other, *_ = code.sequence("two one", wav)
    plain, same, moved = code.told(x, E, audio), code.told(x, E, audio, seen=x), code.told(x, E, audio, seen=other)
    assert len(plain["h"]) == -(-8000 // samples) and all(torch.equal(plain[box], same[box]) for box in plain)
    assert torch.equal(plain["h"], moved["h"]) and not torch.allclose(plain["μ"], moved["μ"])
    code.utterances, code.tokens = {"one two": (x, E, audio, ids)}, {"one two": [code.tiny.tokenizer.decode([i]) for i in ids]}
    changes = code.influence("one two")
    assert changes["μ"].shape == (len(plain["μ"]), len(ids)) and (changes["μ"][:, code.tokens["one two"].index(" ")] == 0).all()
    assert (changes["μ"][:, 0] > 0).all()
