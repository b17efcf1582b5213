"""Prompts: a recording and its words, which the model goes on from (paper §3.1; cloning is continuation).

What can be repaired is repaired and said in a warning; what cannot is refused with the remedy:

    clipped              warning: the voice will carry the distortion
    louder than ±1       scaled down to a peak of 1, with a warning
    longer than trained  warning: nobody taught the model such contexts
    silent, shorter than one patch, not finite, no text, too long for the model's positions     ValueError
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vox import audio
from vox.audio import Speech
from vox.batch import to_patches

SILENT = 1e-4  # a peak below −80 dB is no voice
CLIPPED = 0.001  # share of samples that stay at the peak from which on a recording counts as clipped: a voice touches it once


class Prompt(NamedTuple):
    """What stands before the text to speak and the patches to draw."""

    text: str
    patches: Tensor  # [m, P, D]


def read_prompt(model, wav, text: str | None) -> Prompt | None:
    """A recording (file name, Speech, or waveform [N] at the model's rate) and its words. None if both are None.

    Raises ValueError for one without the other, an empty text, and recordings as `prompt_patches` does.
    """
    if (wav is None) != (text is None):
        missing = "prompt_text, the words spoken in it" if text is None else "prompt_wav, the recording of prompt_text"
        raise ValueError(f"a prompt needs both its recording and its text: add {missing}")
    if wav is None:
        return None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("prompt_text is empty: write down the words of the recording")
    if isinstance(wav, Speech):
        wav = audio.resample(wav.wav, wav.sample_rate, model.config.vae.sample_rate)
    elif not isinstance(wav, Tensor):
        wav = audio.load(wav, model.config.vae.sample_rate)
    return Prompt(text, prompt_patches(model, wav.float()))


@torch.no_grad()
def prompt_patches(model, wav: Tensor) -> Tensor:
    """A prompt waveform [N] at the model's rate → patches [m, P, D]. Zeros fill the first patch, so speech ends the last.

    Raises ValueError for a prompt of another shape, with values that are no numbers, shorter than one patch, or silent.
    """
    if wav.ndim != 1 or not torch.isfinite(wav).all():
        raise ValueError(f"the prompt must be a finite waveform of shape [N], not {list(wav.shape)}: read its file with vox.audio.load")
    patch_samples = model.config.patch_samples
    rate = model.config.vae.sample_rate
    if len(wav) < patch_samples:
        raise ValueError(f"the prompt lasts {len(wav) / rate:.2f} s; it must last at least one patch, {patch_samples / rate:.2f} s")
    peak = wav.abs().max()
    if peak < SILENT:
        raise ValueError("the prompt is silent: record it again, closer to the microphone")
    if peak > 1:
        warnings.warn(f"the prompt reaches ±{peak:.4g}: scaled down to ±1", stacklevel=2)
        wav = wav / peak
    top = wav.abs() >= 0.9999 * wav.abs().max()
    if (top[1:] & top[:-1]).float().mean() > CLIPPED:
        warnings.warn("the prompt is clipped and the voice will carry the distortion: record it again at a lower level", stacklevel=2)
    if len(wav) / rate > model.config.train.max_seconds:
        trained = f"longer than anything the model was trained on ({model.config.train.max_seconds:g} s)"
        warnings.warn(f"the prompt lasts {len(wav) / rate:.1f} s, {trained}: a few seconds are enough", stacklevel=2)
    wav = F.pad(wav, (-len(wav) % patch_samples, 0)).to(model.device)
    latents = model.vae.encode(wav[None, None])[0].mT  # [L, D]
    return to_patches(latents, model.config.patch)
