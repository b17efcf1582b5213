"""It can learn: the nano VAE and the nano VoxCPM take in eight utterances in a fixed number of steps."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from vox import AudioVAE, VoxCPM, espeak, preset, train
from vox.batch import Item
from vox.generate import Line, draw_patches
from vox.vae_loss import MelDistance

pytestmark = pytest.mark.slow
CONFIG = preset("nano")
TEXTS = {
    "four hundred and twelve": "en-us",
    "ninety nine and a half": "en-us",
    "seven thousand and five": "en-us",
    "half past three": "en-us",
    "二十五点三十分": "cmn",
    "三百一十二": "cmn",
    "the third of may": "en-us",
    "eighteen minutes past two": "en-us",
}


def recordings():
    """Eight utterances [N] in eight voices."""
    voices = espeak.speakers("train")[::37]
    return [espeak.reference(text, language, voice) for (text, language), voice in zip(TEXTS.items(), voices, strict=False)]


def test_the_vae_learns_eight_clips(tmp_path):
    clips = [F.pad(wav, (0, 16000))[:16000] for wav in recordings()]
    wavs = torch.stack(clips)[:, None]  # [8, 1, N], one second each
    torch.manual_seed(0)
    vae, distance = AudioVAE(CONFIG.vae), MelDistance(CONFIG.vae.sample_rate)

    @torch.no_grad()
    def share_of_silence():
        return (distance(vae.decode(vae.encode(wavs)), wavs) / distance(torch.zeros_like(wavs), wavs)).item()

    untrained = share_of_silence()
    report = train.fit(vae, clips, dataclasses.replace(CONFIG.vae_train, steps=120), tmp_path, progress=False)
    trained = share_of_silence()
    print(f"mel distance as a share of silence's: {untrained:.3f} untrained, {trained:.3f} after {report}")
    assert untrained > 0.5 and trained <= 0.5


def test_the_model_learns_eight_utterances(tmp_path):
    """Sampled freely from the text alone, every utterance comes back: correlation at least 0.95, its length within one patch."""
    torch.manual_seed(0)
    model = VoxCPM(CONFIG)
    with torch.no_grad():
        latents = [model.vae.encode(wav[None, None, : len(wav) // 2560 * 2560])[0].mT for wav in recordings()]  # [L, D], whole patches
    frames = torch.cat(latents)
    latents = [(z - frames.mean(0)) / frames.std(0) for z in latents]
    items = [Item(torch.tensor(model.tokenizer.encode(text)), z) for text, z in zip(TEXTS, latents, strict=True)]
    config = dataclasses.replace(CONFIG.train, steps=600, batch=8, decay=200, ema=0.98, join=0.0)
    report = train.fit(model, items, config, tmp_path, progress=False)
    results = []
    for item in items:
        line = Line(item.text, prompt=None, cap=50, generator=torch.Generator().manual_seed(0))
        for _ in draw_patches(model, [line]):
            pass
        spoken = torch.cat(line.patches)  # [L, D]
        both = min(len(spoken), len(item.latents))
        correlation = torch.corrcoef(torch.stack((spoken[:both].flatten(), item.latents[:both].flatten())))[0, 1].item()
        results.append((round(correlation, 4), len(line.patches) - len(item.latents) // CONFIG.patch))
    print(f"(correlation, patches too many): {results} after {report}")
    assert all(correlation >= 0.95 and abs(extra) <= 1 for correlation, extra in results)
