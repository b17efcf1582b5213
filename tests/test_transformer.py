"""Attention written out equals torch's, forward and backward, and is what trains on a CPU."""

import pytest
import torch
from torch.nn import functional as F

from vox import transformer
from vox.config import TransformerConfig


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [2, 6])
def test_attend(causal, heads):
    q, k, v = (torch.randn(3, n, 5, 4, dtype=torch.double, requires_grad=True) for n in (heads, 2, 2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(transformer.attend(q, k, v, causal), expected)
    assert torch.autograd.gradcheck(lambda *qkv: transformer.attend(*qkv, causal), (q, k, v))


def test_few_queries_see_all_keys():
    q, k, v = torch.randn(3, 6, 2, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(transformer.attend(q, k, v, False), F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


def test_training_and_speaking_agree(monkeypatch):
    """A stack with gradients, which attends in its own words, and the same without, through torch's kernel."""
    calls = []
    monkeypatch.setattr(transformer, "attend", lambda *args, real=transformer.attend: calls.append(args) or real(*args))
    for causal in (True, False):
        stack = transformer.Transformer(TransformerConfig(layers=2, hidden=24, ffn=32, heads=6, kv_heads=2), causal)
        x = torch.randn(2, 7, 24)
        learning = stack(x)
        assert len(calls) == 2
        with torch.no_grad():
            torch.testing.assert_close(stack(x), learning, atol=1e-5, rtol=1e-5)
        assert len(calls) == 2
        calls.clear()
