"""The packed batch against the official packer, from waveforms on."""

import pytest
import torch
from reference import AudioFeatureProcessingPacker, close, same

from vox.batch import Item, pack


def official_batch(pair, texts, wavs):
    """What the official packer makes of token ids and waveforms."""
    vae, tree = pair.official.audio_vae, pair.tree
    packer = AudioFeatureProcessingPacker(1, tree["max_length"], tree["patch_size"], tree["feat_dim"], vae)
    pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)  # noqa: E731
    ones = torch.ones(len(texts), dtype=torch.int32)
    return packer(pad(wavs, -100.0), pad([text.int() for text in texts], -100), ones, 0 * ones, [False] * len(texts))


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1", "v1.5"])
def test_packed_batch(pair, name):
    both = pair(name)
    ours, hop = both.ours, both.official.chunk_size
    samples = hop * both.tree["patch_size"]
    texts = [torch.randint(105, 400, (n,)) for n in (3, 7, 1)]
    wavs = [torch.rand(n) * 2 - 1 for n in (2 * samples, 3 * samples + 17, samples // 2)]
    expected = official_batch(both, texts, wavs)
    # the official packer fills the last patch with silence before encoding: so does this list
    padded = [torch.nn.functional.pad(wav, (0, -len(wav) % samples)) for wav in wavs]
    items = [Item(text, ours.vae.encode(wav[None, None])[0].mT) for text, wav in zip(texts, padded, strict=True)]
    batch = pack(items, both.tree["patch_size"], both.tree["max_length"])

    same(batch.text, expected["text_tokens"], "tokens")
    same(batch.text_mask.int(), expected["text_mask"], "text mask")
    same(batch.audio_mask.int(), expected["audio_mask"], "audio mask")
    same(batch.loss_mask.int(), expected["loss_mask"], "loss mask")
    same(batch.stop, expected["labels"], "stop labels")
    close(batch.latents, expected["audio_feats"], what=f"packed latents {name}")
    assert batch.patches == int(expected["loss_mask"].sum()) == 2 + 4 + 1
    for row, text, patches in zip(batch.text, texts, (2, 4, 1), strict=True):
        assert row[len(text)] == 101 and row[len(text) + patches + 1] == 102, "start and end token"
    assert (batch.stop.sum(1) == 1).all(), "one last patch per sequence"
