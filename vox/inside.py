"""What each box carries: states while it hears true recordings, what is said at each patch, and probes for it (paper §3.2, Figures 2, 3).

    z      the patch itself, P · D numbers                        the baseline: what is there before any box
    E      LocEnc's vector of it
    h      TSLM's state, before FSQ
    h_FSQ  the plan, after FSQ
    r      RALM's residual
    μ      W h_FSQ + W' r, all that LocDiT is told of the next patch

Notable choices
- a state at patch i has heard patch i and is what patch i + 1 will be drawn from. So each question is asked twice: of the patch just
  heard, and of the next;
- a patch has the label of its middle. When each phone begins the synthesiser itself tells (`vox.espeak.Mark`), so no aligner guesses;
- probes are linear, fitted on seen voices and scored on unseen ones that say other texts. A probe finds what lies open: what it does
  not find may be there in a twisted form;
- an interval draws whole utterances, that of a verification whole voices.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vox import espeak, intervals, metrics, phrases, probes
from vox.batch import Item, pack
from vox.text import is_chinese
from vox.voxcpm import VoxCPM

BOXES = ("z", "E", "h", "h_FSQ", "r", "μ")
CLASSES, VALUES = ("phone", "word"), ("pitch", "melody", "level")  # what is asked of a patch
AHEAD = {"heard": 0, "next": 1}
KINDS = ("number", "large number", "time", "date")
TOGETHER = 16  # utterances run through a model at once
PAUSE = "·"  # the phone that is none
SAMPLED = 3  # patches of an utterance on a map


# ---- what is heard -----------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """A recording with what is said in each of its M patches: latents [L, D]; phone, word: M names; pitch, level [M]."""

    text: str
    language: str
    speaker: str
    latents: Tensor
    phone: list[str]
    word: list[str]
    pitch: np.ndarray  # semitones above 100 Hz, NaN where fewer than a quarter of the frames are voiced
    level: np.ndarray  # dB


def spread(split: str, settings: int, each: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(text, language, speaker) with texts of a split of "numbers", `each` times for the first `settings` of every voice variant.

    Voices are the unseen ones for "test", else the seen ones. All texts differ.
    """
    draw, taken, rows = random.Random(f"inside {split} {seed}"), set(), []
    for variant in espeak.voices(split):
        for speaker in espeak.settings(variant, espeak.SETTINGS)[:settings]:
            for k in range(each):
                language = phrases.LANGUAGES[k % 2]
                text = phrases.draw(draw, language, split)
                while text in taken:
                    text = phrases.draw(draw, language, split)
                taken.add(text)
                rows.append((text, language, speaker))
    return rows


