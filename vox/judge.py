"""Judges: a recogniser that writes down what it hears, and a speaker encoder that tells voices apart.

They have heard true recordings only, of other texts than every evaluation, and of none of the unseen voices (`vox.judge_train`).
Their own errors on true recordings ship with them: a figure they give means nothing without those.

Notable choices
- the recogniser is two convolutions and two bidirectional GRUs under CTC. Its symbols are the English words and Mandarin
  characters of its corpus, the units errors are counted in: spelling letter by letter took most of its errors, "for" for "four".
  One network hears both languages and is not told which;
- it gives 25 frames a second: fast Mandarin has 8 characters a second, and CTC needs a frame for each and one between equal ones;
- the speaker encoder is a stack of dilated convolutions, whose mean and deviation over time become one unit vector (x-vector).
  A voice is a full speaker, variant and settings: a clone with the right timbre at a wrong pitch is another voice;
- both bring a recording to one level first, so loudness tells nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vox import audio, state
from vox.config import from_dict
from vox.files import HOME, read_json
from vox.text import is_chinese

SAMPLE_RATE = 16000
HOP, MELS = 160, 80  # 100 frames a second
LEVEL = 0.1  # root mean square of what the networks hear
SHORTEST = 0.1  # seconds: less is not listened to
SILENT = 1e-4  # a peak below −80 dB is nothing to hear
AROUND = 0.1  # seconds of silence before and after what is transcribed: training hears some too, and sound that ends abruptly is cut
BATCH = 32  # recordings transcribed at once


def features(wav: Tensor, n_fft: int) -> Tensor:
    """wav [N] at 16 kHz → what a judge hears [80, 1 + N // 160]: log mel bands at one level, about zero mean and unit deviation."""
    wav = wav * (LEVEL / wav.square().mean().sqrt().clamp(min=SILENT))
    return (audio.mel(wav, SAMPLE_RATE, n_fft, HOP, MELS) + 5) / 3


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Features [80, T] of several recordings → [B, 80, longest T], zeros after the end, and their lengths [B]."""
    lengths = torch.tensor([row.shape[1] for row in rows])
    return torch.stack([F.pad(row, (0, int(lengths.max()) - row.shape[1])) for row in rows]), lengths


@dataclass(frozen=True)
class RecogniserConfig:
    """Sizes of the recogniser. `symbols`: its words and characters; CTC's blank comes before them."""

    symbols: tuple[str, ...]
    width: int = 160
    hidden: int = 160
    dropout: float = 0.15


class Recogniser(nn.Module):
    """Features [B, 80, T] and lengths [B] → log probabilities [B, T / 4, 1 + symbols], lengths [B]."""

    n_fft = 512

    def __init__(self, config: RecogniserConfig):
        super().__init__()
        self.config = config
        w, h = config.width, config.hidden
        self.first = nn.Conv1d(MELS, w, 5, stride=2, padding=2)
        self.second = nn.Conv1d(w, w, 5, stride=2, padding=2)
        self.norm = nn.LayerNorm(w)
        self.drop = nn.Dropout(config.dropout)
        self.gru = nn.GRU(w, h, num_layers=2, bidirectional=True, batch_first=True, dropout=config.dropout)
        self.out = nn.Linear(2 * h, 1 + len(config.symbols))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (lengths + 1) // 2
        x = F.gelu(self.first(x))  # [B, W, T / 2]
        inside = torch.arange(x.shape[2], device=x.device) < lengths[:, None].to(x.device)
        x = F.gelu(self.second(x * inside[:, None]))  # [B, W, T / 4]; what lies beyond the end stays silent: padding changes nothing
        lengths, inside = (lengths + 1) // 2, inside[:, ::2]
        x = self.drop(self.norm(rearrange(x, "b w t -> b t w")))
        x = x * inside[..., None]
        if self.training:  # the backward pass of packed rows takes twice the time, and padding is short: batches are sorted by length
            x, _ = self.gru(x)  # [B, T / 4, 2H]
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            x, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.out(self.drop(x)).float().log_softmax(-1), lengths

    def encode(self, units: list[str]) -> Tensor:
        """Words and characters as CTC targets [n]. Raises ValueError naming those it has no symbol for."""
        unknown = sorted(set(units) - set(self.config.symbols))
        if unknown:
            raise ValueError(f"the recogniser has no symbol for {', '.join(map(repr, unknown))} in {' '.join(units)!r}")
        return torch.tensor([1 + self.config.symbols.index(unit) for unit in units])

    def decode(self, scores: Tensor) -> str:
        """Log probabilities [T, 1 + symbols] → the most likely symbol of each frame, repeats and blanks left out, as a text."""
        best = scores.argmax(-1).unique_consecutive().tolist()
        heard = [self.config.symbols[i - 1] for i in best if i]
        return "".join(unit if is_chinese(unit) else f" {unit} " for unit in heard).replace("  ", " ").strip()


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes of the speaker encoder. `size`: of the vector that stands for a voice."""

    width: int = 160
    size: int = 128


class SpeakerEncoder(nn.Module):
    """Features [B, 80, T], all of one length → unit vectors [B, size]."""

    n_fft = 1024  # fine enough in frequency to see the pitch

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.config = config
        w = config.width
        self.first = nn.Sequential(nn.Conv1d(MELS, w, 5, stride=2, padding=2), nn.ReLU(), nn.BatchNorm1d(w))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(w, w, 3, dilation=d, padding=d), nn.ReLU(), nn.BatchNorm1d(w)) for d in (1, 2, 3)
        )
        self.wide = nn.Sequential(nn.Conv1d(w, 2 * w, 1), nn.ReLU())
        self.norm = nn.BatchNorm1d(4 * w)
        self.out = nn.Linear(4 * w, config.size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        x = self.wide(x).float()  # [B, 2W, T / 2]
        statistics = torch.cat((x.mean(2), x.var(2, unbiased=False).clamp(min=1e-5).sqrt()), 1)  # [B, 4W]
        return F.normalize(self.out(self.norm(statistics)).float(), dim=1)


class Judges:
    """A recogniser, a speaker encoder, and `report`: what they were trained on, and their own errors on true recordings."""

    def __init__(self, recogniser: Recogniser, encoder: SpeakerEncoder, report: dict, device: str | torch.device = "cpu"):
        self.device, self.report = torch.device(device), report
        self.recogniser, self.encoder = (network.to(self.device).eval() for network in (recogniser, encoder))

    @torch.inference_mode()
    def transcribe(self, wavs: list[Tensor]) -> list[str]:
        """What recordings [N] at 16 kHz say: lower case, Mandarin in characters. "" for silence and for less than 0.1 s.

        Raises ValueError for another shape and for values that are not finite.
        """
        quiet = int(AROUND * SAMPLE_RATE)
        heard = {k: features(F.pad(wav, (quiet, quiet)), Recogniser.n_fft) for k, wav in enumerate(self._checked(wavs)) if wav is not None}
        texts = [""] * len(wavs)
        order = sorted(heard, key=lambda k: heard[k].shape[1])
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            scores, lengths = self.recogniser(*pad([heard[k] for k in rows]))
            for k, row, length in zip(rows, scores.cpu(), lengths.tolist(), strict=True):
                texts[k] = self.recogniser.decode(row[:length])
        return texts

    @torch.inference_mode()
    def embed(self, wavs: list[Tensor]) -> Tensor:
        """The voices of recordings [N] at 16 kHz: unit vectors [B, E] on the CPU. Their products are cosines, 1 for one voice.

        Silence and less than 0.1 s are no voice: a zero vector, similar to none. Raises ValueError as `transcribe` does.
        """
        voices = torch.zeros(len(wavs), self.encoder.config.size)
        for k, wav in enumerate(self._checked(wavs)):
            if wav is not None:
                voices[k] = self.encoder(features(wav, SpeakerEncoder.n_fft)[None])[0].cpu()
        return voices

    def _checked(self, wavs):
        """Each recording on the device, or None where there is nothing to hear."""
        if isinstance(wavs, Tensor):
            raise ValueError("the judges take a list of recordings [N], not one tensor: put it into a list")
        for wav in wavs:
            if wav.ndim != 1:
                raise ValueError(f"a recording to judge is a waveform [N], not {list(wav.shape)}: squeeze it")
            if not wav.isfinite().all():
                raise ValueError("a recording to judge holds values that are not finite")
            loud = len(wav) >= SHORTEST * SAMPLE_RATE and wav.abs().max() > SILENT
            yield wav.float().to(self.device) if loud else None


def load(name: str = "numbers", device: str | torch.device | None = None) -> Judges:
    """The judges of a corpus: "numbers", which ship in data/checkpoints/judge, or a folder that `vox.judge_train` wrote.

    device: where they run; None: the CPU, where they are fast. Raises ValueError for a folder without judges.
    """
    folder = HOME / "data/checkpoints/judge" if name == "numbers" else HOME / name
    if not (folder / "judge.json").is_file():
        raise ValueError(f"{folder} holds no judge.json: name numbers, or a folder that python -m vox.judge_train made")
    report = read_json(folder / "judge.json")
    recogniser = Recogniser(from_dict(RecogniserConfig, report["recogniser"]["config"]))
    encoder = SpeakerEncoder(from_dict(SpeakerConfig, report["speaker"]["config"]))
    for network, file in ((recogniser, "recogniser.safetensors"), (encoder, "speaker.safetensors")):
        network.load_state_dict({key: value.float() for key, value in state.read_tensors(folder / file).items()})
    return Judges(recogniser, encoder, report, device or "cpu")
