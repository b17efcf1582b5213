"""Speaking: patch after patch until the stop head says so (paper §3.1, §3.3).

    prefill  text tokens, 101, prompt patches   → plan and residual of the last position
    loop     μ → LocDiT draws a patch → is it the last? → LocEnc → one step of TSLM, FSQ, RALM

Cloning is continuation: the prompt's text stands before the text to speak and the prompt's patches stand before the
patches to draw, so the model goes on in the voice it believes it has been using.

Notable choices
- the noise of a patch is drawn as [D, P], the released order, so that equal seeds give equal noise;
- the stop flag belongs to the patch just drawn and counts only after `min_patches` (the released rule: i > 2);
- the VAE decoder starts from the last two prompt patches, which are then cut off: no click where the prompt ends.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vox import audio, flow
from vox.audio import Speech
from vox.batch import to_patches
from vox.text import AUDIO_START, join_texts

CONTEXT = 2  # prompt patches the decoder warms up on
PATCHES_PER_TOKEN, SPARE_PATCHES = 6, 10  # a text of n tokens may last 6·n + 10 patches


class Step(NamedTuple):
    """One drawn patch."""

    patch: Tensor  # [P, D]
    stop: float  # probability that it is the last
    last: bool  # the stop head ended speech here


def prompt_patches(model, wav: Tensor) -> Tensor:
    """A prompt waveform [N] at the model's rate → patches [m, P, D]. Zeros fill the first patch, so speech ends the last.

    Raises ValueError for a prompt of another shape, with values that are no numbers, shorter than one patch, or silent.
    """
    if wav.ndim != 1 or not torch.isfinite(wav).all():
        raise ValueError(f"the prompt must be a finite waveform of shape [N], not {list(wav.shape)}: read its file with vox.audio.load")
    patch_samples = model.config.patch * model.config.vae.hop
    rate = model.config.vae.sample_rate
    if len(wav) < patch_samples:
        raise ValueError(f"the prompt lasts {len(wav) / rate:.2f} s; it must last at least one patch, {patch_samples / rate:.2f} s")
    if wav.abs().max() < 1e-4:
        raise ValueError("the prompt is silent: record it again, closer to the microphone")
    wav = F.pad(wav, (-len(wav) % patch_samples, 0)).to(model.device)
    latents = model.vae.encode(wav[None, None])[0].mT  # [L, D]
    return to_patches(latents, model.config.patch)


@torch.no_grad()
def draw_patches(
    model,
    tokens: Tensor,
    prompt: Tensor | None = None,
    *,
    cfg: float = 2.0,
    steps: int = 10,
    temperature: float = 1.0,
    sway: float = 1.0,
    zero_star: bool = True,
    min_patches: int = 3,
    max_patches: int = 2000,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """The autoregressive loop, one patch at a time.

    Args: model; tokens [n] ids of prompt text and text; prompt [m, P, D] patches or None; cfg guidance, steps of LocDiT,
        temperature of the noise; sway and zero_star as in `flow.sample`; min_patches before the stop head is heard,
        max_patches at most; generator of the noise (the global one of the CPU if None).
    Yields: Step(patch [P, D], stop probability, last).
    """
    start = torch.cat((tokens.cpu(), torch.tensor([AUDIO_START]))).to(model.device)[None]  # [1, n + 1]
    x = model.tslm.embed(start)  # [1, n + 1, H]
    past, is_audio = torch.zeros_like(x), torch.zeros(start.shape, dtype=torch.bool, device=model.device)
    previous = torch.zeros(1, model.config.patch, model.config.vae.latent_dim, device=model.device, dtype=model.dtype)
    if prompt is not None:
        prompt = prompt.to(model.device, model.dtype)[None]  # [1, m, P, D]
        embedded = model.embed(prompt)  # [1, m, H]
        x, past = torch.cat((x, embedded), 1), torch.cat((past, embedded), 1)
        is_audio = F.pad(is_audio, (0, prompt.shape[1]), value=True)
        previous = prompt[:, -1]
    caches = model.caches(1, x.shape[1] + max_patches)
    plan, residual = model.plan(x, past, is_audio, caches)
    is_audio = torch.ones(1, 1, dtype=torch.bool, device=model.device)
    for i in range(max_patches):
        plan, residual = plan[:, -1], None if residual is None else residual[:, -1]  # [1, H]
        mu = model.condition(plan, residual)  # [1, H_dit]
        noise = torch.randn(1, *previous.shape[:0:-1], generator=generator).mT.to(model.device, model.dtype) * temperature
        patch = flow.sample(model.velocity, mu, previous, noise, steps, cfg, sway, zero_star)  # [1, P, D]
        stop = model.stop_logits(plan)[0]
        last = i >= min_patches and bool(stop[1] > stop[0])
        yield Step(patch[0], stop.float().softmax(-1)[1].item(), last)
        if last:
            return
        past = model.embed(patch)[:, None]  # [1, 1, H]
        plan, residual = model.plan(past, past, is_audio, caches)
        previous = patch


@torch.no_grad()
def decode_patches(model, patches: Tensor, context: Tensor | None = None) -> Tensor:
    """patches [m, P, D] → wav [m·P·hop]; the decoder first reads `context`, patches whose sound is cut off."""
    before = 0 if context is None else len(context)
    if before:
        patches = torch.cat((context, patches))
    latents = patches.flatten(0, 1).mT[None].float()  # [1, D, L]
    return model.vae.decode(latents)[0, 0, before * model.config.patch * model.config.vae.hop :]


def _tokens(model, text: str) -> Tensor:
    if not isinstance(text, str):
        raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}")
    return torch.tensor(model.tokenizer.encode(text), dtype=torch.long)


def _prompt(model, wav, text) -> Tensor | None:
    if (wav is None) != (text is None):
        missing = "prompt_text, the words spoken in it" if text is None else "prompt_wav, the recording of prompt_text"
        raise ValueError(f"a prompt needs both its recording and its text: add {missing}")
    if wav is None:
        return None
    if not text.strip():
        raise ValueError("prompt_text is empty: write down the words of the recording")
    if isinstance(wav, Speech):
        wav = audio.resample(wav.wav, wav.sample_rate, model.config.vae.sample_rate)
    elif not isinstance(wav, Tensor):
        wav = audio.load(wav, model.config.vae.sample_rate)
    with torch.no_grad():
        return prompt_patches(model, wav.float())


def generate(
    model,
    text: str | list[str],
    prompt_wav=None,
    prompt_text: str | None = None,
    *,
    cfg: float = 2.0,
    steps: int = 10,
    temperature: float = 1.0,
    seed: int | None = None,
    max_seconds: float | None = None,
) -> Speech | list[Speech]:
    """Speak a text, or each text of a list.

    Args: text; prompt_wav, a voice to clone: file, waveform [N] at the model's rate, or Speech; prompt_text, its words;
        cfg guidance (1: none; paper: 2.0); steps of the flow (paper: 10); temperature of the noise; seed, the same
        speech every time on one machine; max_seconds, cut off there (default: 6 patches per token and 10 more).
    Returns: Speech with wav [N], latents [L, D] and stats: patches, ended_by ("stop" or "cap"), stop (probability per
        patch), seconds_lm_dit, seconds_vae, rtf (seconds of work per second of speech); a list of them for a list.
    Raises ValueError for an empty or unreadable text, a prompt without its text (or the reverse), a silent or too short
        prompt, a sequence longer than the model's max_length, steps below 1, max_seconds that is not positive.
    """
    if isinstance(text, list):
        options = dict(cfg=cfg, steps=steps, temperature=temperature, max_seconds=max_seconds)
        seeds = [None if seed is None else seed + k for k in range(len(text))]
        return [generate(model, t, prompt_wav, prompt_text, seed=s, **options) for t, s in zip(text, seeds, strict=True)]
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, not {max_seconds}")
    was_training = model.training
    model.eval()
    try:
        target = _tokens(model, text)
        prompt = _prompt(model, prompt_wav, prompt_text)
        tokens = target if prompt is None else _tokens(model, join_texts(prompt_text, text))
        cap = PATCHES_PER_TOKEN * len(target) + SPARE_PATCHES
        if max_seconds is not None:
            cap = min(cap, math.ceil(max_seconds / model.config.patch_seconds()))
        room = model.config.max_length - len(tokens) - 1 - (0 if prompt is None else len(prompt))
        if room < 1:
            raise ValueError(f"text and prompt fill the model's {model.config.max_length} positions: shorten one of them")
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()

        began = time.perf_counter()
        options = dict(cfg=cfg, steps=steps, temperature=temperature, max_patches=min(cap, room), generator=generator)
        drawn = list(draw_patches(model, tokens, prompt, **options))
        patches = torch.stack([step.patch for step in drawn])  # [m, P, D]
        middle = time.perf_counter()
        wav = decode_patches(model, patches, None if prompt is None else prompt[-CONTEXT:])
        end = time.perf_counter()
    finally:
        model.train(was_training)
    rate = model.config.vae.sample_rate
    stats = dict(
        patches=len(drawn),
        ended_by="stop" if drawn[-1].last else "cap",
        stop=[step.stop for step in drawn],
        seconds_lm_dit=middle - began,
        seconds_vae=end - middle,
        rtf=(end - began) * rate / len(wav),
    )
    return Speech(wav.float().cpu(), rate, text, patches.flatten(0, 1).float().cpu(), stats)
