"""LocEnc: a patch of latents becomes one embedding for the LMs (paper §3.1).

Each patch is read on its own: a learned summary token in front of the P latents, full attention among these 1 + P
positions, and the summary's output is the embedding. Patches never see each other here; that is the LMs' work.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vox.config import TransformerConfig
from vox.transformer import Linear, Transformer


class LocEnc(nn.Module):
    """Args: config of the stack; dim, channels D of a latent."""

    def __init__(self, config: TransformerConfig, dim: int):
        super().__init__()
        self.special_token = nn.Parameter(torch.randn(1, 1, 1, config.hidden))
        self.in_proj = Linear(dim, config.hidden)
        self.encoder = Transformer(config, causal=False)

    def forward(self, patches: Tensor) -> Tensor:
        """patches [..., P, D] → embeddings [..., H_enc]"""
        x = rearrange(self.in_proj(patches), "... p h -> (...) p h")  # [N, P, H]
        summary = repeat(self.special_token, "1 1 1 h -> n 1 h", n=len(x)).to(x.dtype)
        out = self.encoder(torch.cat((summary, x), dim=1), read=slice(1))[:, 0]  # [N, H]
        return out.view(*patches.shape[:-2], out.shape[-1])
