"""The causal AudioVAE: 16 kHz speech ↔ 25 Hz continuous latents (paper §3.4).

    encoder: conv 7 → [3 residual units → strided conv] × 4 → two heads, μ and log σ²
    decoder: conv 7 → [transposed conv → 3 residual units] × 4 → conv 7 → tanh

Notable choices
- causal throughout: every convolution pads on the left only, so sample n never depends on later samples;
- residual units look 3, 9 and 27 frames to each tap (dilation 1, 3, 9), with Snake activations x + sin²(αx)/α
  that give the network periods to build voices from;
- weight normalisation keeps direction and length of each filter apart: w = g · v / |v|;
- `encode` returns μ: noise is for training only.
Parameter names are those of the released `audiovae` checkpoint.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox.config import VAEConfig
from vox.vae_stream import DecoderStream


class NormedConv(nn.Module):
    """A weight-normalised filter bank: v [A, B, K], g [A, 1, 1], w = g · v / |v| with the norm over (B, K)."""

    def __init__(self, shape: tuple[int, int, int], out_channels: int, fan_in: int, bias: bool = True, gain: float = 1.0):
        super().__init__()
        v = torch.randn(shape) * (gain / math.sqrt(fan_in))  # keeps the size of the signal: deep stacks learn from step 1
        self.weight_g = nn.Parameter(v.flatten(1).norm(dim=1).view(-1, 1, 1))
        self.weight_v = nn.Parameter(v)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def weight(self) -> Tensor:
        """w [A, B, K]"""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    @torch.no_grad()
    def scale_(self, factor: Tensor, dim: int):
        """Multiply the weight in place along dim 0 or 1 by factor [A] or [B], exactly up to rounding."""
        w = self.weight() * factor.view(-1, *[1] * (2 - dim))
        self.weight_g.copy_(w.flatten(1).norm(dim=1).view(-1, 1, 1))
        self.weight_v.copy_(w)


class DepthwiseConv(torch.autograd.Function):
    """y[n] = bias + Σₖ w[k] · x[n - (K - 1 - k) · dilation], one filter per channel. x [B, C, L], weight [C, K], bias [C, 1].

    On a CPU seven shifted sums in place, without padding, take about a tenth of the library's convolution and its backward.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, dilation):
        ctx.save_for_backward(x, weight)
        ctx.shifts = [dilation * k for k in reversed(range(weight.shape[1]))]  # how far each tap looks back
        y = torch.addcmul(bias, x, weight[:, -1:])
        for k, shift in enumerate(ctx.shifts[:-1]):
            y[..., shift:].addcmul_(x[..., : max(0, x.shape[2] - shift)], weight[:, k : k + 1])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """grad [B, C, L] → those of x, weight and bias."""
        x, weight = ctx.saved_tensors
        dx, product, dweight = grad * weight[:, -1:], torch.empty_like(x), []
        for k, shift in enumerate(ctx.shifts):
            kept = max(0, x.shape[2] - shift)
            late = grad[..., shift:]
            dweight.append(torch.mul(x[..., :kept], late, out=product[..., :kept]).sum((0, 2)))
            if shift:
                dx[..., :kept].addcmul_(late, weight[:, k : k + 1])
        return dx, torch.stack(dweight, 1), grad.sum((0, 2))[:, None], None


class CausalConv(NormedConv):
    """Convolution [B, C_in, L] → [B, C_out, L/stride] that pads 2·⌈stride/2⌉ (strided) or the whole past on the left."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1, bias=True, gain=1.0):
        super().__init__((c_out, c_in // groups, kernel), c_out, c_in // groups * kernel, bias, gain)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.pad = (kernel - 1) * dilation if stride == 1 else 2 * math.ceil(stride / 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight()
        if weight.shape[2] == 1 and self.groups == 1:
            matrix = weight[..., 0].expand(len(x), -1, -1)  # a batched product: `@` would fold the batch and turn the layout over
            return torch.bmm(matrix, x) if self.bias is None else torch.baddbmm(self.bias[:, None], matrix, x)
        if x.device.type == "cpu" and self.groups == x.shape[1] == weight.shape[0]:
            return DepthwiseConv.apply(x, weight[:, 0], self.bias[:, None], self.dilation)
        return F.conv1d(F.pad(x, (self.pad, 0)), weight, self.bias, self.stride, 0, self.dilation, self.groups)


class CausalTransposedConv(NormedConv):
    """Upsampling [B, C_in, L] → [B, C_out, L·stride]; the tail that would need the next frame is cut."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__((c_in, c_out, 2 * stride), c_out, 2 * c_in)  # each output sample sees two frames
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, self.stride)[..., : -self.stride]


