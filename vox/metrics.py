"""How good is the speech: words, voice, melody, endings, and what a vocoder lost; every figure with a 95 % interval (paper §4.2).

    table = evaluate(model, rows, vox.judge.load(), prompts=prompts)     one row per sentence
    summarise(table)                                                     {name: Figure(value, low, high, n)}

Notable choices
- a unit is a Mandarin character or an English word, so one error rate is WER, CER, and the mixed rate for mixed texts;
- wherever speech is judged, the true recording of the same text and voice is judged beside it: what the judge gets wrong there
  is its own error;
- an interval of an error rate or a mean is a bootstrap over texts, the seeds of one text staying together; that of a share counts
  every case, so where texts have several seeds it is somewhat too narrow (`vox.intervals`).
"""

import contextlib
import importlib.util
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from vox import audio, corpus, vae_loss
from vox.intervals import Figure, bootstrap, mean, share
from vox.text import is_chinese, normalise

SAMPLE_RATE = 16000
HOP = 160  # samples between frames of cepstra and pitch: 10 ms
BANDS, CEPSTRA = 80, 24
LOW, HIGH = 50, 500  # Hz a voice's pitch lies between
VOICED = 0.15  # YIN's measure of aperiodicity below which a frame is voiced
SILENCE = 0.5  # seconds of it that may follow the speech
TOO_SHORT = 1.1e-5  # pystoi gives 1e-5 instead of an error
METRICS = "-e '.[metrics]' in the repository"  # what pip is to install


# ---- words -------------------------------------------------------------------------------------------------------------


def units(text: str) -> str:
    """A text as the units errors are counted in, with spaces between: "第12号 Room 4" → "第 十 二 号 room four"."""
    with contextlib.suppress(ValueError):  # a recogniser may hear nothing, or write what cannot be spoken
        text = normalise(text)
    spaced = "".join(f" {c} " if is_chinese(c) else c if c.isalnum() or c == "'" else " " for c in text.lower())
    return " ".join(spaced.split())


def errors(reference: str, heard: str) -> tuple[int, int]:
    """(wrong, missing and added units; units of the reference). Raises ValueError for a reference without any."""
    wanted = units(reference)
    if not wanted:
        raise ValueError(f"{reference!r} holds no word")
    found = jiwer.process_words(wanted, units(heard))
    return found.substitutions + found.deletions + found.insertions, len(wanted.split())


def error_rate(references: list[str], heard: list[str], seed: int = 0) -> Figure:
    """WER of English, CER of Mandarin texts: all errors over all units, 0.05 for 5 %. It can pass 1. Raises ValueError for no texts."""
    counts = [errors(*pair) for pair in zip(references, heard, strict=True)]
    if not counts:
        raise ValueError("an error rate needs at least one text")
    return _ratio(counts, seed)


def _ratio(counts, seed=0):
    wrong, all_units = np.sum(counts, 0)
    return Figure(float(wrong / all_units), *bootstrap(counts, "ratio", seed=seed), len(counts))


# ---- voice -------------------------------------------------------------------------------------------------------------


def eer(same, different, same_weights=None, different_weights=None) -> float:
    """Equal error rate: where as many `different` scores lie above a threshold as `same` scores lie below it. 0 is perfect, 0.5 chance.

    Weights, one per score, say how often each counts. Raises ValueError if there are no scores of a kind.
    """
    same, different = np.asarray(same), np.asarray(different)
    if not len(same) or not len(different):
        raise ValueError("an equal error rate needs scores of both kinds")
    scores = np.concatenate((same, different))
    wants = np.concatenate((np.ones(len(same)) if same_weights is None else same_weights, np.zeros(len(different))))
    others = np.concatenate((np.zeros(len(same)), np.ones(len(different)) if different_weights is None else different_weights))
    order = np.argsort(scores, kind="stable")
    missed = np.concatenate(([0], wants[order].cumsum())) / wants.sum()  # threshold after the first k scores: `same` ones below it
    passed = 1 - np.concatenate(([0], others[order].cumsum())) / others.sum()  # `different` ones above it
    edges = np.concatenate(([True], np.diff(scores[order]) > 0, [True]))  # equal scores lie on one side
    best = np.argmin(np.where(edges, np.abs(missed - passed), np.inf))
    return float((missed[best] + passed[best]) / 2)


def identify(voices: Tensor, enrolled: dict[str, Tensor]) -> list[str]:
    """Whose voice each of `voices` [n, E] is nearest to, among enrolment vectors [E] by speaker. By chance 1 in len(enrolled) is right."""
    names = list(enrolled)
    scores = voices @ torch.stack([enrolled[name] for name in names]).T  # [n, names]
    return [names[i] for i in scores.argmax(1).tolist()]


