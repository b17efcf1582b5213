"""FSQ, LocEnc, LocDiT and the sampler against the official ones."""

import pytest
import reference
import torch
from reference import close, same

from vox import flow
from vox.fsq import quantise

NAMES = list(reference.CONFIGS)


def official_noise(batch, dim, patch):
    """The noise the official sampler will draw next from the global generator, [B, D, P]; the generator stays where it is."""
    state = torch.get_rng_state()
    noise = torch.randn(batch, dim, patch)
    torch.set_rng_state(state)
    return noise


# ------------------------------------------------------------------------------------------------------------------ FSQ


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["v1", "gqa8"])
def test_fsq(pair, name, training):
    """Forward and all gradients. No value stands where a float32 difference could flip its level."""
    official, ours = pair(name).official.fsq_layer, pair(name).ours.fsq
    hidden = 3 * torch.randn(2, 11, official.in_dim)
    assert reference.boundary_distance(official, hidden).min() >= reference.MARGIN
    codes = torch.round(torch.tanh(official.in_proj(hidden)) * official.scale)
    assert len(codes.unique()) >= 15, "the inputs must reach most of the 19 levels"
    weight = torch.randn(official.out_dim)
    results = []
    for module in (ours, official):
        was_training = module.training
        module.train(training)
        module.zero_grad()
        x = hidden.clone().requires_grad_()
        out = module(x)
        (out.square() * weight).sum().backward()
        results.append((out, x.grad, {key: parameter.grad for key, parameter in module.named_parameters()}))
        module.train(was_training)
        module.zero_grad()
    (out, grad, grads), (expected, expected_grad, expected_grads) = results
    mode = "train" if training else "eval"
    close(out, expected, what=f"fsq forward, {mode}")
    assert grads.keys() == expected_grads.keys()
    if training:
        close(grad, expected_grad, what=f"fsq gradient of the input, {mode}")
        for key, value in expected_grads.items():
            close(grads[key], value, what=f"fsq gradient of {key}, {mode}")
    else:  # rounding has no slope: only the output projection learns
        assert not grad.any() and not expected_grad.any()
        for key in ("out_proj.weight", "out_proj.bias"):
            close(grads[key], expected_grads[key], what=f"fsq gradient of {key}, {mode}")
        for key in ("in_proj.weight", "in_proj.bias"):
            assert not grads[key].any() and not expected_grads[key].any()


def test_fsq_codes_are_the_official_ones(pair):
    official, ours = pair("v1").official.fsq_layer, pair("v1").ours.fsq
    hidden = 3 * torch.randn(50, official.in_dim)
    far = reference.boundary_distance(official, hidden) >= reference.MARGIN
    codes = ours.codes(hidden) * official.scale
    expected = torch.round(torch.tanh(official.in_proj(hidden)) * official.scale)
    same(codes.round()[far], expected[far], "fsq codes")
    same(quantise(torch.tensor([-1.0, 0.05, 0.06, 1.0]), 9).mul(9).round(), torch.tensor([-9.0, 0.0, 1.0, 9.0]), "levels")


# --------------------------------------------------------------------------------------------------- LocEnc and LocDiT


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_locenc(pair, name):
    official, ours = pair(name).official.feat_encoder, pair(name).ours.locenc
    patches = torch.randn(2, 5, pair(name).tree["patch_size"], 8)
    close(ours(patches), official(patches), what=f"locenc {name}")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_locdit(pair, name):
    official, ours = pair(name).official.feat_decoder.estimator, pair(name).ours.locdit
    n, patch = 6, pair(name).tree["patch_size"]
    y, previous = torch.randn(n, patch, 8), torch.randn(n, patch, 8)
    mu, t = torch.randn(n, official.config.hidden_size), torch.tensor([1.0, 0.93, 0.5, 0.123, 0.01, 0.0])
    expected = official(y.mT, mu, t, previous.mT, torch.zeros(n)).mT
    close(ours(y, mu, t, previous), expected, what=f"locdit {name}")


# ---------------------------------------------------------------------------------------------------------- the sampler


@torch.no_grad()
@pytest.mark.parametrize("zero_star", [True, False], ids=["zero_star", "plain"])
@pytest.mark.parametrize("cfg", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
@pytest.mark.parametrize("name", ["v1", "v1.5", "mup"])
def test_sampler(pair, name, steps, cfg, zero_star):
    official, ours = pair(name).official.feat_decoder, pair(name).ours
    n, patch = 3, pair(name).tree["patch_size"]
    mu, previous = torch.randn(n, official.estimator.config.hidden_size), torch.randn(n, patch, 8)
    noise = official_noise(n, 8, patch)
    options = dict(cfg_value=cfg, use_cfg_zero_star=zero_star, n_timesteps=steps)
    expected = official(mu=mu, patch_size=patch, cond=previous.mT.contiguous(), **options).mT
    found = flow.sample(ours.velocity, mu, previous, noise.mT, steps=steps, cfg=cfg, zero_star=zero_star)
    close(found, expected, what=f"sampler {name}, {steps} steps, cfg {cfg:.0f}, {'CFG-Zero*' if zero_star else 'plain CFG'}")
    moved = reference.figure(found, noise.mT)
    assert moved == 0 if steps == 1 and zero_star else moved > 1e-2, f"the patch lies {moved:.1e} from its noise"


@torch.no_grad()
def test_sampler_settings_matter(pair):
    """Steps, guidance, CFG-Zero*, sway, the condition and the previous patch each change the patch by far more than the bound."""
    ours = pair("v1").ours
    mu, previous, noise = torch.randn(3, 48), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    base = flow.sample(ours.velocity, mu, previous, noise)
    others = {
        "steps": flow.sample(ours.velocity, mu, previous, noise, steps=20),
        "cfg": flow.sample(ours.velocity, mu, previous, noise, cfg=3.0),
        "zero_star": flow.sample(ours.velocity, mu, previous, noise, zero_star=False),
        "sway": flow.sample(ours.velocity, mu, previous, noise, sway=0.0),
        "mu": flow.sample(ours.velocity, mu + 0.1, previous, noise),
        "previous": flow.sample(ours.velocity, mu, previous + 0.1, noise),
    }
    for setting, patch in others.items():
        difference = reference.figure(patch, base)
        assert difference > 1e-3, f"{setting} changes the patch by {difference:.1e} only"


@torch.no_grad()
def test_sway_grid(pair):
    """The grid of 10 steps, as the official code computes it."""
    t = torch.linspace(1, 0, 11)
    same(flow.sway_grid(10), t + (torch.cos(torch.pi / 2 * t) - 1 + t), "sway grid")
    assert [round(value, 3) for value in flow.sway_grid(10)[:4].tolist()] == [1.0, 0.956, 0.909, 0.854]
