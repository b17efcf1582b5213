"""LocDiT: the local diffusion transformer that turns a plan into a patch of latents (paper §3.3).

One short sequence per patch, full attention:  [μ + time] [P previous latents] [P noisy latents]
and the velocity is read off the last P positions. Seeing the previous patch makes drawing the next one a kind of
outpainting: the seam between patches is learned, not smoothed afterwards.

Notable choices
- condition and time share one token (their sum);
- the released checkpoint has a second time embedding, for the step length of a mean-velocity variant that was
  never switched on: it is always fed zero, and is kept so that the weights stay compatible.
"""

import math

import torch
from torch import Tensor, nn

from vox.config import TransformerConfig
from vox.transformer import Linear, Transformer


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Times t [N] in [0, 1] → [N, width]: sines and cosines of 1000·t at frequencies 1 … 1e-4."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * -(math.log(10000) / (half - 1)))
    angles = 1000 * t[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TimeMLP(nn.Module):
    """[N, H] → [N, H]"""

    def __init__(self, hidden: int):
        super().__init__()
        self.linear_1 = Linear(hidden, hidden)
        self.act = nn.SiLU()
        self.linear_2 = Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class LocDiT(nn.Module):
    """Args: config of the stack; dim, channels D of a latent."""

    def __init__(self, config: TransformerConfig, dim: int):
        super().__init__()
        self.config = config
        self.in_proj = Linear(dim, config.hidden)
        self.cond_proj = Linear(dim, config.hidden)
        self.out_proj = Linear(config.hidden, dim)
        self.time_mlp = TimeMLP(config.hidden)
        self.delta_time_mlp = TimeMLP(config.hidden)
        self.decoder = Transformer(config, causal=False)

    def time(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Times t [N] → [N, H] of `dtype` (the weights', if None). The sines are taken in float32: 1000·t has no room in 16 bits."""
        dtype = dtype or self.in_proj.weight.dtype
        now, step = (sinusoid(x.float(), self.config.hidden).to(dtype) for x in (t, torch.zeros_like(t)))
        return self.time_mlp(now) + self.delta_time_mlp(step)

    def forward(self, y: Tensor, mu: Tensor, t: Tensor, previous: Tensor | None) -> Tensor:
        """Noisy latents y [N, P, D], condition mu [N, H], previous patch [N, P, D] or None → velocity [N, P, D].

        The times t are [N], or what `time` makes of them, [N, H].
        """
        parts = [(mu + (t if t.ndim == 2 else self.time(t, mu.dtype)))[:, None]]  # [N, 1, H]
        if previous is not None:
            parts.append(self.cond_proj(previous))  # [N, P, H]
        x = torch.cat((*parts, self.in_proj(y)), dim=1)  # [N, 1 + P + P, H]
        return self.out_proj(self.decoder(x, read=slice(-y.shape[1], None)))  # [N, P, D]