class SineSquared(torch.autograd.Function):
    """x + sin²(αx)/α in few passes over memory, with the sine of the slope made anew in backward. x [B, C, L], alpha [1, C, 1]."""

    @staticmethod
    def forward(ctx, x, alpha):
        y = (x * alpha).sin_().square_().div_(alpha + 1e-9).add_(x)
        ctx.save_for_backward(x, alpha, y)  # y costs nothing: the convolution that reads it keeps it too
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """grad [B, C, L] → those of x and alpha."""
        x, alpha, y = ctx.saved_tensors
        slope = (x * (2 * alpha)).sin_()  # dy/dx - 1
        dalpha = slope.mul(x).add_(x).sub_(y).mul_(grad).sum((0, 2), keepdim=True) / (alpha + 1e-9)
        return slope.mul_(grad).add_(grad), dalpha


class Snake(nn.Module):
    """x + sin²(αx)/α, α learned per channel. x [B, C, L]."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return SineSquared.apply(x, self.alpha)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), x [B, C, L]; the wide convolution dilated and, if groups > 1, depthwise."""

    def __init__(self, channels: int, dilation: int, groups: int):
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            CausalConv(channels, channels, 7, dilation=dilation, groups=groups),
            Snake(channels),
            CausalConv(channels, channels, 1, gain=0.3),  # a quiet branch at first: twelve loud ones would add up
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def residual_units(channels: int, depthwise: bool) -> list[nn.Module]:
    """Three residual units [B, C, L] → [B, C, L] that look 1, 3 and 9 frames apart."""
    return [ResidualUnit(channels, dilation, channels if depthwise else 1) for dilation in (1, 3, 9)]


