"""Waveforms: files, sampling rates, levels, mel spectrograms, and `Speech`, the thing `generate` returns.

Notable choices
- a waveform is a float32 tensor [N] in [-1, 1], mono, at a rate in Hz that is passed along with it;
- soundfile reads and writes files (wav, flac, mp3) because it brings its codecs with it; torchaudio does the signal processing;
- files are written to a temporary name and renamed, so a killed program leaves no half file;
- samples are stored in 16 bits as round(32768·x): what is saved and loaded again differs by at most half a step.
"""

import base64
import functools
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from einops import reduce
from PIL import Image

from .files import replacing

OTHER, SOLID = 12, 20  # in a picture: how far apart two colours are others (of 442); pixels that make one worth keeping


def read(path, name: str | None = None) -> tuple[torch.Tensor, int]:
    """A sound file as it is: (samples [channels, N] float32, rate in Hz).

    `path` is a file name, or the bytes of a file that messages call `name`. Raises ValueError that names the file and says what
    to do when it is missing, unreadable, empty, or holds values that are not finite or far outside [-1, 1].
    """
    in_memory = isinstance(path, (bytes, bytearray))
    name = name or ("the sound" if in_memory else str(path))
    if not in_memory and not Path(path).is_file():
        trouble = "is a folder: name a sound file in it" if Path(path).is_dir() else "does not exist: check the path"
        raise ValueError(f"{name} {trouble}")
    try:
        samples, rate = soundfile.read(io.BytesIO(path) if in_memory else str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{name} cannot be read as sound ({error}): convert it to wav, flac or mp3") from error
    samples = torch.from_numpy(samples).T  # [N, channels] -> [channels, N]
    if not samples.numel():
        raise ValueError(f"{name} holds no samples: record it again or leave it out")
    if not samples.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite numbers: export it again")
    if samples.abs().max() > 2:  # a little above 1 is an encoder's overshoot; this is another scale
        raise ValueError(f"{name} holds values up to {samples.abs().max():.4g}: scale its samples to [-1, 1]")
    return samples, rate


def load(path, sample_rate: int = 16000) -> torch.Tensor:
    """Read a sound file as [N] float32 in [-1, 1], mixed down to mono and resampled to `sample_rate` Hz.

    `path` is a file name, or the bytes of a file. Raises ValueError as `read` does.
    """
    samples, rate = read(path)
    mono = reduce(samples, "channels n -> n", "mean")
    return resample(mono, rate, sample_rate).clamp(-1, 1)


def encode(wav: torch.Tensor, sample_rate: int, format: str = "wav") -> bytes:
    """The bytes of a "wav", "flac" (both 16 bits) or "mp3" file that holds `wav` [N]. Values beyond ±1 are clipped.

    Raises ValueError for another shape, an empty or non-finite waveform, an unknown format, or a rate that mp3 lacks.
    """
    wav = wav.detach().float().cpu()
    if wav.dim() != 1 or not len(wav):
        raise ValueError(f"a waveform to store has shape [N] with N > 0, not {list(wav.shape)}: squeeze it, one utterance at a time")
    if not wav.isfinite().all():
        raise ValueError("the waveform holds values that are not finite: nothing was written")
    if format not in ("wav", "flac", "mp3"):
        raise ValueError(f"cannot write {format!r}: use wav, flac or mp3")
    steps = (wav * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
    file = io.BytesIO()
    try:
        soundfile.write(file, steps, sample_rate, format=format.upper(), subtype=None if format == "mp3" else "PCM_16")
    except soundfile.SoundFileError as error:
        raise ValueError(f"cannot write {format} at {sample_rate} Hz ({error}): resample to 16000, 24000, 44100 or 48000 Hz") from error
    return file.getvalue()


def save(path, wav: torch.Tensor, sample_rate: int):
    """Write `wav` [N] as .wav, .flac (16 bits) or .mp3, by the extension of `path`; folders are made as needed.

    The file appears whole or not at all. Raises ValueError as `encode` does.
    """
    path = Path(path)
    data = encode(wav, sample_rate, path.suffix.lstrip(".").lower())
    with replacing(path) as aside:
        aside.write_bytes(data)


@functools.lru_cache(16)
@torch.inference_mode(False)  # made while judging, it must serve a later training step
def _resampler(source, target, device):
    return torchaudio.transforms.Resample(source, target).to(device)  # its filter takes longer to make than to apply


def resample(wav: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """`wav` [..., N] float32 from `source` Hz to `target` Hz: [..., ceil(N · target / source)]. Equal rates return the input itself."""
    if source <= 0 or target <= 0:
        raise ValueError(f"sampling rates are positive, not {source} and {target} Hz")
    return wav if source == target else _resampler(source, target, wav.device)(wav)


def loudness_normalise(wav: torch.Tensor, level: float = -20.0, peak: float = 0.99) -> torch.Tensor:
    """`wav` [N] scaled to a root mean square of `level` dB below full scale, or less where its peak would pass `peak`.

    Trim first: silence counts into the mean. Raises ValueError for a silent waveform.
    """
    loudest = wav.abs().max() if wav.numel() else torch.zeros(())
    if not loudest > 0:
        raise ValueError("the waveform is silent: it has no level to normalise")
    gain = 10 ** (level / 20) / wav.square().mean().sqrt()
    return wav * torch.minimum(gain, peak / loudest)


def trim(wav: torch.Tensor, sample_rate: int = 16000, threshold: float = -40.0, margin: float = 0.03) -> torch.Tensor:
    """`wav` [N] without what lies `threshold` dB below its loudest 10 ms at either end, but for a `margin` in seconds.

    A silent waveform comes back empty.
    """
    first, last = ends(wav, sample_rate, threshold, margin)
    return wav[first:last]


def ends(wav: torch.Tensor, sample_rate: int = 16000, threshold: float = -40.0, margin: float = 0.03) -> tuple[int, int]:
    """Where `trim` cuts `wav` [N]: the first sample that stays and the first that does not. (0, 0) for silence."""
    if not wav.any():
        return 0, 0
    hop = max(1, sample_rate // 100)
    frames = F.pad(wav, (0, -len(wav) % hop)).unfold(0, hop, hop)  # [frames, hop]
    power = reduce(frames.square(), "frames hop -> frames", "mean")
    loud = (power > power.max() * 10 ** (threshold / 10)).nonzero()
    keep = int(margin * sample_rate)
    return max(0, int(loud[0]) * hop - keep), (int(loud[-1]) + 1) * hop + keep


@functools.lru_cache
@torch.inference_mode(False)
def _filters(sample_rate, n_fft, mels):
    return torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm="slaney", mel_scale="slaney"
    )  # [n_fft / 2 + 1, mels]


def mel(wav: torch.Tensor, sample_rate: int = 16000, n_fft: int = 1024, hop: int = 256, mels: int = 80) -> torch.Tensor:
    """Log-mel magnitudes of `wav` [..., N]: [..., mels, frames], natural logarithm, never below log(1e-5).

    frames = 1 + N // hop; frame i is centred on sample i · hop. Slaney's mel scale up to half the sampling rate.
    """
    pad = n_fft // 2
    window = torch.hann_window(n_fft, device=wav.device)
    flat = F.pad(wav.float().reshape(-1, wav.shape[-1]), (pad, pad))  # [..., N] -> [B, N + n_fft]
    spectrum = torch.stft(flat, n_fft, hop, window=window, center=False, return_complex=True).abs()  # [B, bins, frames]
    bands = _filters(sample_rate, n_fft, mels).to(wav.device).T @ spectrum  # [B, mels, frames]
    return bands.clamp(min=1e-5).log().reshape(*wav.shape[:-1], mels, -1)  # [B, mels, frames] -> [..., mels, frames]


def fewer_colours(png: bytes) -> bytes:
    """A PNG picture with a palette of 64 colours: a quarter of the size, and notebooks that hold many stay small.

    Rare colours count for more in the palette than they have pixels, or the ends of a colour map would be lost to its middle; and
    solid ones that it lacks (a few bars or words beside a spectrogram) are kept as they are. The picture carries no version number
    or date, so the same picture is the same file.
    """
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.int32)  # [height, width, 3]
    packed, place, counts = np.unique(pixels @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True)
    colours = np.stack((packed >> 16, packed >> 8 & 255, packed & 255), 1)  # [n, 3]
    sample = Image.fromarray(np.repeat(colours, np.ceil(counts**0.5).astype(int), axis=0)[None].astype(np.uint8))

    def palette(size):  # [size, 3]
        return np.array(sample.quantize(size).getpalette()).reshape(-1, 3)[:size]

    def nearest(palette):  # for each colour: which of the palette, and how far (squared)
        apart = (colours**2).sum(1)[:, None] - 2 * colours @ palette.T + (palette**2).sum(1)  # [n, size]
        return apart.argmin(1), apart.min(1)

    missed = nearest(palette(64))[1]
    kept = [colours[counts.argmax()]]  # the ground
    lacking = (missed > OTHER**2) & (counts >= SOLID)
    for colour in colours[lacking][np.argsort(-counts[lacking], kind="stable")]:
        if len(kept) < 16 and all(np.square(colour - other).sum() > OTHER**2 for other in kept):
            kept.append(colour)
    chosen = np.concatenate((palette(64 - len(kept)), kept))
    few = Image.fromarray(nearest(chosen)[0][place].reshape(pixels.shape[:2]).astype(np.uint8))
    few.putpalette(chosen.flatten().tolist())
    few.save(file, format="png", optimize=True)
    return file.getvalue()


@dataclass(eq=False, repr=False)
class Speech:
    """One utterance. In Jupyter it shows itself as a picture (waveform, spectrogram) and, under it, a player.

    wav [N] float32 on the CPU in [-1, 1] at `sample_rate` Hz; the `text` it says; the `latents` [L, D] it was decoded from,
    if any; `stats`: what the maker wants to report, e.g. real-time factor and why it stopped.
    """

    wav: torch.Tensor
    sample_rate: int
    text: str = ""
    latents: torch.Tensor | None = None
    stats: dict = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.wav) / self.sample_rate

    def save(self, path):
        """Write .wav, .flac or .mp3; see `audio.save`."""
        save(path, self.wav, self.sample_rate)

    def __repr__(self):
        return f"Speech({self.seconds:.2f} s at {self.sample_rate} Hz, {self.text!r})"

    def png(self) -> bytes:
        """Waveform and, below it, log-mel spectrogram as a PNG picture. The text is not drawn: not every machine has a font for it."""
        from matplotlib.figure import Figure  # no pyplot: drawing must not touch the notebook's own figures

        figure = Figure(figsize=(8, 2.8), layout="constrained", facecolor="#fbfbf9")  # reads the same on a light and a dark page
        wave, picture = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
        wave.plot(torch.arange(len(self.wav)) / self.sample_rate, self.wav, linewidth=0.5, color="#0072B2")
        wave.set(ylim=(-1, 1), yticks=())
        wave.axis("off")
        bands = mel(self.wav, self.sample_rate, mels=80)  # [80, frames]
        extent = (0, self.seconds, 0, 80)
        picture.imshow(bands.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-8, vmax=2, extent=extent, interpolation="nearest")
        picture.set(xlabel="seconds", ylabel="mel band")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        return fewer_colours(file.getvalue())

    def player(self) -> str:
        """HTML: the text and an audio player that carries the sound inside itself, as mp3 (a tenth of the size of wav)."""
        sound = base64.b64encode(encode(self.wav, self.sample_rate, "mp3")).decode()
        return f'<div>{html.escape(self.text)}</div><audio controls src="data:audio/mpeg;base64,{sound}"></audio>'

    def _ipython_display_(self):
        # Two outputs, the picture first: where a page drops the player (GitHub does), the picture and the text stay.
        from IPython.display import display

        if not len(self.wav):
            display({"text/plain": repr(self)}, raw=True)
            return
        display({"image/png": base64.b64encode(self.png()).decode(), "text/plain": repr(self)}, raw=True)
        display({"text/html": self.player(), "text/plain": f"player: {self.text}"}, raw=True)
