"""FSQ, the semi-discrete bottleneck between TSLM and RALM (paper §3.2).

    z = tanh(W_in h),   ẑ = round(s·z) / s,   h_FSQ = W_out ẑ

Notable choices
- a scale of s gives 2s + 1 levels per dimension (−1, …, 0, …, 1): the released model's s = 9 means 19 levels,
  where the paper speaks of 9;
- rounding has no slope, so training lets the gradient pass straight through it: ẑ = z + (round(s·z)/s − z).detach();
- no codebook and no loss of its own: the grid is fixed and the flow-matching loss trains the two projections;
- kind "noise" is the bottleneck of a VAE in its place: the posterior's mean is tanh(W_in h), its deviation fixed to that of a
  rounding error. The mean cannot grow away from the noise, tanh bounds it, so it needs no KL term.
"""

import math

import torch
from torch import Tensor, nn

from vox.config import FSQConfig


def quantise(z: Tensor, scale: int) -> Tensor:
    """Round z ∈ [−1, 1] (any shape) to the nearest of 2·scale + 1 levels; the gradient passes as if nothing had happened."""
    return z + (torch.round(z * scale) / scale - z).detach()


class FSQ(nn.Module):
    """Project to `dim` dimensions, squash, round, project back.

    With kind "none" only the rounding is left out (the paper's s∞); "noise" has Gaussian noise of deviation 1 / (√12·scale), that
    of the rounding's error, in its stead, in training only; with "identity" the input passes unchanged.
    """

    def __init__(self, hidden: int, config: FSQConfig):
        super().__init__()
        self.config = config
        if config.kind != "identity":
            self.in_proj = nn.Linear(hidden, config.dim)
            self.out_proj = nn.Linear(config.dim, hidden)

    def codes(self, h: Tensor) -> Tensor:
        """h [..., H] → ẑ [..., dim] in [−1, 1], and beside it with noise. Outside training the exact grid values, without the detour."""
        z = torch.tanh(self.in_proj(h))
        if self.config.kind == "noise" and self.training:
            return z + torch.randn_like(z) / (math.sqrt(12) * self.config.scale)
        if self.config.kind in ("none", "noise"):
            return z
        return quantise(z, self.config.scale) if self.training else torch.round(z * self.config.scale) / self.config.scale

    def forward(self, h: Tensor) -> Tensor:
        """h [..., H] → h_FSQ [..., H]"""
        return h if self.config.kind == "identity" else self.out_proj(self.codes(h))
