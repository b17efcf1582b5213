"""The training loss and its gradients against the official forward pass: same noise, times and dropped conditions."""

import pytest
import torch
from reference import WatchFSQ, close

from vox import flow
from vox.batch import Item, pack
from vox.layout import released_name

SEEDS = {"v1": 0, "v1.5": 0, "mup": 0, "kv_channels": 0, "long_rope": 0, "no_rope": 0}  # weights; chosen for the FSQ margin


def official_draw(positions: int, patch: int, dim: int, drop: float) -> tuple[torch.Tensor, ...]:
    """Replay, in the official order, what its loss draws over all B·T positions from the global generator: t, noise, keep."""
    state = torch.get_rng_state()
    keep = torch.rand(positions) > drop if drop else torch.ones(positions, dtype=torch.bool)
    torch.rand(positions)  # noise on the previous patch: its scale is 0
    torch.randn(positions, dim, patch)
    torch.randn(positions)  # r, used by a mean-velocity variant only
    t = torch.sigmoid(torch.randn(positions) * 1.0 - 0.4)
    torch.rand(positions)
    noise = torch.randn(positions, dim, patch).mT
    torch.set_rng_state(state)
    return t, noise, keep


def a_batch(tree):
    """Two sequences of unequal length, as the packer makes them."""
    patch = tree["patch_size"]
    items = [Item(torch.randint(105, 400, (n,)), torch.randn(m * patch, 8)) for n, m in ((6, 5), (3, 4))]
    return pack(items, patch, tree["max_length"])


def both_losses(both, drop):
    """Losses of the official model and of ours on one batch with one draw. Returns (official dict, ours, Draw)."""
    official, ours, tree = both.official, both.ours, both.tree
    batch = a_batch(tree)
    official.feat_decoder.training_cfg_rate = drop
    t, noise, keep = official_draw(batch.text.numel(), tree["patch_size"], 8, drop)
    with WatchFSQ(official.fsq_layer) as watch:
        expected = official(
            batch.text, batch.text_mask, batch.latents, batch.audio_mask, batch.loss_mask, torch.zeros_like(batch.text), batch.stop
        )
    watch.check(batch.audio_mask)
    chosen = batch.loss_mask.flatten()  # [B·T]: ours draws for these positions only
    draw = flow.Draw(t[chosen], noise[chosen], keep[chosen])
    return expected, ours(batch, draw), draw


@pytest.mark.parametrize("drop", [0.0, 0.5], ids=["all conditions", "half dropped"])
@pytest.mark.parametrize("name", list(SEEDS))
def test_loss_and_gradients(pair, name, drop):
    both = pair(name, SEEDS[name])
    official, ours = both.official.train(), both.ours.train()
    try:
        official.zero_grad()
        ours.zero_grad()
        expected, losses, draw = both_losses(both, drop)
        assert drop == 0 or 0 < draw.keep.sum() < len(draw.keep), "the draw must keep some conditions and drop some"
        close(losses.diffusion, expected["loss/diff"], what=f"diffusion loss {name}")
        close(losses.stop, expected["loss/stop"], what=f"stop loss {name}")
        close(losses.total, expected["loss/diff"] + expected["loss/stop"], what=f"total loss {name}")
        (expected["loss/diff"] + expected["loss/stop"]).backward()
        losses.total.backward()
        compare_gradients(both, name)
    finally:
        official.eval().zero_grad()
        ours.eval().zero_grad()


def compare_gradients(both, name):
    """Every parameter outside the VAE has a gradient on both sides, and they agree."""
    expected = {key: parameter.grad for key, parameter in both.official.named_parameters() if not key.startswith("audio_vae.")}
    found = {released_name(key): parameter.grad for key, parameter in both.ours.named_parameters() if not key.startswith("vae.")}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        close(found[key], gradient, what=f"gradients {name}")


def test_vae_learns_nothing(pair):
    """The codec is frozen while the rest trains."""
    assert not any(parameter.requires_grad for parameter in pair("v1").ours.vae.parameters())