def choir(speakers: int, texts: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(text, language, speaker): unseen speakers, a variant each, who all say the same held-out texts, four kinds in two languages."""
    draw = random.Random(f"choir {seed}")
    voices = draw.sample(espeak.voices("test"), speakers)
    lists = [(language, kind) for kind in range(len(KINDS)) for language in phrases.LANGUAGES]
    said = {}
    while len(said) < texts:
        language, kind = lists[len(said) % len(lists)]
        said.setdefault(draw.choice(phrases.kinds(language, "test")[kind]), language)
    return [(text, language, espeak.settings(voice, espeak.SETTINGS)[0]) for voice in voices for text, language in said.items()]


def kind_of(text: str, language: str, split: str = "test") -> str:
    """Which of the four kinds a text of "numbers" is. Raises ValueError for a text of none."""
    for name, kind in zip(KINDS, phrases.kinds(language, split), strict=True):
        if text in kind:
            return name
    raise ValueError(f"{text!r} is no {split} text of numbers in {language}")


@torch.inference_mode()
def hear(rows: Sequence[tuple[str, str, str]], model: VoxCPM, quiet: bool = True) -> list[Heard]:
    """Render (text, language, speaker) and say what is in each patch of `model`. ValueError for Mandarin that cannot be labelled."""
    heard, config = [], model.config
    for text, language, speaker in tqdm(rows, desc="hearing", unit="recording", disable=quiet or None):
        marks = []
        wav = espeak.reference(text, language, speaker, metrics.SAMPLE_RATE, marks)
        same = config.vae.sample_rate == metrics.SAMPLE_RATE
        own = wav if same else espeak.reference(text, language, speaker, config.vae.sample_rate)
        own = F.pad(own, (0, -len(own) % config.patch_samples))
        latents = model.vae.encode(own[None, None].to(model.device))[0].mT.cpu()  # [L, D]
        patches, seconds = len(own) // config.patch_samples, config.patch_seconds()
        named = (at_the_middle(each, patches, seconds) for each in (phones(marks), words(marks, text)))
        heard.append(Heard(text, language, speaker, latents, *named, *voiced(wav, patches, seconds)))
    return heard


def phones(marks: Sequence[espeak.Mark]) -> list[tuple[float, str]]:
    """(second it begins, phone), stress left out."""
    return [(mark.second, mark.what.strip("ˈˌ") or PAUSE) for mark in marks if mark.kind == "phone"]


def words(marks: Sequence[espeak.Mark], text: str) -> list[tuple[float, str]]:
    """(second it begins, English word or Mandarin character) of a text of one language.

    espeak-ng reads several characters as one word; but a character has the same phones wherever it stands, so counting them finds
    its first. Raises ValueError where the phones are not those of the characters.
    """
    if not is_chinese(text[0]):
        return [(mark.second, text[mark.what :].split()[0]) for mark in marks if mark.kind == "word"]
    told = [each for each in phones(marks) if each[1] != PAUSE]
    begins, at = [], 0
    for character in text:
        own = syllable(character)
        if tuple(name for _, name in told[at : at + len(own)]) != own:
            raise ValueError(f"the phones of {text} are not those of its characters one by one, from {character} on: leave it out")
        begins.append((told[at][0], character))
        at += len(own)
    return begins


@functools.cache
def syllable(character: str) -> tuple[str, ...]:
    """The phones of a Mandarin character that stands alone."""
    marks = []
    espeak.render(character, "cmn+f2", marks=marks)
    return tuple(name for _, name in phones(marks) if name != PAUSE)


def at_the_middle(begins: Sequence[tuple[float, str]], patches: int, seconds: float) -> list[str]:
    """What has begun last in the middle of each patch of so many `seconds`: (second it begins, name), in order → names."""
    at = np.searchsorted([second for second, _ in begins], (np.arange(patches) + 0.5) * seconds, side="right") - 1
    return [begins[k][1] for k in at.clip(min=0)]


def voiced(wav: Tensor, patches: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """wav [N] at 16 kHz → pitch [patches] in semitones above 100 Hz, NaN where hardly voiced, and level [patches] in dB."""
    per = round(seconds * metrics.SAMPLE_RATE)
    frames = metrics.pitch(wav)[: patches * per // metrics.HOP]
    frames = F.pad(frames, (0, patches * per // metrics.HOP - len(frames)), value=torch.nan).view(patches, -1)  # [patches, frames]
    enough = (~frames.isnan()).float().mean(1) >= 0.25
    pitch = torch.where(enough, 12 * torch.log2(frames.nanmedian(1).values / 100), torch.nan)
    power = F.pad(wav, (0, patches * per - len(wav))).view(patches, per).square().mean(1)
    return pitch.numpy(), 10 * power.clamp(min=1e-8).log10().numpy()


# ---- states ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def states(model: VoxCPM, heard: Sequence[Heard]) -> list[dict[str, Tensor]]:
    """What every box says at each of the M patches of recordings: {box: [M, ·]} for each; boxes that the model lacks are left out."""
    done, order = [{} for _ in heard], sorted(range(len(heard)), key=lambda k: len(heard[k].latents))
    for start in range(0, len(order), TOGETHER):
        some = order[start : start + TOGETHER]
        items = [Item(torch.tensor(model.tokenizer.encode(heard[k].text)), heard[k].latents) for k in some]
        batch = pack(items, model.config.patch).to(model.device)
        audio, patches = batch.audio_mask, batch.latents.to(model.dtype)
        past = torch.zeros(*audio.shape, model.config.tslm.hidden, device=model.device, dtype=model.dtype)
        past[audio] = model.embed(patches[audio])
        x = model.tslm.embed(batch.text) * batch.text_mask[..., None] + past  # [B, T, H]
        plan, r = model.plan(x, past, audio)
        parts = {"z": patches.flatten(2), "E": past, "h": model.tslm(x), "h_FSQ": plan, "r": r, "μ": model.condition(plan, r)}
        for row, k in enumerate(some):
            done[k] = {box: part[row, audio[row]].float().cpu() for box, part in parts.items() if part is not None}
    return done


def untrained(model: VoxCPM, seed: int) -> VoxCPM:
    """The same boxes with random weights, behind the same trained AudioVAE."""
    torch.manual_seed(seed)
    return VoxCPM(model.config, model.vae, model.tokenizer).to(model.device).eval()


def table(heard: Sequence[Heard], vectors: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """All patches one after another: each box [N, ·], "owner" [N] (whose they are), and phone, word, pitch, melody, level [N].

    Melody is pitch without the voice's own: its distance from the mean of the utterance.
    """
    columns = {box: torch.cat([each[box] for each in vectors]).numpy() for box in vectors[0]}
    columns |= {name: np.concatenate([getattr(each, name) for each in heard]) for name in ("phone", "word", "pitch", "level")}
    sizes = [len(each.phone) for each in heard]
    centres = [each.pitch[~np.isnan(each.pitch)].mean() if (~np.isnan(each.pitch)).any() else np.nan for each in heard]
    columns["melody"] = columns["pitch"] - np.repeat(centres, sizes)
    return columns | {"owner": np.repeat(np.arange(len(heard)), sizes)}


def pairs(columns: dict[str, np.ndarray], box: str, label: str, ahead: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors [n, ·] of a box with the label [n] of the patch that is `ahead` of the one just heard, and whose they are [n]."""
    owner = columns["owner"]
    here = np.arange(len(owner) - ahead)
    here = here[owner[here] == owner[here + ahead]]
    y = columns[label][here + ahead]
    known = ~np.isnan(y) if y.dtype.kind == "f" else np.ones(len(y), bool)
    return columns[box][here[known]], y[known], owner[here[known]]


def means(columns: dict[str, np.ndarray], box: str) -> np.ndarray:
    """The mean vector of each utterance [utterances, H]."""
    total = np.zeros((columns["owner"].max() + 1, columns[box].shape[1]))
    np.add.at(total, columns["owner"], columns[box])
    return total / np.bincount(columns["owner"])[:, None]


# ---- questions ---------------------------------------------------------------------------------------------------------


def probe(known: dict, fresh: dict, box: str, label: str, ahead: int = 0, rows: np.ndarray | None = None) -> np.ndarray:
    """A probe fitted on one table (utterances `rows` of it) and scored on another, utterance by utterance: counts [utterances, 2].

    Of names: wrong patches, patches. Of values: squared error, squared distance from the mean. So the sum of the first column over
    that of the second is an error rate, or 1 − R².
    """
    (X, y, owner), (X_new, y_new, whose) = pairs(known, box, label, ahead), pairs(fresh, box, label, ahead)
    if rows is not None:
        X, y = X[np.isin(owner, rows)], y[np.isin(owner, rows)]
    if label in CLASSES:
        cost = np.stack([probes.classify(X, y, X_new) != y_new, np.ones(len(y_new))], 1)
    else:
        cost = np.stack([(probes.regress(X, y, X_new) - y_new) ** 2, (y_new - y_new.mean()) ** 2], 1)
    counts = np.zeros((fresh["owner"].max() + 1, 2))
    np.add.at(counts, whose, cost)
    return counts


def value(counts: np.ndarray, label: str) -> float:
    """counts [utterances, 2] of a probe → the error rate of names, R² of values."""
    ratio = float(counts[:, 0].sum() / counts[:, 1].sum())
    return ratio if label in CLASSES else 1 - ratio


def score(counts: np.ndarray, label: str) -> intervals.Figure:
    """The `value` of counts [utterances, 2] with its interval over utterances."""
    counts = counts[counts[:, 1] > 0]
    low, high = intervals.bootstrap(counts, "ratio")
    return intervals.Figure(value(counts, label), *((low, high) if label in CLASSES else (1 - high, 1 - low)), len(counts))


def commonest(known: dict, fresh: dict, label: str) -> float:
    """The error rate of who always says the commonest name."""
    names, often = np.unique(known[label], return_counts=True)
    return float((fresh[label] != names[often.argmax()]).mean())


def measure(model: VoxCPM, known: list[Heard], fresh: list[Heard], sung: list[Heard], seeds=(0, 1, 2), quiet: bool = True):
    """All questions to all boxes, trained and with random weights. Returns results, ready for JSON, and the arrays behind them.

    known: utterances of seen voices to fit on, two thirds of them for each seed; fresh: of unseen ones, to score on; sung: a choir,
    for the maps. A seed is also one of the random weights.
    Arrays: "trained/h/word/next" [utterances, 2], counts summed over seeds; "trained/h/verified" [1 + draws], rates
    whose draws are the same for all boxes; "map/trained/patch/h" [points, 2].
    """
    speakers, named = [each.speaker for each in known], [each.speaker for each in fresh]
    results, arrays = {"patches": [], "voices": [], "neighbours": []}, {}
    draws = [np.random.default_rng(seed).permutation(len(known)) for seed in seeds]
    for name in ("trained", "random"):
        nets = [model] * len(seeds) if name == "trained" else [untrained(model, seed) for seed in seeds]
        heard = {id(net): [table(each, states(net, each)) for each in (known, fresh)] for net in nets}
        tables, song = [heard[id(net)] for net in nets], table(sung, states(nets[0], sung))
        for box in tqdm([box for box in BOXES if box in song and (name, box) != ("random", "z")], desc=name, disable=quiet or None):
            about = {"model": name, "box": box}
            for label in CLASSES + VALUES:
                for when, ahead in AHEAD.items():
                    each = [probe(*pair, box, label, ahead, rows[: 2 * len(rows) // 3]) for pair, rows in zip(tables, draws, strict=True)]
                    arrays[f"{name}/{box}/{label}/{when}"] = sum(each).astype(np.float32)
                    line = about | {"label": label, "when": when} | score(sum(each), label)._asdict()
                    results["patches"].append(line | {"seeds": [value(counts, label) for counts in each]})
            each = [voices(*pair, box, speakers, named, rows) for pair, rows in zip(tables, draws, strict=True)]  # [seeds, 2, 1 + draws]
            for what, rates in zip(("identified", "verified"), np.swapaxes(each, 0, 1), strict=True):
                low, high = np.quantile(rates[:, 1:].mean(0), (0.025, 0.975))
                line = about | {"what": what, "value": rates[:, 0].mean(), "low": low, "high": high}
                results["voices"].append(line | {"seeds": rates[:, 0].tolist()})
                arrays[f"{name}/{box}/{what}"] = rates.mean(0).astype(np.float32)
            results["neighbours"] += around(name, box, means(song, box), sung)
            arrays |= maps(name, box, song, seeds[0])
    results["chance"] = {label: commonest(*tables[0], label) for label in CLASSES} | {"identified": 1 - 1 / len(set(speakers))}
    results["map"] = legend(sung, song, seeds[0])
    return _plain(results), arrays


def _plain(tree):
    """numpy's numbers as Python's."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree.item() if isinstance(tree, np.generic) else tree


def voices(known, fresh, box, speakers, named, order, draws: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Error rates [1 + draws] over voices, from mean vectors of utterances: as they are, and drawn again.

    Identified: which of the seen `speakers`, fitted on two thirds of the utterances and scored on the rest. Verified: whether two
    utterances of unseen ones (`named`) are of one, by the cosine after whitening on those two thirds.
    """
    X, X_new, cut = means(known, box), means(fresh, box), 2 * len(order) // 3
    speakers = np.asarray(speakers)
    fit, rest = order[:cut], order[cut:]
    wrong = probes.classify(X[fit], speakers[fit], X[rest]) != speakers[rest]
    rng = np.random.default_rng(0)
    identified = np.array([wrong.mean(), *(wrong[rng.integers(len(wrong), size=len(wrong))].mean() for _ in range(draws))])
    return identified, probes.verification(probes.whitened(X[fit], speakers[fit], X_new)[1], named, draws)


# ---- maps --------------------------------------------------------------------------------------------------------------


def around(name: str, box: str, X: np.ndarray, sung: Sequence[Heard]) -> list[dict]:
    """How many of the five nearest utterances to each, by mean vectors X [utterances, H] of a choir, are of its speaker, text, kind."""
    kinds = [f"{each.language} {kind_of(each.text, each.language)}" for each in sung]
    lines = []
    for what, names in (("speaker", [each.speaker for each in sung]), ("text", [each.text for each in sung]), ("kind", kinds)):
        names = np.asarray(names)
        chance = float(np.mean([(names == each).sum() - 1 for each in names]) / (len(names) - 1))
        figure = intervals.mean(probes.neighbours(X, names))
        lines.append({"model": name, "box": box, "label": what, **figure._asdict(), "chance": chance})
    return lines


def sampled(song: dict, seed: int) -> np.ndarray:
    """Rows of some patches of each utterance, in order."""
    rng, owner = np.random.default_rng(seed), song["owner"]
    some = [rng.permutation(np.flatnonzero(owner == k))[:SAMPLED] for k in range(owner.max() + 1)]
    return np.sort(np.concatenate(some))


def maps(name: str, box: str, song: dict, seed: int) -> dict[str, np.ndarray]:
    """t-SNE maps of a choir: of the mean vectors of utterances, and of some of their patches."""
    points = {"utterance": (means(song, box), 15), "patch": (song[box][sampled(song, seed)], 30)}
    maps_ = {}
    for kind, (X, perplexity) in points.items():
        (X,) = probes.standardised(X)
        maps_[f"map/{name}/{kind}/{box}"] = probes.tsne(X.numpy(), min(perplexity, len(X) / 4)).astype(np.float16)
    return maps_


def legend(sung: Sequence[Heard], song: dict, seed: int) -> dict:
    """What the points of the maps are."""
    rows = sampled(song, seed)
    utterances = [{"text": s.text, "language": s.language, "speaker": s.speaker, "kind": kind_of(s.text, s.language)} for s in sung]
    patches = {name: song[name][rows].tolist() for name in ("owner", "phone", "word")}
    pitch = [None if np.isnan(value) else round(float(value), 2) for value in song["pitch"][rows]]
    return {"utterance": utterances, "patch": patches | {"pitch": pitch}}
