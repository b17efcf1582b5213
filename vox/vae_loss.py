"""What the AudioVAE is trained on: mel distance, adversarial and feature terms, KL (paper §3.4, terms of descript-audio-codec).

    L = 15 · MelDistance + 2 · feature_loss + 1 · generator_loss + 5e-5 · kl (+ WaveformDistance)        (weights in `VAETrainConfig`)

Notable choices
- the mel distance is DAC's: seven scales from 2 ms to 128 ms (at 16 kHz), magnitude (not power) mels, only the log term, scales summed;
- short windows have fewer bins than a low mel filter is wide: such filters are empty, stay at the floor on both sides and add nothing;
- the target is never differentiated, so its spectra are made without a graph: forward and backward take about 45 ms, against 80 ms
  with both in one STFT (8 clips of 0.64 s at 16 kHz, one thread);
- two families of discriminators: waveforms folded at prime periods, and complex spectra cut into five bands with their own filters;
- `width` scales every channel of the discriminators (1.0: DAC's sizes, 42 M parameters; 0.125 suits the small presets);
- `kl` is a true KL divergence in nats per latent frame: summed over channels, averaged over batch and time;
- the waveform term is ours, for small budgets: a mel distance is blind to phase, and a small VAE that only hears it takes its pitch
  from its own upsampling (a hum at multiples of the frame rate) whatever the speaker's. One that has to place the lowest harmonics
  where they are keeps the pitch.
"""

import warnings
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchaudio.functional import melscale_fbanks

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))  # (window in samples, mels)
PERIODS = (2, 3, 5, 7, 11)  # primes: no fold repeats what another one shows
WINDOWS = (2048, 1024, 512)  # samples
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # shares of the frequency axis
FLOOR = 1e-5  # mel magnitudes below this count as silence
QUIET = 1e-3  # peaks below this are not amplified any further before a discriminator looks

Features = list[list[Tensor]]  # one list per discriminator: its feature maps, the last one is the score


def _check(wav, window, sample_rate, name):
    """A reflected frame needs more than half a window; say so in the unit the user sets."""
    if wav.ndim != 3 or wav.shape[1] != 1:
        raise ValueError(f"{name} must be [B, 1, N], not {list(wav.shape)}")
    least = window // 2 + 1
    if wav.shape[-1] < least:
        raise ValueError(
            f"{name} has {wav.shape[-1]} samples; the {window}-sample window needs at least {least} "
            f"({least / sample_rate:.3f} s at {sample_rate} Hz): use longer clips (clip_seconds)"
        )


class LogMel(nn.Module):
    """log10 of a slaney mel spectrogram of magnitudes (periodic Hann window, hop = window / 4, centred frames, reflected ends)."""

    def __init__(self, sample_rate: int, window: int, mels: int):
        super().__init__()
        self.window = window
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "mel filterbank has all zero values": expected, see the module docstring
            bank = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.register_buffer("bank", bank.T.contiguous(), persistent=False)  # [mels, bins]

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, N] → [B, frames, mels], at least log10(1e-5) = -5. One multiplication for all frames, hence mels last."""
        spectrum = torch.stft(wav, self.window, self.window // 4, window=self.hann, return_complex=True)  # [B, bins, frames]
        return F.linear(spectrum.abs().mT, self.bank).clamp(min=FLOOR).log10()  # [B, frames, mels]


class MelDistance(nn.Module):
    """Multi-scale log-mel distance: at each of seven scales the mean of |log10 mel(wav) - log10 mel(target)|, summed over the scales.

    In decades per scale: a wav half as loud as its target costs about 0.3 · 7 = 2.1. Holds no parameters and no state.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        self.sample_rate = sample_rate
        self.scales = nn.ModuleList(LogMel(sample_rate, window, mels) for window, mels in MEL_SCALES)

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """wav, target [B, 1, N] in [-1, 1] → 0-d. Gradients flow to wav only; at silence they are finite.

        Raises ValueError if the shapes differ or N is not more than half the largest window (1024 samples).
        """
        _check(wav, MEL_SCALES[-1][0], self.sample_rate, "wav")
        if wav.shape != target.shape:
            raise ValueError(
                f"wav {list(wav.shape)} and target {list(target.shape)} must have the same shape: trim both to the shorter one"
            )
        wav, target = (x.squeeze(1).float() for x in (wav, target.detach()))  # [B, N]
        with torch.autocast(wav.device.type, enabled=False):  # a bfloat16 logarithm would drown the loss in rounding
            return sum(F.l1_loss(scale(wav), scale(target)) for scale in self.scales)


