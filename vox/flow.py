"""Conditional flow matching: how LocDiT learns and how a patch is drawn (paper §3.3).

A straight path joins noise (t = 1) and data (t = 0):  y_t = (1 − t)·x + t·z,  with velocity  v = z − x.
LocDiT learns v from y_t; sampling starts at noise and walks the learned velocity back to data.

Notable choices
- t is logit-normal, sigmoid(N(−0.4, 1)): most training effort where direction is decided;
- classifier-free guidance drops only the LM condition μ, patch by patch, never the previous patch;
- the sway grid takes smaller steps near the noise end;
- CFG-Zero*: the unconditional velocity is rescaled to fit the conditional one, and the first step stays put.
`Draw` holds everything random of a training pass, so that it can be fixed, shared between processes, or replayed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vox.config import FlowConfig


class Draw(NamedTuple):
    """The random numbers of one training pass over N patches."""

    t: Tensor  # [N] flow times in (0, 1)
    noise: Tensor  # [N, P, D]
    keep: Tensor  # [N] bool: False where the LM condition is dropped
    own: Tensor | None = None  # [N] bool: True where later patches are shown what the model drew, not the truth

    def to(self, device, dtype=None) -> "Draw":
        """The same draw on another device; noise and times in `dtype`, if given."""
        own = self.own if self.own is None else self.own.to(device)
        return Draw(self.t.to(device, dtype), self.noise.to(device, dtype), self.keep.to(device), own)


def draw(n: int, patch: int, dim: int, config: FlowConfig, generator: torch.Generator | None = None, device=None) -> Draw:
    """Draw times, noise and dropped conditions for n patches of [patch, dim] latents (paper §3.3; p_drop = 0.1)."""
    random = dict(generator=generator, device=device)
    keep = torch.rand(n, **random) > config.cfg_drop
    t = torch.sigmoid(torch.randn(n, **random) * config.t_std + config.t_mean)
    return Draw(t, torch.randn(n, patch, dim, **random), keep)


def path(x: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Data x and noise z, both [N, P, D], at times t [N] → the point y_t and the velocity v there, both [N, P, D]."""
    t = t[:, None, None]  # [N, 1, 1]
    return (1 - t) * x + t * z, z - x


def sway_grid(steps: int, sway: float = 1.0, device=None) -> Tensor:
    """Times from 1 to 0, [steps + 1], float32: t + sway·(cos(πt/2) − 1 + t); sway = 0 is the even grid."""
    t = torch.linspace(1, 0, steps + 1, device=device)
    return t + sway * (torch.cos(torch.pi / 2 * t) - 1 + t)


def cfg_zero_scale(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """CFG-Zero*: s = ⟨v_c, v_u⟩ / |v_u|², the least-squares fit of s·v_u to v_c per patch. [N, P, D] twice → [N, 1, 1]."""
    dot = (conditional * unconditional).sum((1, 2), keepdim=True)
    return dot / (unconditional.square().sum((1, 2), keepdim=True) + 1e-8)


def guide(conditional: Tensor, unconditional: Tensor, cfg: float, zero_star: bool) -> Tensor:
    """s·v_u + cfg·(v_c − s·v_u), all [N, P, D]; cfg = 1 is the conditional velocity."""
    base = unconditional * cfg_zero_scale(conditional, unconditional) if zero_star else unconditional
    return base + cfg * (conditional - base)


class Route(NamedTuple):
    """Where Euler's walk stops on its way from noise to data."""

    times: Tensor  # [steps], or [steps, H] as LocDiT embeds them
    lengths: Tensor  # [steps] how far to go from each


def route(steps: int, sway: float = 1.0, device=None, embed: Callable[[Tensor], Tensor] | None = None) -> Route:
    """The route of `sample`. With embed, times [steps] → [steps, H], what LocDiT makes of the times is computed once for many patches.

    Raises ValueError for fewer than 1 step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    times, lengths = [], []
    t, *targets = sway_grid(steps, sway, device)
    for target in targets:  # t is walked, not looked up: LocDiT sees 1000·t, where the last bit counts
        times.append(t)
        lengths.append(t - target)
        t = t - lengths[-1]
    times = torch.stack(times)
    return Route(times if embed is None else embed(times), torch.stack(lengths))


def sample(
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    mu: Tensor,
    previous: Tensor,
    noise: Tensor,
    steps: int = 10,
    cfg: float = 2.0,
    sway: float = 1.0,
    zero_star: bool = True,
    way: Route | None = None,
) -> Tensor:
    """Euler's walk from noise to a patch of latents.

    Args: velocity(y [N, P, D], mu [N, H], t [N] or [N, H], previous [N, P, D]) → [N, P, D], the trained LocDiT;
        mu [N, H] condition; previous [N, P, D] the patch before; noise [N, P, D], the start; way, instead of steps and sway.
    Returns: [N, P, D]. With zero_star the first step (at least 4 % of the grid) stands still, so 1 step returns the noise.
    Raises ValueError for fewer than 1 step.
    """
    way = way or route(steps, sway, mu.device)
    still = max(1, int((len(way.lengths) + 1) * 0.04)) if zero_star else 0
    guided = not math.isclose(cfg, 1.0)
    if guided:  # conditional and unconditional side by side in one batch
        mu, previous = torch.cat((mu, torch.zeros_like(mu))), torch.cat((previous, previous))
    y = noise
    for t, dt in list(zip(way.times, way.lengths.to(y.dtype), strict=True))[still:]:
        pair = torch.cat((y, y)) if guided else y
        v = velocity(pair, mu, t.expand(len(pair), *t.shape), previous)
        y = y - dt * (guide(*v.chunk(2), cfg, zero_star) if guided else v)
    return y