class EncoderBlock(nn.Module):
    """[B, C, L] → [B, 2C, L/stride]"""

    def __init__(self, channels: int, stride: int, depthwise: bool):
        super().__init__()
        down = CausalConv(channels, 2 * channels, 2 * stride, stride)
        self.block = nn.Sequential(*residual_units(channels, depthwise), Snake(channels), down)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Encoder(nn.Module):
    """wav [B, 1, N] → μ and log σ², each [B, D, N/hop]"""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.encoder_dim
        layers = [CausalConv(1, channels, 7)]
        for stride in config.encoder_rates:
            layers.append(EncoderBlock(channels, stride, config.depthwise))
            channels *= 2
        self.block = nn.Sequential(*layers)
        self.fc_mu = CausalConv(channels, config.latent_dim, 3)
        self.fc_logvar = CausalConv(channels, config.latent_dim, 3)
        nn.init.constant_(self.fc_logvar.bias, -6.0)  # begin with σ = 0.05: at σ = 1 the noise drowns a young encoder's μ

    def forward(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        h = self.block(wav)
        return self.fc_mu(h), self.fc_logvar(h)


class NoiseBlock(nn.Module):
    """x + ε · Wx, x [B, C, L], one noise value per frame: breath and frication need not be stored in the latent."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = CausalConv(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn((x.shape[0], 1, x.shape[2]), device=x.device, dtype=x.dtype)
        return x + noise * self.linear(x)


class DecoderBlock(nn.Module):
    """[B, C, L] → [B, C/2, L·stride]"""

    def __init__(self, channels: int, stride: int, depthwise: bool, noise: bool):
        super().__init__()
        out = channels // 2
        layers = [Snake(channels), CausalTransposedConv(channels, out, stride)]
        layers += [NoiseBlock(out)] if noise else []
        self.block = nn.Sequential(*layers, *residual_units(out, depthwise))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Decoder(nn.Module):
    """latents [B, D, L] → wav [B, 1, L·hop] in (−1, 1)"""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dim, channels = config.latent_dim, config.decoder_dim
        if config.depthwise:
            layers = [CausalConv(dim, dim, 7, groups=dim), CausalConv(dim, channels, 1)]
        else:
            layers = [CausalConv(dim, channels, 7)]
        for stride in config.decoder_rates:
            layers.append(DecoderBlock(channels, stride, config.depthwise, config.use_noise_block))
            channels //= 2
        self.model = nn.Sequential(*layers, Snake(channels), CausalConv(channels, 1, 7), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z)


class AudioVAE(nn.Module):
    """Speech to latents and back.

    >>> vae = AudioVAE(vox.preset("nano").vae)
    >>> z = vae.encode(wav)      # [B, 1, N] → [B, D, L], L = ⌈N / hop⌉
    >>> wav = vae.decode(z)      # [B, D, L] → [B, 1, L·hop]
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode_stats(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """wav [B, 1, N] in [−1, 1] at config.sample_rate → μ and log σ², each [B, D, L], L = ⌈N / hop⌉ (zeros fill the end).

        Raises ValueError if wav is not [B, 1, N] with N > 0.
        """
        if wav.ndim != 3 or wav.shape[1] != 1 or wav.shape[2] == 0:
            raise ValueError(f"encode takes a waveform of shape [B, 1, N] with N > 0, not {list(wav.shape)}: add the missing axes")
        return self.encoder(F.pad(wav, (0, -wav.shape[2] % self.config.hop)))

    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, 1, N] in [−1, 1] at config.sample_rate → latents μ [B, D, L], L = ⌈N / hop⌉. Raises ValueError on other shapes."""
        return self.encode_stats(wav)[0]

    def reach(self) -> int:
        """How many samples before its own `hop` a latent depends on: what every convolution of the encoder pads, at its rate."""
        convs = [module for module in self.encoder.modules() if isinstance(module, CausalConv)]
        rate, samples = 1, -convs[-1].pad * self.config.hop  # the two heads stand side by side
        for conv in convs:
            samples += conv.pad * rate
            rate *= conv.stride
        return samples

    def decode(self, z: Tensor) -> Tensor:
        """latents [B, D, L], L > 0 → wav [B, 1, L·hop] in (−1, 1). Raises ValueError on other shapes.

        Without gradients this is a `DecoderStream` that is given everything at once: faster, and memory does not grow with L.
        """
        if z.ndim != 3 or z.shape[1] != self.config.latent_dim or z.shape[2] == 0:
            raise ValueError(f"decode takes latents of shape [B, {self.config.latent_dim}, L] with L > 0, not {list(z.shape)}")
        return self.decoder(z) if torch.is_grad_enabled() else DecoderStream(self, len(z))(z)

    @torch.no_grad()
    def rescale_(self, scale: Tensor):
        """Divide the latents by scale [D] from now on, and multiply them back in the decoder: the speech stays the same.

        The factor goes into the last encoder and the first decoder convolution, so the checkpoint keeps its layout.
        """
        self.encoder.fc_mu.scale_(1 / scale, 0)
        self.encoder.fc_mu.bias.div_(scale)
        self.encoder.fc_logvar.bias.sub_(2 * scale.log())  # σ shrinks with μ
        first = self.decoder.model[0]
        first.scale_(scale, 0 if first.groups > 1 else 1)
        return self

    @torch.no_grad()
    def keep(self, channels: Tensor, means: Tensor) -> "AudioVAE":
        """This VAE with some latent channels only, [D] bool; means [D] of all of them stand for those that are left out.

        A KL term with some weight silences the channels it can do without: their μ hardly moves and their σ is that of noise.
        """
        vae = AudioVAE(replace(self.config, latent_dim=int(channels.sum())))
        first, second = self.decoder.model[:2]
        left_out = torch.where(channels, 0, means)
        if first.groups > 1:  # the channels meet in the second convolution
            constant = torch.where(channels, 0, first.bias) + left_out * first.weight().sum((1, 2))
            mixer, name = second, "decoder.model.1"
        else:
            constant, mixer, name = left_out, first, "decoder.model.0"
        mix = mixer.weight()  # [C, D, K]
        values = self.state_dict()
        values[f"{name}.bias"] = mixer.bias + mix.sum(2) @ constant
        values[f"{name}.weight_v"] = mix[:, channels]
        values[f"{name}.weight_g"] = mix[:, channels].flatten(1).norm(dim=1).view(-1, 1, 1)
        for row in ("encoder.fc_mu", "encoder.fc_logvar", *(["decoder.model.0"] if first.groups > 1 else [])):
            for part in ("bias", "weight_g", "weight_v"):
                values[f"{row}.{part}"] = values[f"{row}.{part}"][channels]
        vae.load_state_dict(values)
        return vae.to(mix.device).train(self.training)

    @torch.no_grad()
    def widen(self, latent_dim: int) -> "AudioVAE":
        """This VAE with more latent channels: the new ones are drawn at random in the encoder, and the decoder does not listen yet.

        So the speech is the same, and training finds a use for them. Raises ValueError if latent_dim is smaller than it was.
        """
        have = self.config.latent_dim
        if latent_dim < have:
            raise ValueError(f"this AudioVAE has {have} latent channels, more than {latent_dim}: keep() takes channels away")
        vae = AudioVAE(replace(self.config, latent_dim=latent_dim))
        old, values = self.state_dict(), vae.state_dict()
        first = self.decoder.model[0]
        mixer = "decoder.model.1" if first.groups > 1 else "decoder.model.0"
        for name, value in values.items():
            if value.shape == old[name].shape:
                values[name] = old[name]
            elif name == f"{mixer}.weight_v":  # [C, D, K]
                values[name] = F.pad(old[name], (0, 0, 0, latent_dim - have))
            else:  # [D, ...]
                value[:have] = old[name]
        vae.load_state_dict(values)
        return vae.to(first.weight_v.device).train(self.training)