class WaveformDistance(nn.Module):
    """Σ |W - T|² / Σ |T|² of the complex spectra W, T of wav and target below 600 Hz, where the pitch and its first harmonics lie.

    0: the same wave there; 1: no wave at all; 2: the right loudness with phases of its own. Holds no parameters and no state.
    """

    HIGHEST, WINDOW, QUIET = 600, 1024, 0.1  # Hz; samples; energy of a clip below which errors weigh less

    def __init__(self, sample_rate: int):
        super().__init__()
        self.sample_rate, self.bins = sample_rate, int(self.HIGHEST / sample_rate * self.WINDOW)
        self.register_buffer("hann", torch.hann_window(self.WINDOW), persistent=False)

    def _spectrum(self, wav):
        return torch.stft(wav.squeeze(1).float(), self.WINDOW, self.WINDOW // 4, window=self.hann, return_complex=True)[:, : self.bins]

    def forward(self, wav: Tensor, target: Tensor) -> Tensor:
        """wav, target [B, 1, N] in [-1, 1] → 0-d, the mean over clips. Gradients flow to wav only.

        Raises ValueError if N is not more than half the window (512 samples).
        """
        _check(wav, self.WINDOW, self.sample_rate, "wav")
        with torch.autocast(wav.device.type, enabled=False):
            wanted = self._spectrum(target.detach())
            error = (self._spectrum(wav) - wanted).abs().square().sum((1, 2))
            return (error / (wanted.abs().square().sum((1, 2)) + self.QUIET)).mean()


def _conv(channels_in, channels_out, kernel, stride=(1, 1)):
    padding = [size // 2 for size in kernel]
    return weight_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, padding))


def _features(x, convs):
    """x through a stack of convolutions; every activation is a feature map."""
    maps = []
    for conv in convs:
        x = F.leaky_relu(conv(x), 0.1)
        maps.append(x)
    return maps


class PeriodDiscriminator(nn.Module):
    """Folds the waveform at one period and looks along each phase: sees pitch and periodic artefacts (HiFi-GAN)."""

    def __init__(self, period: int, width: float = 1.0):
        super().__init__()
        self.period = period
        channels = [1, *(max(1, round(width * c)) for c in (32, 128, 512, 1024, 1024))]
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(_conv(a, b, (5, 1), (s, 1)) for (a, b), s in zip(pairwise(channels), strides, strict=True))
        self.score = _conv(channels[-1], 1, (3, 1))

    def forward(self, wav: Tensor) -> list[Tensor]:
        """wav [B, 1, N] → feature maps [B, C, frames, period], the last one with C = 1."""
        wav = F.pad(wav, (0, -wav.shape[-1] % self.period), mode="reflect")
        x = rearrange(wav, "b c (n p) -> b c n p", p=self.period)  # [B, 1, N / period, period]
        maps = _features(x, self.convs)
        return [*maps, self.score(maps[-1])]


