"""The autoregressive loop: patch after patch until the stop head says so (paper §3.1, §3.3).

    prefill  text tokens, 101, prompt patches   → plan and residual of the last position
    loop     μ → LocDiT draws a patch → is it the last? → LocEnc → one step of TSLM, FSQ, RALM

Notable choices
- several sentences go through the loop together, aligned at the right; who has ended leaves the batch, and since
  nobody sees another's positions or noise, a sentence is the same alone;
- the noise of a patch is drawn as [D, P], the released order, so that equal seeds give equal noise;
- the stop flag belongs to the patch just drawn and counts only after `min_patches` (the released rule: i > 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vox import flow
from vox.text import AUDIO_START


@dataclass(eq=False)
class Line:
    """One sentence on its way through the loop."""

    tokens: Tensor  # [n] ids of prompt text and text
    prompt: Tensor | None  # [m, P, D]
    cap: int  # patches at most
    generator: torch.Generator  # of its noise
    patches: list[Tensor] = field(default_factory=list)  # drawn so far, each [P, D]
    stop: list[float] = field(default_factory=list)  # per patch, the probability that it is the last
    ended_by: str | None = None  # "stop", "cap" or, set from outside, "silence"; None while it goes on


def _prefill(model, lines: list[Line]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Text and prompt of each line as embeddings x and past [B, T, H] and flags is_audio [B, T], aligned at the right; pad [B]."""
    xs, pasts, audio = [], [], []
    for line in lines:
        start = torch.cat((line.tokens.cpu(), torch.tensor([AUDIO_START]))).to(model.device)
        x = model.tslm.embed(start[None])[0]  # [n + 1, H]
        past, heard = torch.zeros_like(x), 0
        if line.prompt is not None:
            embedded = model.embed(line.prompt.to(model.device, model.dtype))  # [m, H]
            x, past, heard = torch.cat((x, embedded)), torch.cat((past, embedded)), len(embedded)
        xs.append(x)
        pasts.append(past)
        audio.append(torch.arange(len(x), device=model.device) >= len(x) - heard)
    length = max(map(len, xs))
    pad = torch.tensor([length - len(x) for x in xs], device=model.device)
    x, past = (torch.stack([F.pad(x, (0, 0, length - len(x), 0)) for x in part]) for part in (xs, pasts))  # [B, T, H]
    is_audio = torch.stack([F.pad(row, (length - len(row), 0)) for row in audio])  # [B, T]
    return x, past, is_audio, pad if pad.any() else None


@torch.no_grad()
def draw_patches(
    model,
    lines: list[Line],
    *,
    cfg: float = 2.0,
    steps: int = 10,
    temperature: float = 1.0,
    sway: float = 1.0,
    zero_star: bool = True,
    min_patches: int = 3,
) -> Iterator[list[Line]]:
    """The autoregressive loop, one patch for every line at a time. A line with `ended_by` set leaves the loop.

    Args: model; lines; cfg guidance, steps of LocDiT, temperature of the noise; sway and zero_star as in `flow.sample`;
        min_patches before the stop head is heard.
    Yields: the lines that have just got a patch.
    """
    x, past, is_audio, pad = _prefill(model, lines)
    caches = model.caches(len(lines), x.shape[1] + max(line.cap for line in lines), pad)
    shape = (model.config.vae.latent_dim, model.config.patch)
    silence = torch.zeros(*shape[::-1], device=model.device, dtype=model.dtype)
    previous = torch.stack([silence if line.prompt is None else line.prompt[-1].to(silence) for line in lines])  # [B, P, D]
    plan, residual = model.plan(x, past, is_audio, caches)
    way = flow.route(steps, sway, model.device, model.locdit.time)
    while True:
        plan, residual = plan[:, -1], None if residual is None else residual[:, -1]  # [B, H]
        mu = model.condition(plan, residual)  # [B, H_dit]
        noise = torch.stack([torch.randn(1, *shape, generator=line.generator)[0].mT for line in lines]) * temperature
        patch = flow.sample(model.velocity, mu, previous, noise.to(previous), cfg=cfg, zero_star=zero_star, way=way)  # [B, P, D]
        for line, drawn, stop in zip(lines, patch, model.stop_logits(plan).float().softmax(-1)[:, 1].tolist(), strict=True):
            line.patches.append(drawn)
            line.stop.append(stop)
            if stop > 0.5 and len(line.patches) > min_patches:
                line.ended_by = "stop"
            elif len(line.patches) == line.cap:
                line.ended_by = "cap"
        yield lines
        rows = [row for row, line in enumerate(lines) if line.ended_by is None]
        if not rows:
            return
        if len(rows) < len(lines):
            lines, patch = [lines[row] for row in rows], patch[rows]
            for cache in filter(None, caches):
                cache.keep(torch.tensor(rows, device=model.device))
        past = model.embed(patch)[:, None]  # [B, 1, H]
        plan, residual = model.plan(past, past, torch.ones(len(lines), 1, dtype=torch.bool, device=model.device), caches)
        previous = patch
