"""The AudioVAE's causal decoder without gradients: a chunk at a time, no latent decoded twice (paper §3.4).

Notable choices
- causal convolutions need of the past only their last (kernel − 1) · dilation inputs: those are the whole state, zeros at first,
  which is what the padding of the trained modules amounts to;
- frames lie in rows, x [B, L, C]: a 1×1 convolution is then one matrix product, and so is every dense one, with the taps side by side;
- a transposed convolution (kernel 2 · stride) is an ordinary one with two taps and stride · C_out outputs per frame: nothing overlaps;
- weight normalisation is folded once per set of weights, and so is each Snake's α: x + sin²(αx)/α = (u + sin² u)/α with u = αx,
  where the layers around take over the factors.
"""

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

CHUNK = 64  # latents that pass at a time, however many are given: memory stays flat
_FOLDED = weakref.WeakKeyDictionary()  # AudioVAE → (stamp of its weights, layers): kept off the module, so copies and files never see it
register_optimizer_step_post_hook(lambda *_: _FOLDED.clear())  # a fused optimiser changes weights and leaves their version as it was


def snake(u: Tensor) -> Tensor:
    """u + sin² u, in place. u [...]"""
    wave = torch.sin(u)
    return u.addcmul_(wave, wave)


def pack(w: Tensor) -> Tensor:
    """w [N, K] in the blocked order that oneDNN multiplies fastest on the CPU, where there is one; w itself elsewhere."""
    known = w.device.type == "cpu" and w.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if known and len(w) > 1 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._reorder_linear_weight(w, 64)  # 64 rows are expected, and any number is welcome
    return w


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear for a weight from `pack`, x [..., K] → [..., N]"""
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "") if w.is_mkldnn else F.linear(x, w, bias)


def rate(snake) -> Tensor:
    """α [C] of a Snake, kept off 0, where (u + sin² u)/α would be 0/0."""
    alpha = snake.alpha.flatten()
    return torch.where(alpha.abs() < 1e-6, 1e-6, alpha)


class Conv:
    """[Snake →] convolution, x [B, L, C] → [B, L · up, C_out]; `past` [B, frames, C] holds its last inputs and is updated in place."""

    def __init__(self, conv, snake=None, out_scale: Tensor | None = None):
        w, bias = conv.weight(), conv.bias
        self.alpha = None if snake is None else rate(snake)
        if hasattr(conv, "dilation"):  # w [C_out, C/groups, taps]
            self.taps, self.dilation, self.up, self.depthwise = w.shape[2], conv.dilation, 1, conv.groups > 1
            w = w.permute(0, 2, 1)  # [C_out, taps, C/groups]
            channels = w.shape[2] * conv.groups
        else:  # transposed, w [C, C_out, 2 · stride]: frame t gives samples from t · stride on, and the stride samples after those
            self.taps, self.dilation, self.up, self.depthwise = 2, 1, conv.stride, False
            channels = w.shape[0]
            w = w.unflatten(2, (2, conv.stride)).flip(2).permute(3, 1, 2, 0).flatten(0, 1)  # [stride · C_out, taps, C]
            bias = bias.repeat(conv.stride)
        self.bias = bias.clone()
        if out_scale is not None:
            w, self.bias = w * out_scale[:, None, None], self.bias * out_scale
        if self.alpha is not None:
            w = w / (self.alpha[:, None, None] if self.depthwise else self.alpha)
        if self.depthwise:
            self.weight = w.mT[:, :, None].contiguous(memory_format=torch.channels_last)  # [C, 1, 1, taps]
        else:
            self.weight = pack(w.flatten(1).contiguous())  # [C_out, taps · C]
        self.past = ((self.taps - 1) * self.dilation, channels)

    def __call__(self, x: Tensor, past: Tensor) -> Tensor:
        """x [B, L, C], past [B, frames, C] → [B, L · up, C_out]"""
        frames = past.shape[1]
        inputs = x.new_empty(x.shape[0], frames + x.shape[1], x.shape[2])
        inputs[:, :frames] = past
        if self.alpha is None:
            inputs[:, frames:] = x
        else:
            snake(torch.mul(x, self.alpha, out=inputs[:, frames:]))
        past.copy_(inputs[:, x.shape[1] :])
        if self.depthwise:  # with channels last, images of one line go four times as fast as sequences
            image = inputs.mT[:, :, None]  # [B, C, 1, frames + L]
            return F.conv2d(image, self.weight, self.bias, dilation=(1, self.dilation), groups=x.shape[2])[:, :, 0].mT
        taps = [inputs[:, k * self.dilation :][:, : x.shape[1]] for k in range(self.taps)]
        y = linear(torch.cat(taps, 2), self.weight, self.bias)  # [B, L, up · C_out]
        return y.view(y.shape[0], -1, y.shape[2] // self.up)


class Unit:
    """Residual unit, x [B, L, C] → [B, L, C]"""

    def __init__(self, unit):
        first, wide, second, narrow = unit.block
        self.wide = Conv(wide, first, out_scale=rate(second))
        self.weight, self.bias = pack(narrow.weight()[:, :, 0] / rate(second)), narrow.bias.clone()
        self.past = self.wide.past

    def __call__(self, x: Tensor, past: Tensor) -> Tensor:
        """x [B, L, C], changed in place, past [B, frames, C] → x"""
        return x.add_(linear(snake(self.wide(x, past)), self.weight, self.bias))


class Noise:
    """x + ε · Wx, x [B, L, C], one fresh value ε per frame"""

    def __init__(self, block):
        w = block.linear.weight()[:, :, 0]
        self.weight, self.past = pack(w.contiguous()), (0, len(w))

    def __call__(self, x: Tensor, past: Tensor) -> Tensor:
        """x [B, L, C] → [B, L, C]"""
        noise = torch.randn((x.shape[0], 1, x.shape[1]), device=x.device, dtype=x.dtype)
        return x.addcmul_(noise.mT, linear(x, self.weight, None))


@torch.inference_mode(False)
@torch.no_grad()
def fold(vae) -> list:
    """The decoder of an AudioVAE as layers with plain weights. They are kept as long as the weights stay the same."""
    weights = list(vae.decoder.parameters())
    stamp = [(w.data_ptr(), w._version) for w in weights] if not any(w.is_inference() for w in weights) else None
    if stamp is None or _FOLDED.get(vae, (None,))[0] != stamp:
        *layers, last_snake, last, _ = vae.decoder.model
        heads = len(layers) - len(vae.config.decoder_rates)
        folded = [Conv(conv) for conv in layers[:heads]]
        for layer in layers[heads:]:
            first, up, *rest = layer.block
            folded.append(Conv(up, first))
            folded += [Unit(part) if hasattr(part, "block") else Noise(part) for part in rest]
        _FOLDED[vae] = stamp, [*folded, Conv(last, last_snake)]
    return _FOLDED[vae][1]


class DecoderStream:
    """The causal decoder, a chunk at a time: keeps for every convolution the few past inputs that it still needs.

    >>> stream = DecoderStream(vae)
    >>> torch.cat([stream(chunk) for chunk in z.split(2, 2)], 2)      # vae.decode(z), z [1, D, L] → [1, 1, L·hop]

    The weights are those that the VAE had when the stream was made; streams of one VAE share them. A noise block draws from torch's
    generator for each chunk anew (of 64 latents at most), so equal seeds give equal noise for equal chunks only.
    """

    def __init__(self, vae, batch: int = 1):
        """vae: an AudioVAE; batch: the number of sentences that run side by side."""
        self.dim, self.layers = vae.config.latent_dim, fold(vae)
        bias = self.layers[0].bias
        with torch.inference_mode(False):  # the state must outlive the mode in which it was made
            self.pasts = [bias.new_zeros(batch, *layer.past) for layer in self.layers]

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """The next latents z [B, D, L], L ≥ 1 → their speech, wav [B, 1, L·hop] in (−1, 1). Raises ValueError on other shapes."""
        batch = len(self.pasts[0])
        if z.ndim != 3 or z.shape[:2] != (batch, self.dim) or z.shape[2] == 0:
            raise ValueError(f"this stream takes latents of shape [{batch}, {self.dim}, L] with L ≥ 1, not {list(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([self._decode(chunk.mT) for chunk in z.split(CHUNK, 2)], 1).mT

    def _decode(self, x: Tensor) -> Tensor:
        """x [B, L, D] → [B, L·hop, 1]"""
        for layer, past in zip(self.layers, self.pasts, strict=True):
            x = layer(x, past)
        return x.tanh_()

    def keep(self, rows: Tensor):
        """Go on with some sentences only, in the order of rows [B'] (indices, or a mask [B]); the next latents have B' rows."""
        with torch.inference_mode(False):
            self.pasts = [past[rows] for past in self.pasts]
