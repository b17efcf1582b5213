"""The MiniCPM-4 transformer that VoxCPM uses four times (paper §3.1): TSLM, RALM, LocEnc, LocDiT.

Notable choices
- pre-norm residual blocks: RMSNorm → attention, RMSNorm → SwiGLU, no biases;
- grouped-query attention: `heads / kv_heads` queries share one key and one value;
- LongRoPE: rotary positions whose frequencies are divided by a tabled factor per pair of dimensions;
- muP: with `mup` on, each residual branch is multiplied by scale_depth / √layers;
- one forward for training, prefill and single steps: a `KVCache` makes the difference.
Parameter names are those of the released checkpoint below the name of the stack.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vox.config import RopeConfig, TransformerConfig

ONEDNN = torch.backends.mkldnn.is_available()


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: a GPU, or a processor with AVX-512. Others imitate it, several times slower."""
    return device.type != "cpu" or (ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis [..., H]; the mean square is taken in float32."""

    def __init__(self, hidden: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.float().square().mean(-1, keepdim=True)
        return (x * torch.rsqrt(mean_square + self.eps)).to(x.dtype) * self.weight


class Linear(nn.Linear):
    """nn.Linear, by whichever of torch's two CPU libraries is faster for few rows in float32. x [..., in] → [..., out]"""

    def forward(self, x: Tensor) -> Tensor:
        plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        if ONEDNN and plain and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            rows = x.numel() // x.shape[-1]
            if 2 <= rows < 16 or rows >= 64:  # in between oneDNN is several times slower than MKL, else up to twice as fast
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)