class SpectrumDiscriminator(nn.Module):
    """Looks at the complex spectrum (real and imaginary part: phase counts) at one resolution, every band with its own filters (DAC)."""

    def __init__(self, window: int, width: float = 1.0):
        super().__init__()
        self.window = window
        bins = window // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in BANDS]
        c = max(1, round(width * 32))
        self.stacks = nn.ModuleList(
            nn.ModuleList([_conv(2, c, (3, 9)), *(_conv(c, c, (3, 9), (1, 2)) for _ in range(3)), _conv(c, c, (3, 3))]) for _ in BANDS
        )
        self.score = _conv(c, 1, (3, 3))
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, wav: Tensor) -> list[Tensor]:
        """wav [B, 1, N] → five feature maps [B, C, frames, bins] per band, then the score over all bands, with C = 1."""
        spectrum = torch.stft(wav.squeeze(1), self.window, self.window // 4, window=self.hann, return_complex=True)
        x = rearrange(torch.view_as_real(spectrum), "b f t c -> b c t f")  # [B, 2, frames, bins]
        maps = [_features(x[..., low:high], stack) for (low, high), stack in zip(self.bands, self.stacks, strict=True)]
        whole = torch.cat([band[-1] for band in maps], -1)  # [B, C, frames, all bands]
        return [*(m for band in maps for m in band), self.score(whole)]


class Discriminators(nn.Module):
    """All eight discriminators: five periods, three spectral resolutions. `width` scales their channels (1.0: DAC's)."""

    def __init__(self, sample_rate: int, width: float = 1.0):
        super().__init__()
        self.sample_rate = sample_rate
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in PERIODS)
        self.spectra = nn.ModuleList(SpectrumDiscriminator(window, width) for window in WINDOWS)

    def forward(self, wav: Tensor) -> Features:
        """wav [B, 1, N] → for each discriminator the list of its feature maps; the last one is its score (1: real, 0: fake).

        Loudness is no clue: every clip is centred and scaled to peak 0.8 first. Real and fake may share one call, stacked along B.
        Raises ValueError if N is not more than half the largest window (1024 samples).
        """
        _check(wav, max(WINDOWS), self.sample_rate, "wav")
        wav = wav.float() - wav.float().mean(-1, keepdim=True)
        wav = 0.8 * wav / wav.abs().amax(-1, keepdim=True).clamp(min=QUIET)
        return [discriminator(wav) for discriminator in (*self.periods, *self.spectra)]


def halves(features: Features) -> tuple[Features, Features]:
    """Feature maps of real and fake speech stacked along the batch → those of each."""
    pairs = [[feature.chunk(2) for feature in maps] for maps in features]
    return [[real for real, _ in maps] for maps in pairs], [[fake for _, fake in maps] for maps in pairs]


def discriminator_loss(real: Features, fake: Features) -> Tensor:
    """Least-squares GAN, the discriminators' side: mean (1 - score)² on real plus mean score² on fake, summed over discriminators → 0-d.

    `fake` must come from a detached waveform, or the gradient also reaches the VAE.
    """
    return sum((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True))


def generator_loss(fake: Features) -> Tensor:
    """Least-squares GAN, the VAE's side: mean (1 - score)² on fake, summed over discriminators → 0-d."""
    return sum((1 - f[-1]).square().mean() for f in fake)


def feature_loss(real: Features, fake: Features) -> Tensor:
    """Mean |real - fake| of every feature map but the score, summed over maps and discriminators → 0-d. `real` is a constant."""
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r[:-1], f[:-1], strict=True)]
    return sum(F.l1_loss(f, r.detach()) for r, f in pairs)


def kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL( N(mu, exp logvar) ‖ N(0, 1) ) in nats per latent frame: summed over channels D, averaged over B and L → 0-d.

    mu, logvar [B, D, L]; logvar is the natural log of the variance. A channel with unit variance and mean m costs m²/2, one with mean 0
    and a small deviation σ about -ln σ - 1/2; so 64 informative channels cost some hundred nats and, at the weight 5e-5 (the paper's; its
    normalisation is not stated), about 0.01 of loss: enough to keep the latents near unit scale, too little to blur them.
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
