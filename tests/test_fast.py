"""What makes speech fast must not change it: rows padded into one batch, blocks that compute only what is read."""

import pytest
import torch

from vox.config import RopeConfig, TransformerConfig
from vox.transformer import KVCache, Transformer

CONFIG = TransformerConfig(layers=3, hidden=64, ffn=96, heads=4, kv_heads=2, mup=True)


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Transformer(CONFIG, causal=True).eval()


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[9, 1, 1, 1], [6, 3, 1, 2]], ids=["steps", "chunks"])
def test_padded_rows_equal_rows_alone(stack, chunks):
    """Rows of unequal length, padded in front with values that would be heard if they were seen."""
    pad = torch.tensor([0, 3, 7])
    x = torch.randn(3, sum(chunks), 64)
    padding = torch.arange(x.shape[1]) < pad[:, None]
    cache = KVCache(CONFIG, 3, x.shape[1], pad=pad)
    found = torch.cat([stack(part, cache) for part in torch.where(padding[..., None], 1e3, x).split(chunks, dim=1)], dim=1)
    assert torch.isfinite(found).all()
    for row, empty in enumerate(pad):
        alone = stack(x[row : row + 1, empty:])[0]
        torch.testing.assert_close(found[row, empty:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[1, 2], [0], [2, 0]], ids=str)
def test_keep_some_rows(stack, rows):
    pad, x = torch.tensor([0, 3, 4]), torch.randn(3, 9, 64)
    whole, part = (KVCache(CONFIG, 3, 12, pad=pad) for _ in range(2))
    stack(x, whole), stack(x, part)
    part.keep(torch.tensor(rows))
    for step in torch.randn(3, 3, 1, 64):
        torch.testing.assert_close(stack(step[rows], part), stack(step, whole)[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rope", [None, RopeConfig()], ids=["no positions", "positions"])
@pytest.mark.parametrize("read", [slice(1), slice(-2, None), slice(None)], ids=str)
def test_reading_less_changes_nothing(rope, read):
    """The values read, and every gradient."""
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, rope=rope)
    stack, x = Transformer(config, causal=False), torch.randn(3, 5, 64, requires_grad=True)
    expected, found = stack(x)[:, read], stack(x, read=read)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    wanted = [x, *stack.parameters()]
    for a, b in zip(torch.autograd.grad(found.square().sum(), wanted), torch.autograd.grad(expected.square().sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
