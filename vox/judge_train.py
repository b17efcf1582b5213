"""Training the judges from nothing: `python -m vox.judge_train OUT` renders speech, trains both, and measures their own errors.

    recordings → speed, room, channel, noise → features → masks → the recogniser: CTC
                                                               → the speaker encoder: two recordings of a voice find each other

Notable choices
- they learn from true recordings only, of seen voices and training texts. What a model will do to speech (dull it, roughen it,
  add noise, stretch it) is stood in for by augmentation, so that no model's own sound is ever learnt;
- a recording played slower or faster is, for the speaker encoder, another voice: three times as many to tell apart;
- `vox.train.fit` runs both, so they resume after a kill and come out the same from the same command.
"""

import importlib.metadata
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vox import corpus, intervals, judge, metrics, state, train
from vox.config import to_dict
from vox.feed import Order, Waves, generator, part
from vox.files import HOME, write_json
from vox.judge import HOP, MELS, SAMPLE_RATE, Judges, Recogniser, RecogniserConfig, SpeakerConfig, SpeakerEncoder, features, pad
from vox.learner import Learner
from vox.provenance import commit, processor

HOURS = 4.0  # of the training split
TRIALS = 100_000  # pairs of different voices an EER is measured on, at most
SPEEDS = (1.0, 0.88, 1.14)  # of the speaker encoder's voices


@dataclass(frozen=True)
class JudgeTrainConfig:
    """Training of one judge."""

    steps: int
    batch: int = 32  # recordings per step, over all processes
    lr: float = 2e-3
    lr_end: float = 2e-5
    warmup: int = 100
    decay: int = 800
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 5.0
    ema: float = 0.99
    precision: str = "fp32"
    checkpoint: int = 200
    seed: int = 0


# ---- what happens to a recording ---------------------------------------------------------------------------------------


def stretch(wav: Tensor, speed: float) -> Tensor:
    """wav [N] played at another speed [N / speed]: pitch and formants move along."""
    return F.interpolate(wav[None, None], size=max(1, round(len(wav) / speed)), mode="linear")[0, 0]


