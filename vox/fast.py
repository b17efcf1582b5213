"""Faster speech on the CPU: the weights of a loaded model, laid out for the processor or rounded to 8 bits.

One patch reads nearly every weight once (LocDiT's, once per step of the flow), for a handful of rows: speech is as fast
as memory delivers weights. So either they come in the order in which the processor wants them, or there are fewer bytes.

Notable choices
- both functions change the model in place, for speaking only: it can be neither trained nor saved afterwards;
- 8 bits: one scale per output channel for the weights, fixed, and one per call for the activations, which are rounded on the
  fly (dynamic quantisation). Of torch's three routes this is the fastest and needs nothing but torch: the weight-only
  `_weight_int8pack_mm` took 3 (1 row) to 6 times (80 rows) as long, and the oneDNN operators would not run here;
- what is small or delicate stays in float32: D-channel projections, time embeddings, FSQ, stop head, norms;
- the scale of activations is shared by all rows of a call: in 8 bits a sentence depends a little on its batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.transformer import Attention, SwiGLU, has_bf16


class SpeakingLinear(nn.Module):
    """A linear layer whose weight is held in a processor's format: x [..., in] → [..., out]. It has no parameters."""

    def train(self, mode: bool = True) -> nn.Module:
        """Raises ValueError when asked to train."""
        if mode:
            raise ValueError("the weights of this model were packed for speaking and cannot be trained: load the model again")
        return super().train(mode)

    def _save_to_state_dict(self, *args):
        raise ValueError("the weights of this model were packed for speaking and cannot be saved: save it before, or load it again")

    def _apply(self, fn, recurse=True):
        probe = torch.empty(0, dtype=self.dtype)
        moved = fn(probe)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            raise ValueError("the weights of this model were packed for this CPU and cannot be moved or converted: load the model again")
        return self


class PackedLinear(SpeakingLinear):
    """The same weight [out, in] in oneDNN's blocks, as float32 or bfloat16; bias [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.dtype, self.bias = weight.dtype, bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 64)  # blocks for 64 rows are good for any number of them

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]"""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear(SpeakingLinear):
    """The weight [out, in] rounded to 255 levels per output channel, bias [out] or None; activations are rounded as they come."""

    dtype = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight, bias = weight.float(), None if bias is None else bias.float()
        scale = weight.abs().amax(1).clamp(min=1e-8).double() / 127  # [out]
        rounded = torch.quantize_per_channel(weight, scale, torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self.seven_bits = torch.backends.quantized.engine in ("fbgemm", "x86") and not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], float32. Without VNNI, sums of 8-bit products could overflow: activations get 7 bits there."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.seven_bits)


def _layer(kind, *linears: nn.Linear) -> SpeakingLinear:
    """One layer of `kind` that does what linears with equal inputs and no biases do, side by side; or what a single one does."""
    bias = linears[0].bias
    return kind(torch.cat([linear.weight.detach() for linear in linears]), None if bias is None else bias.detach())


class FusedAttention(Attention):
    """Attention that reads its queries, keys and values off one product."""

    def __init__(self, attention: Attention, kind):
        nn.Module.__init__(self)
        self.width, self.shared = attention.width, attention.k_proj.out_features
        self.qkv_proj = _layer(kind, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = _layer(kind, attention.o_proj)

    def project(self, x: Tensor, read: slice) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, H] → queries [B, R, heads · width], keys and values [B, T, kv_heads · width]"""
        qkv = self.qkv_proj(x)
        q, k, v = qkv.tensor_split((qkv.shape[-1] - 2 * self.shared, qkv.shape[-1] - self.shared), dim=-1)
        return q[:, read], k, v


class FusedSwiGLU(nn.Module):
    """SwiGLU that reads its gate and what passes it off one product."""

    def __init__(self, mlp: SwiGLU, kind):
        super().__init__()
        self.gate_up_proj, self.down_proj = _layer(kind, mlp.gate_proj, mlp.up_proj), _layer(kind, mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] → [B, T, H]"""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def _replace(model, kind):
    if model.device.type != "cpu":
        raise ValueError(f"only a model on the CPU can be packed, and this one is on {model.device}: load it with device='cpu'")
    if any(isinstance(module, SpeakingLinear) for module in model.modules()):
        raise ValueError("the weights of this model are packed already: load it again to pack them in another way")
    model.eval().requires_grad_(False)
    for stack in (model.tslm, model.ralm, model.locenc.encoder, model.locdit.decoder):
        for block in stack.layers if stack is not None else ():
            block.self_attn, block.mlp = FusedAttention(block.self_attn, kind), FusedSwiGLU(block.mlp, kind)
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and name != "stop_head":
            setattr(model, name, _layer(kind, child))
    return model


def pack_(model):
    """Lay the weights of a VoxCPM out for this CPU, in their own number format: the same speech, up to the order of sums.

    Returns the model. Raises ValueError for a model on another device or packed already, or a torch or, in bfloat16, a
    processor that cannot.
    """
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this torch was built without oneDNN and cannot pack weights: use a build from pytorch.org")
    if model.dtype == torch.bfloat16 and not has_bf16(model.device):
        raise ValueError("this processor has no bfloat16 to pack weights for: speak in float32")
    return _replace(model, PackedLinear)


def quantise_(model):
    """Round the weights of a VoxCPM to 8 bits, the rest to float32: a quarter of the memory to read, slightly other speech.

    Returns the model. Raises ValueError for a model on another device or packed already, or a torch without 8-bit kernels.
    """
    if torch.backends.quantized.engine == "none":
        raise ValueError("this torch has no 8-bit kernels for this processor: speak in bfloat16")
    return _replace(model, Int8Linear).float()
