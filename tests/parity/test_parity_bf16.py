"""bfloat16, box by box. Its numbers have 8 bits, so one rounding is 2⁻⁹ = 2e-3 of a value; some tens of roundings in a row
are allowed to make BOUND_BF16. Beside the official box in bfloat16, each of ours is compared with the official box in
float32 on the same (rounded) weights and inputs: it must come about as near to that true value as the official one does.
"""

from types import SimpleNamespace

import pytest
import reference
import torch
from reference import FIGURES, close

from vox import flow
from vox.official import load

BOUND_BF16 = 3e-2  # against the official box in bfloat16
BOUND_TRUE = 1.2e-2  # against the official box in float32, or 1.5 times what the official bfloat16 box misses by
BF16 = torch.bfloat16


@pytest.fixture(scope="module", params=["v1", "v1.5", "mup", "long_rope"])
def trio(request, pair, tokenizer):
    """Official bfloat16, ours bfloat16, official float32: the same weights, rounded to bfloat16."""
    tree = reference.CONFIGS[request.param]
    official = reference.model(tree | {"dtype": "bfloat16"}, tokenizer).to(BF16)
    true = reference.model(tree, tokenizer)
    true.load_state_dict(official.state_dict())
    ours = load(pair(request.param).folder, device="cpu", dtype="bfloat16")
    assert ours.dtype == BF16 and next(ours.vae.parameters()).dtype == torch.float32, "the VAE stays in float32"
    return SimpleNamespace(name=request.param, patch=tree["patch_size"], official=official, ours=ours, true=true)


def check(trio, box, found, expected, true):
    """found against the official bfloat16 one within BOUND_BF16, and as near to the float32 one as that is."""
    assert found.dtype == expected.dtype == BF16
    close(found, expected, bound=BOUND_BF16, what=f"bf16 {box} {trio.name}, against official bf16")
    theirs = reference.figure(expected, true)
    close(found, true, bound=max(1.5 * theirs, BOUND_TRUE), what=f"bf16 {box} {trio.name}, against official float32")


@torch.no_grad()
def test_language_models(trio):
    x = torch.randn(2, 70, 32).to(BF16)
    for box in ("base_lm", "residual_lm"):
        ours = trio.ours.tslm if box == "base_lm" else trio.ours.ralm
        found = ours(x) if box == "base_lm" else ours(x, torch.zeros_like(x))
        check(trio, box, found, getattr(trio.official, box)(x)[0], getattr(trio.true, box)(x.float())[0])


@torch.no_grad()
def test_locenc(trio):
    patches = torch.randn(2, 9, trio.patch, 8).to(BF16)
    expected, true = trio.official.feat_encoder(patches), trio.true.feat_encoder(patches.float())
    check(trio, "locenc", trio.ours.locenc(patches), expected, true)


@torch.no_grad()
def test_locdit(trio):
    y, previous = torch.randn(2, 40, trio.patch, 8).to(BF16)
    mu, t = torch.randn(40, 48).to(BF16), torch.rand(40).to(BF16)
    official, true = trio.official.feat_decoder.estimator, trio.true.feat_decoder.estimator
    expected = official(y.mT, mu, t, previous.mT, torch.zeros_like(t)).mT
    true = true(y.mT.float(), mu.float(), t.float(), previous.mT.float(), torch.zeros(40)).mT
    check(trio, "locdit", trio.ours.locdit(y, mu, t, previous), expected, true)


@torch.no_grad()
def test_time_keeps_its_sines(trio):
    """The one place where ours differs from the official bfloat16 on purpose: the sines of 1000·t, an angle that has no room in
    8 bits (900 and 903 are the same number), are taken in float32. So ours is the nearer one to the true time embedding."""
    t = torch.linspace(0, 1, 41).to(BF16)
    official, true = trio.official.feat_decoder.estimator, trio.true.feat_decoder.estimator
    truth = true.time_mlp(true.time_embeddings(t.float())) + true.delta_time_mlp(true.time_embeddings(torch.zeros(41)))
    theirs = official.time_mlp(official.time_embeddings(t)) + official.delta_time_mlp(official.time_embeddings(torch.zeros_like(t)))
    ours = trio.ours.locdit.time(t, BF16)
    distance = close(ours, truth, bound=BOUND_TRUE, what=f"bf16 time embedding {trio.name}, against official float32")
    FIGURES[f"bf16 time embedding {trio.name}, official bf16 against official float32"] = reference.figure(theirs, truth)
    assert reference.figure(theirs, truth) > 5 * distance


@torch.no_grad()
@pytest.mark.parametrize("steps", [2, 10])
def test_sampler(trio, steps, monkeypatch):
    mu, previous = torch.randn(40, 48).to(BF16), torch.randn(40, trio.patch, 8).to(BF16)
    noise = torch.randn(40, 8, trio.patch).to(BF16)
    monkeypatch.setattr(torch, "randn", lambda shape, device, dtype: noise.to(dtype))
    options = dict(n_timesteps=steps, patch_size=trio.patch, cfg_value=2.0)
    expected = trio.official.feat_decoder(mu=mu, cond=previous.mT.contiguous(), **options).mT
    true = trio.true.feat_decoder(mu=mu.float(), cond=previous.float().mT.contiguous(), **options).mT
    found = flow.sample(trio.ours.velocity, mu, previous, noise.mT, steps=steps)
    check(trio, f"sampler, {steps} steps,", found, expected, true)


@torch.no_grad()
def test_fsq_codes(trio):
    """The same TSLM inputs through TSLM and FSQ: how many codes differ. A flipped code is one step of 19, no more."""

    def official_codes(model, hidden):
        return torch.round(torch.tanh(model.fsq_layer.in_proj(hidden)) * model.fsq_layer.scale)

    x = torch.randn(4, 70, 32).to(BF16)
    expected, true = official_codes(trio.official, trio.official.base_lm(x)[0]), official_codes(trio.true, trio.true.base_lm(x.float())[0])
    found = (trio.ours.fsq.codes(trio.ours.tslm(x)).float() * trio.ours.fsq.config.scale).round()
    for what, codes, others in (
        ("ours bf16 and official bf16", found, expected),
        ("ours bf16 and official float32", found, true),
        ("official bf16 and official float32", expected, true),
    ):
        share = (codes != others).double().mean().item()
        FIGURES[f"share of differing FSQ codes {trio.name}: {what}"] = share
        assert share <= 0.05, f"{what}: {share:.1%} of the codes differ"
        assert (codes - others).abs().max() <= 1
    hidden = torch.randn(50, 32).to(BF16)
    assert torch.equal(trio.ours.fsq(hidden), trio.official.fsq_layer(hidden)), "FSQ alone does the same operations"