# ---- sound against the true rendering ----------------------------------------------------------------------------------


def cepstra(wav: Tensor) -> Tensor:
    """wav [N] at 16 kHz → mel cepstra 1 … 24 every 10 ms [T, 24], scaled so that their distances are those of log mel bands."""
    basis = torchaudio.functional.create_dct(CEPSTRA + 1, BANDS, norm="ortho")[:, 1:]  # without the first, the level
    return audio.mel(wav.cpu(), SAMPLE_RATE, 1024, HOP, BANDS).T @ basis / math.sqrt(BANDS)


def align(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic time warping of frames a [T, C] and b [S, C]: the rows of `a` and of `b` that belong together, both [path]."""
    cost = torch.cdist(a.double(), b.double()).numpy()
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):  # all cells with i + j = diagonal at once: none needs another
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        total[i, j] = cost[i - 1, j - 1] + np.minimum(total[i - 1, j - 1], np.minimum(total[i - 1, j], total[i, j - 1]))
    path, (i, j) = [], (rows, columns)
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell])
    first, second = np.array(path[::-1]).T
    return first, second


def pitch(wav: Tensor) -> Tensor:
    """The pitch of wav [N] at 16 kHz every 10 ms, in Hz [1 + N // 160]; NaN where unvoiced. YIN: the first lag at which a frame repeats."""
    longest, window = SAMPLE_RATE // LOW, 512
    size = window + longest
    frames = F.pad(wav.cpu().float(), (size // 2, size - size // 2)).unfold(0, size, HOP)  # [T, size]
    heads = F.pad(frames[:, :window], (0, longest))
    products = torch.fft.irfft(torch.fft.rfft(frames) * torch.fft.rfft(heads).conj(), size)[:, : longest + 1]  # [T, lags]
    energy = F.pad(frames.double().square().cumsum(1), (1, 0))
    energy = (energy[:, window:] - energy[:, :-window]).float()  # of the window at each lag [T, lags]
    difference = (energy[:, :1] + energy - 2 * products).clamp(min=0)
    lags = torch.arange(1, longest + 1)
    ratio = difference[:, 1:] * lags / difference[:, 1:].cumsum(1).clamp(min=1e-8)  # against the mean of shorter lags
    shortest = SAMPLE_RATE // HIGH - 1  # index of the shortest lag
    inner = ratio[:, shortest:-1]
    dips = (inner < VOICED) & (inner <= ratio[:, shortest + 1 :]) & (inner <= ratio[:, shortest - 1 : -2])
    at = dips.float().argmax(1) + shortest
    before, here, after = (ratio.gather(1, (at + k)[:, None])[:, 0] for k in (-1, 0, 1))
    bend = before - 2 * here + after
    lag = 1 + at + torch.where(bend > 0, (before - after) / (2 * bend).clamp(min=1e-8), 0.0)  # the vertex of a parabola
    loud = energy[:, 0] > 1e-4 * energy[:, 0].max()
    return torch.where(dips.any(1) & loud, SAMPLE_RATE / lag, torch.nan)


def compare(wav: Tensor, reference: Tensor) -> dict[str, float | None]:
    """Speech against its true rendering, both [N] at 16 kHz, after time warping.

    Returns mcd (mel-cepstral distortion in dB), f0 (root mean square error of the pitch in cents, over frames voiced in both;
    None if there are none), duration (of `wav` over that of `reference`).
    """
    a, b = cepstra(wav), cepstra(reference)
    first, second = align(a, b)
    mcd = 20 / math.log(10) * (a[first] - b[second]).norm(dim=1).mean()
    cents = 1200 * torch.log2(pitch(wav)[first] / pitch(reference)[second])
    cents = cents[~cents.isnan()]
    f0 = float(cents.square().mean().sqrt()) if len(cents) else None
    return {"mcd": float(mcd), "f0": f0, "duration": len(wav) / len(reference)}


def stop_failure(wav: Tensor, ended_by: str = "stop", text: str = "", heard: str = "") -> str:
    """What is wrong with how speech [N] at 16 kHz ended, "" if nothing is.

    "empty" if there is no sound; "cap" or "silence" if that is what ended it, "silence" too if over 0.5 s of it follow the sound
    (40 dB below the loudest 10 ms); "cut" if the last words of `text` are missing from what a judge `heard`.
    """
    level = wav[: len(wav) // HOP * HOP].reshape(-1, HOP).square().mean(1).clamp(min=1e-12).log10() * 10  # dB [N // 160]
    if not len(level) or level.max() < -80:
        return "empty"
    if ended_by != "stop":
        return ended_by
    after = len(level) - 1 - int((level > level.max() - 40).nonzero()[-1])
    if after * HOP > SILENCE * SAMPLE_RATE:
        return "silence"
    return "cut" if text and jiwer.process_words(units(text), units(heard)).alignments[0][-1].type == "delete" else ""


def need(module: str, install: str):
    """An optional package. ModuleNotFoundError that says what to `install` with pip if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install {install}", name=error.name) from error


@cache
def _mel_distance(sample_rate):
    return vae_loss.MelDistance(sample_rate)


def reconstruction(wav: Tensor, reference: Tensor, sample_rate: int = SAMPLE_RATE) -> dict[str, float | None]:
    """What a vocoder lost, sample by sample: `wav` against the recording it was made from, both [N], in step with each other.

    Returns stoi (intelligibility, 0 … 1; None for less speech than it needs, 0.4 s), pesq (wide-band, 1 … 4.6; None where it finds
    no speech or a quarter of a second is not full, or without the package pesq, which has to be compiled), si_sdr (dB),
    mel (the training's multi-scale distance), pitch (share of the recording's voiced 10 ms frames that keep their pitch to within
    half a semitone; None without such frames). Raises ValueError for different lengths, ModuleNotFoundError without the extra
    "metrics".
    """
    if wav.shape != reference.shape or wav.ndim != 1:
        raise ValueError(f"waveforms [N] of one length are compared, not {list(wav.shape)} and {list(reference.shape)}: cut both alike")
    need("pystoi", METRICS)
    measures = need("torchmetrics.functional.audio", METRICS)
    wav, reference = wav.cpu().float(), reference.cpu().float()
    a, b = (audio.resample(x, sample_rate, SAMPLE_RATE) for x in (wav, reference))
    stoi = float(measures.short_time_objective_intelligibility(a, b, SAMPLE_RATE))
    return {
        "stoi": stoi if stoi > TOO_SHORT else None,
        "pesq": _pesq(measures, a, b),
        "si_sdr": float(measures.scale_invariant_signal_distortion_ratio(wav, reference)),
        "mel": float(_mel_distance(sample_rate)(wav[None, None], reference[None, None])),
        "pitch": _pitch_kept(a, b),
    }


def _pitch_kept(wav, reference):
    wanted = pitch(reference)
    voiced = ~wanted.isnan()
    cents = 1200 * torch.log2(pitch(wav) / wanted)[voiced]
    return float((cents.abs() < 50).float().mean()) if voiced.any() else None  # a frame no longer voiced, NaN, is not kept


def _pesq(measures, wav, reference):
    if importlib.util.find_spec("pesq") is None:
        return None
    package = importlib.import_module("pesq")
    try:
        return float(measures.perceptual_evaluation_speech_quality(wav, reference, SAMPLE_RATE, "wb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return None


# ---- a model on held-out texts -----------------------------------------------------------------------------------------


def pick_prompts(rows: Sequence[dict], pool: Sequence[dict], seconds: tuple[float, float] = (1.0, 3.0), seed: int = 0) -> list[dict]:
    """For each row one of `pool` by the same speaker in the same language, of some `seconds` and none of `rows`: its prompt.

    Raises ValueError naming a speaker without one.
    """
    taken = {(row["speaker"], row["text"]) for row in rows}
    by_voice = defaultdict(list)
    for row in pool:
        if seconds[0] <= row["seconds"] <= seconds[1] and (row["speaker"], row["text"]) not in taken:
            by_voice[row["speaker"], row["language"]].append(row)
    draw, prompts = random.Random(seed), []
    for row in rows:
        others = by_voice[row["speaker"], row["language"]]
        if not others:
            raise ValueError(f"no prompt for {row['speaker']} in {row['language']}: give a larger pool, or other seconds")
        prompts.append(draw.choice(others))
    return prompts


def evaluate(model, rows: Sequence[dict], judges, prompts: Sequence[dict] | None = None, seed: int = 0, **options) -> list[dict]:
    """Speak the texts of `rows` together and judge speech and true recordings alike.

    Args: model, with `generate`; rows of a corpus, whose recordings are the true renderings; judges, of `vox.judge.load` or
        `vox.hub_judges`; prompts, a row to clone for each of `rows`, by its speaker (`pick_prompts`); None: any voice;
        seed; options of `generate`.
    Returns a list of dictionaries, one per row: text, language, speaker, seed, heard, errors, units, true_heard, true_errors,
        stop and true_stop ("" or a failure), seconds, attempts; with prompts also sim and true_sim (cosine to the prompt), named
        and true_named (the speaker it is identified as, among those of all prompts), candidates (how many these are), mcd, f0
        and duration (see `compare`).
    Raises ValueError where prompts and rows do not match.
    """
    rows = list(rows)
    if prompts is not None and [row["speaker"] for row in prompts] != [row["speaker"] for row in rows]:
        raise ValueError("prompts must be one row for each row, by the same speaker")
    voice = {}
    if prompts is not None:
        rate = model.config.vae.sample_rate
        voice = {"prompt_wav": [corpus.wav(row, rate) for row in prompts], "prompt_text": [row["text"] for row in prompts]}
    speeches = model.generate([row["text"] for row in rows], seed=seed, **voice, **options)
    wavs = [audio.resample(speech.wav, speech.sample_rate, SAMPLE_RATE) for speech in speeches]
    truths = [corpus.wav(row, SAMPLE_RATE) for row in rows]
    table = []
    judged = zip(rows, speeches, wavs, judges.transcribe(wavs), truths, judges.transcribe(truths), strict=True)
    for row, speech, wav, heard, truth, true_heard in judged:
        text = row["text"]
        line = {name: row[name] for name in ("text", "language", "speaker")} | {"seed": seed}
        line |= {"heard": heard, "errors": errors(text, heard)[0], "units": errors(text, heard)[1]}
        line |= {"true_heard": true_heard, "true_errors": errors(text, true_heard)[0]}
        line |= {"stop": stop_failure(wav, speech.stats["ended_by"], text, heard)}
        line |= {"true_stop": stop_failure(truth, "stop", text, true_heard)}
        table.append(line | {"seconds": speech.seconds, "attempts": speech.stats["attempts"]})
    if prompts is not None:
        _judge_voices(table, rows, prompts, wavs, truths, judges)
    return table


def _judge_voices(table, rows, prompts, wavs, truths, judges):
    """Add what is known of the voices to the table of `evaluate`."""
    prompt_voices, spoken, true = (judges.embed(each) for each in ([corpus.wav(row, SAMPLE_RATE) for row in prompts], wavs, truths))
    by_speaker = defaultdict(list)
    for row, vector in zip(rows, prompt_voices, strict=True):
        by_speaker[row["speaker"]].append(vector)
    enrolled = {speaker: F.normalize(torch.stack(vectors).mean(0), dim=0) for speaker, vectors in by_speaker.items()}
    columns = {
        "sim": (spoken * prompt_voices).sum(1).tolist(),
        "true_sim": (true * prompt_voices).sum(1).tolist(),
        "named": identify(spoken, enrolled),
        "true_named": identify(true, enrolled),
    }
    for k, line in enumerate(table):
        line |= {name: column[k] for name, column in columns.items()} | {"candidates": len(enrolled)}
        heard = line["stop"] != "empty"
        line |= compare(wavs[k], truths[k]) if heard else {"mcd": None, "f0": None, "duration": 0.0}


def summarise(table: list[dict], seed: int = 0) -> dict[str, Figure]:
    """The table of `evaluate`, or several joined (seeds), as {name: Figure}.

    error_rate and true_error_rate of each language, e.g. "error_rate cmn"; stop_failures and true_stop_failures; and, with
    prompts, sim, true_sim, identified, true_identified, identified_by_chance, mcd, f0, duration. What is true_ is the judge's own
    figure on the true recordings. The intervals of error rates and of sim, mcd, f0 and duration draw whole texts, with all their
    seeds; those of stop_failures and identified count every line, so with several seeds of one text they are somewhat too narrow.
    """
    texts = defaultdict(list)
    for line in table:
        texts[line["language"], line["text"], line["speaker"]].append(line)
    figures = {}
    for language in sorted({line["language"] for line in table}):
        groups = [lines for (spoken, *_), lines in texts.items() if spoken == language]
        for prefix in ("", "true_"):
            counts = [[sum(line[f"{prefix}errors"] for line in lines), sum(line["units"] for line in lines)] for lines in groups]
            figures[f"{prefix}error_rate {language}"] = _ratio(counts, seed)
    for prefix in ("", "true_"):
        figures[f"{prefix}stop_failures"] = share([line[f"{prefix}stop"] != "" for line in table])
    if "sim" in table[0]:
        for name in ("sim", "true_sim", "mcd", "f0", "duration"):
            groups = [[line[name] for line in lines if line[name] is not None] for lines in texts.values()]
            means = [float(np.mean(values)) for values in groups if values]
            if means:
                figures[name] = mean(means, seed)
        for prefix in ("", "true_"):
            figures[f"{prefix}identified"] = share([line[f"{prefix}named"] == line["speaker"] for line in table])
        chance = 1 / table[0]["candidates"]
        figures["identified_by_chance"] = Figure(chance, chance, chance, len(table))
    return figures