def distort(wav: Tensor, rng: torch.Generator) -> Tensor:
    """wav [N] with silence around it, in a small room, through a microphone and a channel, with noise: [N + some]."""
    chance, amount = torch.rand(5, generator=rng).tolist(), torch.rand(8, generator=rng).tolist()
    before, after = (int(0.4 * SAMPLE_RATE * max(0.0, x - 0.5)) for x in amount[:2])
    after += -(len(wav) + before + after) % 4000  # a length whose Fourier transform is fast
    wav = F.pad(wav, (before, after))
    bins = torch.linspace(0, 1, len(wav) // 2 + 1)  # share of 8 kHz
    spectrum = torch.fft.rfft(wav)
    if chance[0] < 0.5:  # a tilt of up to 6 dB an octave either way
        spectrum = spectrum * (bins + 0.02).pow(2 * amount[2] - 1)
    if chance[1] < 0.3:  # nothing above 2.5 … 8 kHz
        spectrum = spectrum * torch.sigmoid((0.3 + 0.7 * amount[3] - bins) * 60)
    if chance[2] < 0.25:  # the sound, then an echo that dies away within 0.05 … 0.3 s
        decay = (0.05 + 0.25 * amount[4]) * SAMPLE_RATE
        room = torch.randn(len(wav), generator=rng) * torch.exp(-6.9 * torch.arange(len(wav)) / decay)
        room = 0.5 * amount[5] * room / room.square().sum().sqrt()
        room[0] = 1.0
        spectrum = spectrum * torch.fft.rfft(room)
    if chance[3] < 0.6:  # noise 5 … 45 dB below, white or falling
        noise = torch.view_as_complex(torch.randn(len(bins), 2, generator=rng)) / (bins + 0.01).pow(0.5 * (chance[4] < 0.5))
        spectrum = spectrum + noise * (spectrum.norm() / noise.norm() * 10 ** (-(5 + 40 * amount[6]) / 20))
    return torch.fft.irfft(spectrum, len(wav))


def mask(x: Tensor, rng: torch.Generator) -> Tensor:
    """Features x [80, T] at another level, perhaps coarsely quantised as by a codec, with bands and moments hidden (SpecAugment)."""
    chance, level, step, *place = torch.rand(11, generator=rng).tolist()
    x = x + 0.4 * (level - 0.5)
    if chance < 0.3:
        x = (x / (0.05 + 0.35 * step)).round() * (0.05 + 0.35 * step)
    for k in range(2):
        band, size = int(place[4 * k] * (MELS - 12)), int(place[4 * k + 1] * 12)
        x[band : band + size] = 0
        moment, length = int(place[4 * k + 2] * max(1, x.shape[1] - 9)), int(place[4 * k + 3] * 9)
        x[:, moment : moment + length] = 0
    return x


# ---- what a step sees --------------------------------------------------------------------------------------------------


class JudgeFeed:
    """`feed(step, rank, world)` → the inputs of a judge's loss, share of the global batch. Recordings stay in memory, 16 bits each."""

    def __init__(self, data, config: JudgeTrainConfig, judge: "Hears | Knows"):
        waves = Waves(data, SAMPLE_RATE)
        self.waves = [(waves[row] * 32767).to(torch.int16) for row in range(len(waves))]
        self.config, self.judge = config, judge
        self.targets = judge.targets(data)
        self.order = Order(len(self.waves), config.batch, config.seed, lambda rows: len(self.waves[rows[0]]), judge.extend)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[list[Tensor], float]:
        sequences = self.order[step][part(self.config.batch, rank, world)]
        rng = generator(self.config.seed, "judge", step, rank)
        heard = [self.judge.hear([self.waves[row] / 32767 for row in rows], [self.targets[row] for row in rows], rng) for rows in sequences]
        return self.judge.collate(heard, rng), len(sequences) / self.config.batch


class Hears(nn.Module):
    """The recogniser in training: CTC."""

    def __init__(self, config: RecogniserConfig):
        super().__init__()
        self.network, self.config = Recogniser(config), config

    def targets(self, data) -> list[Tensor]:
        """What each recording says, as symbols [n]."""
        return [self.network.encode(metrics.units(text).split()) for text in data["text"]]

    def extend(self, row: int, rng) -> tuple[int]:
        """The recordings that are heard together: one."""
        return (row,)

    def hear(self, wavs: list[Tensor], targets: list[Tensor], rng) -> tuple[Tensor, Tensor]:
        """One wav [N] and its target [n] → augmented features [80, T], target."""
        speed = 0.85 + 0.33 * torch.rand(2, generator=rng)[0].item()
        wav = distort(stretch(wavs[0], speed), rng)
        return mask(features(wav, Recogniser.n_fft), rng), targets[0]

    def collate(self, heard, rng) -> list[Tensor]:
        """Features [B, 80, T], lengths [B], targets end to end [n], their lengths [B]."""
        rows, targets = zip(*heard, strict=True)
        return [*pad(rows), torch.cat(targets), torch.tensor([len(target) for target in targets])]

    def forward(self, x: Tensor, lengths: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
        """The loss per symbol (0-d) of features x [B, 80, T]."""
        scores, lengths = self.network(x, lengths)
        return F.ctc_loss(scores.transpose(0, 1), targets, lengths, sizes, reduction="sum", zero_infinity=True) / sizes.sum()


class Knows(nn.Module):
    """The speaker encoder in training: which of the second recordings is of the voice of the first? (angular prototypical loss)

    For every voice there is another one of the same variant with other settings among them, or it would learn variants only.
    """

    scale = 25.0

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.network, self.config = SpeakerEncoder(config), config

    def targets(self, data) -> list[int]:
        """Whose voice each recording is, as a number."""
        names = sorted(set(data["speaker"]))
        self.voices = [names.index(name) for name in data["speaker"]]
        self.rows, kin = defaultdict(list), defaultdict(list)
        for row, voice in enumerate(self.voices):
            self.rows[voice].append(row)
        for voice, name in enumerate(names):
            kin[name.rsplit("-", 3)[0]].append(voice)
        self.kin = [kin[name.rsplit("-", 3)[0]] for name in names]  # by voice, those of its variant
        return self.voices

    def extend(self, row: int, rng) -> tuple[int, int, int, int]:
        """The recordings that are heard together: two of one voice, and two of another one of its variant where there is one."""
        voice = self.voices[row]
        second = self.pick(self.rows[voice], row, rng)
        third = self.pick(self.rows[self.pick(self.kin[voice], voice, rng)], row, rng)
        return row, second, third, self.pick(self.rows[self.voices[third]], third, rng)

    def pick(self, among: list[int], but: int, rng) -> int:
        """Any of them but one, or that one if there is no other."""
        others = [other for other in among if other != but] or [but]
        return others[int(torch.randint(len(others), (1,), generator=rng))]

    def hear(self, wavs: list[Tensor], targets: list[int], rng) -> list[tuple[Tensor, int]]:
        """Wavs [N] → augmented features [80, T] of each, at one of three speeds, and the number of the voice that makes."""
        speed = int(torch.randint(len(SPEEDS), (1,), generator=rng))
        heard = []
        for wav, target in zip(wavs, targets, strict=True):
            wav = stretch(wav, SPEEDS[speed])
            wav = distort(wav, rng) if torch.rand(1, generator=rng) < 0.7 else wav
            heard.append((mask(features(wav, SpeakerEncoder.n_fft), rng), target * len(SPEEDS) + speed))
        return heard

    def collate(self, heard, rng) -> list[Tensor]:
        """Crops [2B, 80, T] of one length, at most 1 … 3 s, the first recordings of all voices before the second, and voices [B]."""
        heard = [pair for recordings in heard for pair in (recordings[:2], recordings[2:])]
        rows = [pair[k][0] for k in range(2) for pair in heard]
        longest = int((1 + 2 * torch.rand(1, generator=rng).item()) * SAMPLE_RATE / HOP)
        length = min(longest, *(max(x.shape[1], SAMPLE_RATE // HOP) for x in rows))
        crops = []
        for x in rows:
            start = int(torch.randint(max(1, x.shape[1] - length + 1), (1,), generator=rng))
            crops.append(F.pad(x[:, start : start + length], (0, max(0, length - x.shape[1]))))
        return [torch.stack(crops), torch.tensor([pair[0][1] for pair in heard])]

    def forward(self, x: Tensor, voices: Tensor) -> Tensor:
        """The loss (0-d) of features x [2B, 80, T] of `voices` [B]."""
        first, second = self.network(x).chunk(2)
        alike = (voices[:, None] == voices) & ~torch.eye(len(voices), dtype=torch.bool, device=x.device)
        scores = (self.scale * first @ second.T).masked_fill(alike, -torch.inf)  # [B, B]; a voice that is there twice does not compete
        right = torch.arange(len(voices), device=x.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


class JudgeJob:
    """One judge, for `vox.train.fit`."""

    trains, part = "a judge", "targets"

    @staticmethod
    def freeze(model, config):
        """See `train.SpeechJob.freeze`: nothing."""

    def __init__(self, model: Hears | Knows, data, config: JudgeTrainConfig, accelerator, fingerprint: str, progress: bool):
        self.accelerator, self.dropped = accelerator, 0
        model.to(accelerator.device).train()
        self.feed = JudgeFeed(data, config, model)
        self.learner = Learner(model, lambda model, *inputs: model(*inputs), config, config.clip, accelerator)
        self.learners = {"": self.learner}

    def step(self, step: int) -> dict[str, Tensor]:
        """One update. Returns what to log; its sum over all processes is the value for the global batch."""
        world = self.accelerator.num_processes
        inputs, share = self.feed(step, self.accelerator.process_index, world)
        loss = self.learner(*(x.to(self.accelerator.device) for x in inputs))
        norm = self.learner.step(loss * share * world, step)
        return {"loss": loss.detach() * share, "grad_norm": norm / world}

    def finish(self) -> dict:
        """Leave the averaged weights in the judge."""
        self.learner.use_averages()
        return {}


train.JOBS[JudgeTrainConfig] = JudgeJob


# ---- the command -------------------------------------------------------------------------------------------------------


def teach(name: str, out, steps: int | None = None, hours: float = HOURS) -> tuple[nn.Module, train.Report]:
    """Train one judge, "recogniser" or "speaker", in the folder `out`; a run that is there goes on, or is loaded when it is done."""
    data = corpus.load("numbers", "train", hours=hours)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "recogniser":
            texts = [metrics.units(text).split() for language in corpus.LANGUAGES for text in corpus.texts(language, "train")]
            model = Hears(RecogniserConfig(tuple(sorted(set(sum(texts, []))))))
            config = JudgeTrainConfig(steps=train.budget(steps or 6000), decay=2500)
        else:
            model, config = Knows(SpeakerConfig()), JudgeTrainConfig(steps=train.budget(steps or 3000), batch=16, decay=1500)
    report = train.fit(model, data, config, out)
    return model.network, report


def recogniser_errors(judges: Judges, rows) -> dict[str, intervals.Figure]:
    """The error rate of each language on true recordings: WER of en-us, CER of cmn."""
    heard = judges.transcribe([corpus.wav(row) for row in rows])
    figures = {}
    for language in corpus.LANGUAGES:
        pairs = [(row["text"], text) for row, text in zip(rows, heard, strict=True) if row["language"] == language]
        figures[language] = metrics.error_rate(*zip(*pairs, strict=True))
    return figures


def speaker_errors(judges: Judges, rows, draws: int = 200) -> dict[str, intervals.Figure]:
    """How well voices are told apart: EER over all pairs of true recordings, and identification by one other recording.

    "eer": other voices are other speakers, of any variant; "eer_same_variant": other settings of the same variant only, the
    hardest; "identified": nearest to a recording of the same speaker among one of each variant; the interval draws speakers.
    """
    rows = list(rows)
    voices = judges.embed([corpus.wav(row) for row in rows])
    names, of = np.unique([row["speaker"] for row in rows], return_inverse=True)
    variant = np.unique([row["speaker"].rsplit("-", 3)[0] for row in rows], return_inverse=True)[1]
    first, second = np.triu_indices(len(rows), 1)
    scores = (voices @ voices.T).numpy()[first, second]
    same, kin = of[first] == of[second], variant[first] == variant[second]
    figures = {}
    for name, other in (("eer", ~same), ("eer_same_variant", ~same & kin)):
        rng, results = np.random.default_rng(0), []
        other = other & (rng.random(len(other)) < TRIALS / other.sum())
        for _ in range(draws):
            weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            weights = weight[of[first]] * np.where(same, 1, weight[of[second]])
            results.append(metrics.eer(scores[same], scores[other], weights[same], weights[other]))
        value = metrics.eer(scores[same], scores[other])
        figures[name] = intervals.Figure(value, *map(float, np.quantile(results, (0.025, 0.975))), int(same.sum()))
    rng, hits = random.Random(0), []
    for k in range(len(rows)):
        groups = defaultdict(list)
        for other in range(len(rows)):
            if other != k and (of[other] == of[k] or variant[other] != variant[k]):
                groups[int(variant[other])].append(other)
        if int(variant[k]) in groups:
            enrolled = {str(name): voices[rng.choice(group)] for name, group in groups.items()}
            hits += [metrics.identify(voices[k : k + 1], enrolled) == [str(variant[k])]]
    return figures | {"identified": intervals.share(hits)}


def measure(judges: Judges, hours: float = 0.5) -> dict:
    """The judges' own errors on held-out true recordings, of seen voices (validation) and unseen ones (test): ready for JSON."""
    seen, unseen = (corpus.load("numbers", split, hours=hours) for split in ("validation", "test"))
    return {
        "recogniser": {name: recogniser_errors(judges, rows) for name, rows in (("seen", seen), ("unseen", unseen))},
        "speaker": {name: speaker_errors(judges, rows) for name, rows in (("seen", seen), ("unseen", unseen))},
    }


def build(out, target, steps: int | None = None, hours: float = HOURS) -> dict:
    """Train both judges in `out`, store them in 16 bits in the folder `target`, and measure what was stored. Returns judge.json."""
    target = Path(target).absolute()  # `judge.load` takes a relative one from the repository
    card = {"command": "python -m vox.judge_train OUT", "commit": commit()}
    for name in ("recogniser", "speaker"):
        network, report = teach(name, Path(out) / name, steps, hours)
        state.write_tensors(target / f"{name}.safetensors", half(network))
        card[name] = {"config": to_dict(network.config), "steps": report.steps, "seconds": round(report.seconds), "seed": 0}
    card["data"] = {"corpus": "numbers", "hours": hours, "seed": 0, "espeakng-loader": importlib.metadata.version("espeakng-loader")}
    card["machine"] = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(target / "judge.json", card)
    card["errors"] = measure(judge.load(target))
    write_json(target / "judge.json", card)
    return card


def half(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network in 16 bits."""
    return {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("python -m vox.judge_train OUT [TARGET]: trains in OUT, stores in TARGET (data/checkpoints/judge)")
    errors = build(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else HOME / "data/checkpoints/judge")["errors"]
    for judged, voices in errors.items():
        for which, figures in voices.items():
            print(*(f"{judged}, {which} voices, {name}: {figure}" for name, figure in figures.items()), sep="\n")
