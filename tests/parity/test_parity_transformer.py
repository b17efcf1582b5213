"""The MiniCPM-4 stack against the official one, in one pass and step by step through the KV cache, in every variant."""

import pytest
import reference
import torch
from reference import close

from vox.transformer import KVCache, Transformer

STEPS = 7


def stacks(pair):
    """(name, official stack, ours) of the four stacks of a model."""
    official, ours = pair.official, pair.ours
    return [
        ("tslm", official.base_lm, ours.tslm),
        ("ralm", official.residual_lm, ours.ralm),
        ("locenc", official.feat_encoder.encoder, ours.locenc.encoder),
        ("locdit", official.feat_decoder.estimator.decoder, ours.locdit.decoder),
    ]


@torch.no_grad()
@pytest.mark.parametrize("name", list(reference.CONFIGS))
def test_one_pass(pair, name):
    for stack, official, ours in stacks(pair(name)):
        x = torch.randn(2, 70 if ours.causal else 9, official.config.hidden_size)
        expected, _ = official(x, is_causal=ours.causal)
        close(Transformer.forward(ours, x), expected, what=f"transformer {stack}, one pass, {name}")


@torch.no_grad()
@pytest.mark.parametrize("name", list(reference.CONFIGS))
def test_step_by_step(pair, name, monkeypatch):
    """Prefill, then single steps; ours in chunks too, against the official single steps."""
    for stack, official, ours in stacks(pair(name))[:2]:
        x = torch.randn(2, 60 + STEPS, official.config.hidden_size)
        monkeypatch.setattr(official, "kv_cache", None)  # other tests find the cache of one sequence that the model was made with
        official.setup_cache(2, 80, "cpu", torch.float32)
        prefill, keys_and_values = official(x[:, :60], is_causal=True)
        official.kv_cache.fill_caches(keys_and_values)
        steps = [official.forward_step(x[:, 60 + i], torch.tensor([official.kv_cache.step()])) for i in range(STEPS)]
        expected = torch.cat((prefill, torch.stack(steps, 1)), 1)
        for chunks in ([60] + [1] * STEPS, [31, 29, 4, 3]):
            cache = KVCache(ours.config, 2, 80)
            found = torch.cat([Transformer.forward(ours, part, cache) for part in x.split(chunks, dim=1)], dim=1)
            close(found, expected, what=f"transformer {stack}, {'steps' if 1 in chunks else 'chunks'}, {name}")


@torch.no_grad()
def test_variants_differ(pair):
    """Each variant computes something of its own on the same input: a switch that does nothing would pass unseen."""
    x = torch.randn(1, 70, 32)
    base = pair("v1").official.base_lm
    weights = base.state_dict()
    for name in ("mup", "no_rope", "short_rope", "long_rope"):
        other = pair(name).official.base_lm
        before = {key: value.clone() for key, value in other.state_dict().items()}
        other.load_state_dict(weights)
        difference = reference.figure(other(x)[0], base(x)[0])
        other.load_state_dict(before)
        assert difference > 1e-3, f"{name} changes the output by {difference:.1e} only"


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1", "mup"])
def test_text_embedding(pair, name):
    """Under muP, and only there, token embeddings are multiplied by scale_emb."""
    official, ours = pair(name).official, pair(name).ours
    tokens = torch.arange(5, 15)[None]
    scale = official.config.lm_config.scale_emb if name == "mup" else 1.0
    close(ours.tslm.embed(tokens), official.base_lm.embed_tokens(tokens) * scale, what=f"text embedding {name}")
