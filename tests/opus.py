"""Opus through libsndfile, as a yardstick for what an AudioVAE loses: what comes out, and how many bits went in between."""

import io

import soundfile
import torch
import torch.nn.functional as F

SAMPLE_RATE = 16000
LAG = 800  # samples, 50 ms: the coder's delay is looked for up to this
LOWEST, SPAN = 6.0, 250.0  # kbit/s: libsndfile asks the encoder for LOWEST + (1 − compression_level) · SPAN


def payload(data: bytes) -> int:
    """Bytes of sound in an Ogg Opus file: its pages' segments, without page headers and the two header packets, a page each."""
    at, pages = 0, []
    while at < len(data):
        segments = data[at + 27 : at + 27 + data[at + 26]]
        pages.append(sum(segments))
        at += 27 + len(segments) + sum(segments)
    return sum(pages[2:])


def in_step(wav: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """wav [M] moved by whole samples, up to 50 ms, to where it fits the reference [N] best, and cut or filled with zeros to [N]."""
    size = 2 * max(len(wav), len(reference))
    product = torch.fft.irfft(torch.fft.rfft(wav, size) * torch.fft.rfft(reference, size).conj(), size)
    lag = int(torch.cat((product[-LAG:], product[: LAG + 1])).argmax()) - LAG  # positive: wav is late
    wav = wav[lag:] if lag > 0 else F.pad(wav, (-lag, 0))
    return F.pad(wav, (0, max(0, len(reference) - len(wav))))[: len(reference)]


def opus(wav: torch.Tensor, kbit: float) -> tuple[torch.Tensor, float]:
    """wav [N] at 16 kHz through Opus at about `kbit` kbit/s → the decoded wav [N] in step with it, and the kbit/s it really took."""
    file = io.BytesIO()
    level = 1 - (kbit - LOWEST) / SPAN
    soundfile.write(file, wav.numpy(), SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    bits = 8 * payload(file.getvalue())
    file.seek(0)
    decoded = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    return in_step(decoded, wav), bits / len(wav) * SAMPLE_RATE / 1000