class LongRoPE:
    """Rotary position table. Held in float32 outside the module's state, whatever dtype the weights have."""

    def __init__(self, config: RopeConfig, width: int):
        self.theta, self.width, self.table = config.theta, width, None
        factors = config.long_factor if config.max_position > config.original_max_position else config.short_factor
        self.factors = factors or (1.0,) * (width // 2)
        stretch = config.max_position / config.original_max_position
        # The longer the stretch, the flatter the attention: the table's amplitude makes up for it.
        self.amplitude = math.sqrt(1 + math.log(stretch) / math.log(config.original_max_position))

    @torch.inference_mode(False)  # a table made while speaking must serve a later training step
    def _grow(self, positions: int, device: torch.device) -> Tensor:
        inv_freq = 1.0 / self.theta ** (torch.arange(0, self.width, 2, device=device).float() / self.width)
        factors = torch.tensor(self.factors, device=device)
        angles = torch.outer(torch.arange(positions, device=device).float(), 1.0 / factors) * inv_freq
        cos, sin = angles.cos(), angles.sin()  # [positions, width / 2]
        return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))) * self.amplitude

    def __call__(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and ∓sin for positions start … start+length−1, each [length, width] float32; see `rotate`."""
        end = start + length
        if self.table is None or self.table.device != device or self.table.shape[1] < end:
            self.table = self._grow(max(64, 1 << (end - 1).bit_length()), device)
        return self.table[0, start:end], self.table[1, start:end]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+width/2}) by its position's angle.

    Args: x [B, heads, T, width]; cos and sin [T, width] float32, the first half of sin negated: what it multiplies is the pair swapped.
    """
    x32 = x.float()
    return torch.addcmul(x32 * cos, x32.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


class KVCache:
    """Keys and values of all past positions, in memory allocated once.

    Args: config of the stack; batch B; capacity in positions; pad [B] int, how many positions in front of each row are
        empty (None: none). Rows of unequal length are padded in front, so that all of them go on at the same position.
    """

    def __init__(self, config: TransformerConfig, batch: int, capacity: int, device=None, dtype=None, pad: Tensor | None = None):
        shape = (config.layers, batch, config.kv_heads, capacity, config.width)
        self.keys = torch.empty(shape, device=device, dtype=dtype)  # what lies beyond `length` is never read
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length, self.pad = 0, pad

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, kv_heads, T, width] behind the past; return past and new ones [B, kv_heads, length+T, width].

        The stack itself moves `length` on, once all its layers have written. Raises ValueError when the cache is full.
        """
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"the sequence needs {end} positions and the KV cache holds {self.keys.shape[3]}: use a larger max_length")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor):
        """Go on with some rows only: rows [K] indices or [B] bool."""
        for name in ("keys", "values"):
            kept = getattr(self, name)[:, rows, :, : self.length]
            getattr(self, name)[:, : kept.shape[1], :, : self.length] = kept
            setattr(self, name, getattr(self, name)[:, : kept.shape[1]])
        if self.pad is not None:
            self.pad = self.pad[rows]


def visible(past: int, new: int, pad: Tensor | None, device: torch.device) -> Tensor:
    """Which positions a causal stack may see: bool [new, past+new], or [B, 1, new, past+new] with pad [B].

    Padding is seen by itself alone: a row of attention that sees nothing would not be a number.
    """
    causal = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    if pad is None:
        return causal
    key = torch.arange(past + new, device=device)
    itself = key == key[past:, None]
    return causal & ((key >= pad[:, None, None, None]) | itself)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention written out: q [B, heads, R, width], k and v [B, kv_heads, T, width] → [B, heads, R, width]; R = T if causal.

    On a CPU the backward pass of torch's fused kernel takes 3 to 10 times as long at the lengths of speech.
    """
    R, kv_heads, T = q.shape[2], *k.shape[1:3]
    q = rearrange(q, "b (k g) r d -> b k (g r) d", k=kv_heads)
    scores = q * q.shape[-1] ** -0.5 @ k.mT  # [B, kv_heads, g · R, T]
    if causal:
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1).repeat(scores.shape[2] // T, 1)
        scores = scores.masked_fill(future, -torch.inf)
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b k (g r) d -> b (k g) r d", r=R)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: x [B, T, H] → [B, R, H] at the R of T positions that `read` selects.

    mask [R, T_seen], [B, 1, R, T_seen] or None.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.width = config.width
        inner, shared = config.heads * config.width, config.kv_heads * config.width
        self.q_proj = Linear(config.hidden, inner, bias=False)
        self.k_proj = Linear(config.hidden, shared, bias=False)
        self.v_proj = Linear(config.hidden, shared, bias=False)
        self.o_proj = Linear(inner, config.hidden, bias=False)

    def project(self, x: Tensor, read: slice) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, H] → queries [B, R, heads · width], keys and values [B, T, kv_heads · width]"""
        return self.q_proj(x[:, read]), self.k_proj(x), self.v_proj(x)

    def forward(self, x: Tensor, rope, mask: Tensor | None, causal: bool, extend=None, read=slice(None)) -> Tensor:
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", d=self.width) for part in self.project(x, read))
        if rope is not None:
            cos, sin = rope
            q, k = rotate(q, cos[read], sin[read]), rotate(k, cos, sin)
        if extend is not None:
            k, v = extend(k, v)
        if mask is None and q.requires_grad and q.device.type == "cpu":
            y = attend(q, k, v, causal)
        elif causal or (mask is not None and q.shape[2] > 1):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        else:  # all queries see the same keys: heads that share keys are just more queries, which is faster
            folded = (len(q), k.shape[1], q.shape[1] // k.shape[1] * q.shape[2], self.width)
            y = F.scaled_dot_product_attention(q.reshape(folded), k, v, attn_mask=mask).reshape(q.shape)
        return self.o_proj(rearrange(y, "b h t d -> b t (h d)"))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), [B, T, H] → [B, T, H]"""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and SwiGLU, each on a normalised copy of x, each added back (scaled under muP): x [B, T, H] → [B, R, H] (see Attention)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.scale = config.scale_depth / math.sqrt(config.layers) if config.mup else 1.0

    def forward(self, x: Tensor, rope, mask: Tensor | None, causal: bool, extend=None, read=slice(None)) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rope, mask, causal, extend, read)
        x = torch.add(x[:, read], attended, alpha=self.scale)
        return torch.add(x, self.mlp(self.post_attention_layernorm(x)), alpha=self.scale)


class Transformer(nn.Module):
    """A stack of blocks and a last norm, over embeddings.

    Args: config; causal: position t sees positions ≤ t (LMs) or all (LocEnc, LocDiT).
    """

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        self.config, self.causal = config, causal
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.rope = LongRoPE(config.rope, config.width) if config.rope else None

    def forward(self, x: Tensor, cache: KVCache | None = None, read: slice = slice(None)) -> Tensor:
        """x [B, T, H] → [B, R, H] at the R positions of `read`. With a cache, x continues what the cache holds, and is added to it.

        The last block computes nothing but what is read. Only a stack that is not causal may read less than all.
        Raises ValueError when the cache is full.
        """
        past, new = (cache.length if cache else 0), x.shape[1]
        rope = self.rope(past, new, x.device) if self.rope else None
        pad = cache.pad if cache else None
        causal, mask = self.causal and new > 1, None
        if pad is not None or (causal and past):  # the built-in causal mask assumes an empty past and full rows
            causal, mask = False, visible(past, new, pad, x.device)
        for index, layer in enumerate(self.layers):
            extend = None if cache is None else lambda k, v, index=index: cache.extend(index, k, v)
            x = layer(x, rope, mask, causal, extend, read if index == len(self.layers) - 1 else slice(None))
        if cache is not None:
            cache.length += new
        return self.norm(x)
