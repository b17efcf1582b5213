"""RALM, the residual acoustic language model: recovers what the bottleneck dropped (paper §3.2).

The same causal stack as TSLM, shallower and without a vocabulary. It reads TSLM's states (text positions as they are,
audio positions after FSQ) plus the LocEnc embedding E_<i of each past patch; its output is added to the plan, so that
the condition of LocDiT is h_final = h_FSQ + h_residual.
"""

import dataclasses

from torch import Tensor

from vox.config import TransformerConfig
from vox.transformer import KVCache, Transformer


class RALM(Transformer):
    """Args: config of the TSLM's stack; layers of this one."""

    def __init__(self, config: TransformerConfig, layers: int):
        super().__init__(dataclasses.replace(config, layers=layers), causal=True)

    def forward(self, plan: Tensor, past: Tensor, cache: KVCache | None = None) -> Tensor:
        """plan: TSLM states [B, T, H]; past: LocEnc embeddings [B, T, H], zero at text → residual states [B, T, H]"""
        return super().forward(plan + past, cache)
