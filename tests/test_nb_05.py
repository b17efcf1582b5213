"""Notebook 05: LocEnc and the wiring equal `vox`, its lesions are undone, its pictures can be drawn, its solutions solve its exercises."""

import dataclasses
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions

import vox
from vox.audio import Speech
from vox.batch import Item, pack
from vox.locenc import LocEnc
from vox.ralm import RALM

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "05_ralm.ipynb"
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [(lambda h, h_fsq, E, audio: torch.where(audio[..., None], h_fsq, h) + E, "")],
    2: [(lambda P: (25, 25 / P, 25 / P * (1 + P)), "")],
    3: [(lambda n, m: [True] * m, "")],
    4: [(lambda X, kind: X.var(0).sum().item() if kind == "mean" else X.square().mean().item(), "")],
}


@pytest.fixture(scope="module")
def code():
    return definitions(NOTEBOOK)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = vox.VoxCPM(vox.preset("nano")).eval()
    P, D = model.config.patch, model.config.vae.latent_dim
    batch = pack([Item(torch.arange(10, 10 + n), torch.randn(m * P, D)) for n, m in ((4, 5), (2, 3))], P)
    return model, batch


@torch.no_grad()
def test_locenc_equals_vox(code):
    torch.manual_seed(0)
    config = vox.preset("nano").locenc
    theirs, ours, patches = LocEnc(config, 6).eval(), code.LocEnc(config, 6).eval(), torch.randn(2, 3, 4, 6)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(patches), theirs(patches), atol=1e-5, rtol=1e-4)
    code.patches = patches
    assert code.order_matters(ours)
    blind = code.LocEnc(dataclasses.replace(config, rope=None), 6).eval()
    assert not code.order_matters(blind)


@torch.no_grad()
def test_ralm_equals_vox(code):
    torch.manual_seed(0)
    config = vox.preset("nano").tslm
    theirs, ours, (plan, past) = RALM(config, 2).eval(), code.RALM(config, 2).eval(), torch.randn(2, 1, 6, config.hidden)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(plan, past), theirs(plan, past), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours(plan, past), ours(plan, 0 * past), atol=1e-3)


@torch.no_grad()
def test_wiring_equals_vox(code, small):
    model, batch = small
    way = code.wire(model, batch)
    x = model.tslm.embed(batch.text) * batch.text_mask[..., None] + way["E"]
    for kind in ("full", "no_history", "no_residual", "none"):
        other = vox.VoxCPM(model.config.replace(ralm=kind)).eval()
        other.load_state_dict({name: model.state_dict()[name] for name in other.state_dict()})
        mu = other.condition(*other.plan(x, way["E"], batch.audio_mask))
        torch.testing.assert_close(code.variant(model, way, kind), mu, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(way["mu"], code.variant(model, way, "full"))
    assert not torch.allclose(way["mu"], code.variant(model, way, "no_history"), atol=1e-3)  # the four do differ


def test_probe_finds_what_is_there(code):
    g = torch.Generator().manual_seed(0)
    X, noise = torch.randn(400, 5, generator=g), torch.randn(400, 2, generator=g)
    Y = X @ torch.randn(5, 2, generator=g) + 3
    assert code.r2((X[:300], Y[:300]), (X[300:], Y[300:]), strength=1e-3) > 0.999
    assert code.r2((X[:300], noise[:300]), (X[300:], noise[300:])) < 0.05
    audio = torch.tensor([False, True, True, True, False])
    u = dict(audio=audio, h=torch.arange(5.0)[:, None], z=10 * torch.arange(5.0)[:, None])
    assert [part.flatten().tolist() for part in code.pairs([u], "h", 0)] == [[1, 2, 3], [10, 20, 30]]
    assert [part.flatten().tolist() for part in code.pairs([u], "h", 1)] == [[1, 2], [20, 30]]  # the next patch


@torch.no_grad()
def test_lesions_cut_one_path_and_are_undone(code, small):
    """On the path that is cut the next box is handed the mean, on the others what it always gets; afterwards all is as before."""
    model, batch = small
    way, c = code.wire(model, batch), model.config
    H, audio = c.tslm.hidden, batch.audio_mask[..., None]
    code.tiny, code.means = model, {name: torch.full((H,), 0.5) for name in ("plan", "r", "E")}
    code.means["z"] = torch.randn(c.patch * c.vae.latent_dim)
    y, mu, t = torch.randn(3, c.patch, c.vae.latent_dim), torch.randn(3, c.locdit.hidden), torch.rand(3)
    previous = torch.randn_like(y)
    boxes = {
        "plan": lambda: model.lm_to_dit_proj(way["plan"]),
        "residual": lambda: model.res_to_dit_proj(way["r"]),
        "E": lambda: model.ralm(way["plan"], way["E"]),
        "previous patch": lambda: model.locdit(y, mu, t, previous),
    }
    cut = {
        "plan": model.lm_to_dit_proj(code.means["plan"]).expand_as(way["mu"]),
        "residual": model.res_to_dit_proj(code.means["r"]).expand_as(way["mu"]),
        "E": model.ralm(way["plan"], code.means["E"] * audio),
        "previous patch": model.locdit(y, mu, t, code.means["z"].view(c.patch, -1).expand_as(y)),
    }
    whole = {name: box() for name, box in boxes.items()}
    for path in code.CUTS:
        with code.lesion(path):
            for name, box in boxes.items():
                torch.testing.assert_close(box(), (cut if name == path else whole)[name])
        assert all(torch.equal(box(), whole[name]) for name, box in boxes.items())
    with pytest.raises(KeyError), code.lesion("plan"):
        raise KeyError  # an error inside the block leaves nothing cut
    assert torch.equal(boxes["plan"](), whole["plan"])


def test_pictures(code, small):
    code.tiny = small[0]
    assert isinstance(code.draw_shares({"one": {"a": 0.3, "b": -0.1}, "two": {"a": 0.2, "b": 0.5}}), Figure)
    speech = Speech(0.1 * torch.randn(8000), 16000, "one")
    code.asked = {"prompted": ["one"]}
    code.spoken = {(cut, "prompted"): [speech] for cut in ("nothing", "plan")}
    code.written = {("plan", "prompted"): ["two"]}
    figure, note, sound = code.draw_lesion("one", "plan")
    assert isinstance(figure, Figure) and note.endswith("two") and sound is speech
