"""Notebook 06: what it defines equals `vox`, its formulas hold, its pictures can be drawn, its solutions solve its exercises."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions
from torch.nn import functional as F

import vox
from vox import flow, plots
from vox.batch import Item, pack

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "06_locdit.ipynb"
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [(lambda points, t: 1.0, "")],
    2: [(lambda velocity, y, times: y, "")],
    3: [(lambda steps, w, zero: 2 * steps, "")],
    4: [(1.0, "")],
    5: [(0.8, "")],
}


@pytest.fixture(scope="module")
def code():
    """The notebook's functions and classes, with the plain values that they read."""
    code = definitions(NOTEBOOK)
    code.SPREAD, code.NAMES = 0.08, ("pause", "soft", "loud")
    code.BLUE, code.ORANGE, code.GREY = plots.COLOURS[0], plots.COLOURS[1], "#8c8c8c"
    return code


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_path_grid_and_guidance_equal_vox(code):
    x, z, t = normal(7, 2), normal(7, 2, seed=1), torch.rand(7)
    for ours, theirs in zip(code.path(x, z, t), flow.path(x[:, None], z[:, None], t), strict=True):
        assert torch.equal(ours, theirs[:, 0])
    for steps, sway in ((1, 1.0), (10, 1.0), (7, 0.0), (5, -0.5)):
        torch.testing.assert_close(code.sway_grid(steps, sway), flow.sway_grid(steps, sway))
    torch.testing.assert_close(code.zero_star(x, z)[..., None], flow.cfg_zero_scale(x[:, None], z[:, None]))
    for w in (0.0, 1.0, 2.0, 5.0):
        assert torch.equal(code.guide(x, z, w), flow.guide(x, z, w, zero_star=False))


def test_walks_equal_vox(code):
    network, z, times = code.Field().requires_grad_(False), normal(20, 2), code.sway_grid(10)
    patch_network = lambda y, mu, t, previous: network(y[:, 0], mu, t)[:, None]  # noqa: E731
    for k in (0, 1):
        mu = F.one_hot(torch.full([20], k), 2).float()
        for w in (1.0, 2.0, 5.0):
            plain = flow.sample(patch_network, mu, z[:, None], z[:, None], 10, w, zero_star=False)[:, 0]
            torch.testing.assert_close(code.solve(code.guided(network, k, w, 20), z, times), plain, atol=1e-4, rtol=1e-4)
            star = flow.sample(patch_network, mu, z[:, None], z[:, None], 10, w)[:, 0]
            torch.testing.assert_close(code.draw_zero_star(network, k, w, z, times), star, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0.15, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("shown", [True, False])
def test_best_velocity_is_the_conditional_mean(code, t, shown):
    """Its error is uncorrelated with every function of what is known: here place, class and itself; that makes it the best."""
    n = 200_000
    torch.manual_seed(0)
    x, which = code.draw_data(n)
    mu, times = F.one_hot(which, 2) * float(shown), torch.full([n], t)
    y, v = code.path(x, torch.randn(n, 2), times)
    best = code.best(y, mu, times)
    for known in (torch.ones(n, 2), y, y**2, y.flip(1), best, mu):
        assert ((v - best) * known).mean(0).abs().max() < 0.02


def test_two_points_formula_is_the_mixture_of_two(code):
    y, t = torch.linspace(-2, 2, 9), torch.full([9], 0.6)
    p = torch.softmax(torch.stack((-((y - 0.4) ** 2), -((y + 0.4) ** 2))) / (2 * 0.36), 0)
    torch.testing.assert_close(code.best_two(y, t), (y - (p[0] - p[1])) / 0.6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vox.VoxCPM(vox.preset("nano")).eval().requires_grad_(False)


def test_locdit_equals_vox(code, model):
    config = model.config
    P, D, H = config.patch, config.vae.latent_dim, config.locdit.hidden
    ours = code.LocDiT(config.locdit, D).requires_grad_(False)
    ours.load_state_dict(model.locdit.state_dict())
    y, previous, mu, t = normal(5, P, D), normal(5, P, D, seed=1), normal(5, H, seed=2), torch.rand(5)
    torch.testing.assert_close(ours(y, mu, t, previous), model.locdit(y, mu, t, previous), atol=1e-5, rtol=1e-4)
    for steps, w in ((1, 2.0), (4, 2.0), (10, 3.0)):
        theirs = flow.sample(model.locdit, mu, previous, y, steps, w)
        torch.testing.assert_close(code.draw_patch(ours, mu, previous, y, steps, w), theirs, atol=1e-3, rtol=1e-3)


def test_conditions_are_those_of_training(code, model, monkeypatch):
    """The loss made of them is the loss of `VoxCPM.forward` on the same utterances."""
    hop = model.config.vae.hop
    wavs = {"one": 0.1 * normal(9 * hop), "two hundred": 0.1 * normal(14 * hop, seed=1)}
    monkeypatch.setattr(code.corpus, "wav", lambda row, rate: wavs[row["text"]])
    x, previous, mu = code.conditions(model, [{"text": text} for text in wavs])
    latents = [model.vae.encode(wav[None, None])[0].T for wav in wavs.values()]
    batch = pack([Item(torch.tensor(model.tokenizer.encode(text)), z) for text, z in zip(wavs, latents, strict=True)], model.config.patch)
    draw = flow.draw(batch.patches, *x.shape[1:], model.config.flow, torch.Generator().manual_seed(0))
    y, v = flow.path(x, draw.noise, draw.t)
    loss = F.mse_loss(model.velocity(y, mu * draw.keep[:, None], draw.t, previous), v)
    torch.testing.assert_close(loss, model(batch, draw).diffusion, atol=1e-5, rtol=1e-5)


def test_explorers_draw_every_corner(code, model):
    code.field = code.Field().requires_grad_(False)
    for steps, sway, w, zero, velocity in ((1, 1.0, 2, True, "best"), (1, 0.0, 5, False, "best"), (4, -0.8, 1, True, "trained MLP")):
        figure, html = code.draw_walks(steps, sway, w, zero, velocity)
        assert isinstance(figure, Figure) and html.startswith(f"{(steps - zero) * (1 if w == 1 else 2)} passes")
        figure.clear()
    code.voxcpm, code.config = model, model.config
    P, D, H = model.config.patch, model.config.vae.latent_dim, model.config.locdit.hidden
    code.one = normal(6, P, D), normal(6, P, D, seed=1), normal(6, H, seed=2)
    code.grid = {setting: code.redraw_one(*setting) for setting in ((1, 2, True), (2, 3, False))}
    assert torch.equal(code.grid[1, 2, True][0], normal(6, P, D, seed=13))  # one step of CFG-Zero* is the noise itself
    for setting in code.grid:
        figure, html, (wav, rate) = code.draw_one(*setting)
        assert isinstance(figure, Figure) and len(wav) == 6 * model.config.patch_samples and rate == model.config.vae.sample_rate
        assert "deviation" in html


def test_training_step_of_the_babbler_learns(code):
    code.vox = vox
    torch.manual_seed(0)
    babbler = code.Babbler(5)
    x, previous, kind = normal(64, 2, 5), normal(64, 2, 5, seed=1), torch.arange(64) % 3
    history = code.train(babbler, lambda: babbler.loss(x + 3.0 * kind[:, None, None], previous, kind), 41, 3e-3)
    assert history[-1]["step"] == 41 and history[-1]["loss"] < 0.7 * history[0]["loss"]
