"""The synthesiser behind the default corpus: espeak-ng, called through ctypes from the `espeakng-loader` wheel.

Notable choices
- `render` is a pure function: the same text, voice and settings give the same samples, whatever was spoken before. espeak-ng
  carries state from one utterance to the next (flutter, breath and echo run on), and nothing in its interface resets
  that, so every call loads the library afresh and unloads it again. It costs 2 ms and buys a true rendering of any text later;
- the library is not thread-safe: render in one thread per process;
- a speaker is a variant with one choice of pitch, pitch range and rate, written "f2-40-60-175". Variants are split into seen and
  unseen ones before settings are drawn, so all settings of a variant stand on one side;
- variants that sound alike are dropped by a measurement that ships with the list it gave (`near_duplicates`);
- espeak-ng tells when each word and each phone begins. It tells it of its own output, so `render` moves these marks along when it
  resamples and trims: labels in time that no aligner had to guess;
- sixty variants are too few to learn from that voices differ: a model knows each of them and need not listen to a prompt. So
  corpus "voices" has drawn variants, too, whose formants, pitch and noises come from a generator seeded by their name
  ("drawn017"); those that sound like an unseen variant are left out (`near_unseen`).
"""

import _ctypes
import atexit
import contextlib
import ctypes
import functools
import hashlib
import itertools
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from einops import rearrange

from vox import audio
from vox.files import cache_folder

RATE, PITCH, RANGE = 1, 3, 4  # numbers of espeak_PARAMETER
SYNCHRONOUS, UTF8, DONT_EXIT, TELL_PHONES = 2, 1, 0x8000, 0x0003  # phones come in IPA
MARKS = {1: "word", 7: "phone"}  # numbers of espeak_EVENT_TYPE that are told
FILES = {"en-us": "gmw/en-US", "cmn": "sit/cmn"}  # a language's file under espeak-ng-data/lang: found without a search of all
VARIANTS = "voices/!v"  # where their files lie in the data folder


class _Event(ctypes.Structure):
    """espeak_EVENT: what begins at which sample. A phone stands in `name`; a word is known by where it begins in the text."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_uint), ("position", ctypes.c_int), ("length", ctypes.c_int)]
    _fields_ += [("milliseconds", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("name", ctypes.c_char * 8)]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Mark(NamedTuple):
    """Something begins: at which second, "word" or "phone", and which: the word's first character in the text (0 …), or the phone
    in IPA, "" for a pause."""

    second: float
    kind: str
    what: int | str


@functools.cache
def variants() -> tuple[str, ...]:
    """Names of the voice variants that come with the package, sorted: ("Alex", …, "zac")."""
    return tuple(sorted(path.name for path in (Path(espeakng_loader.get_data_path()) / VARIANTS).iterdir()))


DRAWN = tuple(f"drawn{number:03d}" for number in range(240))


def variant_file(name: str) -> str:
    """A drawn variant in espeak-ng's format: a vocal tract, a larynx and some bad habits. The same name gives the same voice.

    Shares of frequency, strength and width are per cent of the language's own; formants above the third shape the timbre only.
    """
    draw = random.Random(name)
    low = math.exp(draw.uniform(math.log(65), math.log(230)))  # Hz, of the lowest pitch
    tract = draw.uniform(86, 126) if low > 120 else draw.uniform(82, 112)  # higher voices tend to come from shorter tracts
    tilt = draw.uniform(-12, 6)  # strength of each formant against the one below it
    lines = ["language variant", f"name {name}", f"pitch {low:.0f} {low * draw.uniform(1.15, 1.6):.0f}"]
    for formant in range(9):
        frequency = tract * draw.uniform(0.92, 1.08)
        strength = min(140, max(20, 100 + tilt * formant + draw.uniform(-15, 15)))
        lines.append(f"formant {formant} {frequency:.0f} {strength:.0f} {draw.uniform(75, 170):.0f}")
    lines += [f"flutter {draw.uniform(0, 8):.0f}", f"roughness {draw.choice((0, 0, 1, 2, 3))}"]
    lines += [f"voicing {draw.uniform(60, 130):.0f}", f"consonants {draw.uniform(60, 130):.0f} {draw.uniform(60, 130):.0f}"]
    if draw.random() < 0.2:
        lines.append("breath " + " ".join(str(draw.randint(0, 4)) for _ in range(8)))
    if draw.random() < 0.15:
        lines.append(f"echo {draw.randint(20, 140)} {draw.randint(5, 25)}")
    if draw.random() < 0.12:
        lines.append(f"klatt {draw.randint(1, 5)}")
    return "\n".join(lines) + "\n"


@functools.cache
def _short(path: str) -> str:
    """A data folder's path. espeak-ng's buffer holds 160 bytes of it; a longer one gets a short name for this process."""
    if len(path.encode()) < 160:
        return path
    folder = tempfile.mkdtemp(prefix="vox-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder, "espeak-ng-data")
    link.symlink_to(path)
    return str(link)


@functools.cache
def _drawn_files() -> dict[str, str]:
    return {name: variant_file(name) for name in DRAWN}


def _drawn_data() -> Path:
    """A folder in the cache: links to the synthesiser's data, of its languages only ours, and all drawn variants.

    espeak-ng lists all files of languages and variants and takes no more than 350: drawn ones do not fit beside its own.
    """
    source, files = Path(espeakng_loader.get_data_path()), _drawn_files()
    key = hashlib.sha256(f"{source} {files}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"espeak-{key}" / "espeak-ng-data"
    if folder.is_dir():
        return folder
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".espeak-", dir=folder.parent.parent))
    try:
        data = aside / "espeak-ng-data"
        (data / VARIANTS).mkdir(parents=True)
        shared = [path.name for path in source.iterdir() if path.is_file()]
        for name in (*shared, *(f"lang/{language}" for language in FILES.values())):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).symlink_to(source / name)
        for name, text in files.items():
            (data / VARIANTS / name).write_text(text)
        with contextlib.suppress(OSError):  # another process was faster, and its folder is the same
            aside.rename(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def synthesise(
    text: str, language: str, variant: str, pitch: int = 50, range: int = 50, rate: int = 175, marks: list[Mark] | None = None
) -> tuple[torch.Tensor, int]:
    """espeak-ng's own output: ([N] float32 in [-1, 1], its rate in Hz, 22050).

    `pitch` and `range` (of the pitch) run from 0 to 99, `rate` is in words per minute, 80 to 450. A list `marks` is filled with
    what begins when. Raises ValueError for an unknown language or variant, settings outside these ranges, and text without
    anything to say.
    """
    if language not in FILES:
        raise ValueError(f"unknown language {language!r}: use one of {', '.join(FILES)}")
    if variant not in variants() and variant not in DRAWN:
        raise ValueError(f"unknown voice variant {variant!r}: use one of {', '.join(variants())}, {DRAWN[0]} to {DRAWN[-1]}")
    if not (0 <= pitch <= 99 and 0 <= range <= 99 and 80 <= rate <= 450):
        raise ValueError(f"pitch and range lie in 0..99 and rate in 80..450, not {pitch}, {range} and {rate}")
    chunks, told = [], []

    @_Callback
    def collect(samples, count, events):
        if count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        for event in itertools.takewhile(lambda event: event.type, (events[k] for k in itertools.count())) if events else ():
            told.append((event.type, event.sample, event.position, event.name))
        return 0

    data = _short(str(_drawn_data() if variant in DRAWN else espeakng_loader.get_data_path()))
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        hertz = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DONT_EXIT | TELL_PHONES)
        if hertz <= 0:
            raise RuntimeError("espeak-ng did not start: reinstall espeakng-loader")
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(f"{FILES[language]}+{variant}".encode()):
            raise RuntimeError(f"espeak-ng refused the voice {language}+{variant}: reinstall espeakng-loader")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        ctypes.CDLL(None).srand(0)  # the breath of the Klatt voices draws from the C library
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    samples = np.frombuffer(b"".join(chunks), np.int16)
    if not samples.any():
        raise ValueError(f"espeak-ng has nothing to say for {text!r}: write it in words of {language}")
    if marks is not None:
        whats = ((kind, at, place - 1 if MARKS[kind] == "word" else name.decode()) for kind, at, place, name in told if kind in MARKS)
        marks += [Mark(at / hertz, MARKS[kind], what) for kind, at, what in whats]
    return torch.from_numpy(samples / np.float32(32768)), hertz


def render(
    text: str,
    voice: str,
    pitch: int = 50,
    range: int = 50,
    rate: int = 175,
    sample_rate: int = 16000,
    marks: list[Mark] | None = None,
) -> torch.Tensor:
    """`text` in a voice such as "en-us+f2": [N] float32 at `sample_rate` Hz, trimmed and level-normalised.

    This is how the corpus is made, so it is the true rendering of a held-out text. Settings, marks and errors as in `synthesise`;
    a mark's second counts from the first sample of what is returned.
    """
    language, _, variant = voice.partition("+")
    told = [] if marks is None else marks
    wav, hertz = synthesise(text, language, variant, pitch, range, rate, told)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, sums are taken in another order and last bits differ
    try:
        wav = audio.resample(wav, hertz, sample_rate)
        first, last = audio.ends(wav, sample_rate)
        told[:] = [mark._replace(second=mark.second - first / sample_rate) for mark in told]
        return audio.loudness_normalise(wav[first:last])
    finally:
        torch.set_num_threads(threads)


# What `near_duplicates()` returned for espeakng-loader 0.2.4: variant → the kept variant that sounds like it (a slow test measures again)
DUPLICATES = dict(
    pair.split(":")
    for pair in (
        "Gene2:Gene Henrique:Diogo Hugo:Diogo adam:Reed anikaRobot:anika edward2:benjamin fast:croak iven3:iven2 klatt2:klatt "
        "klatt5:klatt4 klatt6:Reed michel:Diogo miguel:Diogo robert:rob robosoft3:robosoft2 robosoft5:robosoft4 steph2:steph steph3:steph"
    ).split()
)
UNSEEN = 24  # variants kept for the test split
SETTINGS = 8  # speakers per variant that comes with the package
FEW = 4  # speakers per drawn variant
NEAR_UNSEEN = frozenset(("drawn002", "drawn042", "drawn235"))  # what `near_unseen()` returned; a slow test measures again


@functools.cache
def voices(split: str = "train") -> tuple[str, ...]:
    """Voice variants of a split, sorted. "train" and "validation" share the seen ones; "test" has 24 that neither contains.

    Raises ValueError for another split.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}: use train, validation or test")
    distinct = [variant for variant in variants() if variant not in DUPLICATES]
    shuffled = sorted(distinct, key=lambda variant: hashlib.sha256(variant.encode()).digest())
    return tuple(sorted(shuffled[:UNSEEN] if split == "test" else shuffled[UNSEEN:]))


@functools.cache
def speakers(split: str = "train") -> tuple[str, ...]:
    """Speakers of a split: every variant of `voices(split)` with 8 settings, e.g. "f2-40-60-175" for pitch 40, range 60, rate 175."""
    return tuple(name for variant in voices(split) for name in settings(variant, SETTINGS))


@functools.cache
def drawn_speakers() -> tuple[str, ...]:
    """Speakers of the drawn variants, each with 4 settings; variants that sound like an unseen one are left out. For training only."""
    return tuple(name for variant in DRAWN if variant not in NEAR_UNSEEN for name in settings(variant, FEW))


def settings(variant: str, count: int) -> list[str]:
    """Speakers of a variant. They do not depend on which other variants there are."""
    draw = random.Random(variant)
    return [f"{variant}-{draw.randint(30, 70)}-{draw.randint(30, 70)}-{draw.randint(150, 200)}" for _ in range(count)]


def reference(text: str, language: str, speaker: str, sample_rate: int = 16000, marks: list[Mark] | None = None) -> torch.Tensor:
    """The true rendering of any text ("en-us" or "cmn") by a speaker of the corpus: [N] float32, as `render` gives it.

    For a row's own text, language and speaker these are the row's samples. `marks` as in `render`. Raises ValueError as `synthesise`
    does, and for a speaker that is not of the form "f2-40-60-175".
    """
    variant, *settings = speaker.rsplit("-", 3)
    if len(settings) != 3 or not all(number.isdecimal() for number in settings):
        raise ValueError(f"speaker {speaker!r} is not of the form variant-pitch-range-rate, for example f2-40-60-175")
    pitch, range, rate = map(int, settings)
    return render(text, f"{language}+{variant}", pitch, range, rate, sample_rate, marks)


def render_rows(rows: list[tuple[str, str, str]], sample_rate: int) -> list[tuple[str, str, str, bytes, float]]:
    """(text, language, speaker) → the same with the bytes of a flac file and its seconds: what a worker process of the corpus does."""
    done = []
    for text, language, speaker in rows:
        wav = reference(text, language, speaker, sample_rate)
        done.append((text, language, speaker, audio.encode(wav, sample_rate, "flac"), len(wav) / sample_rate))
    return done


PROBES = (("en-us", "four hundred and twelve"), ("cmn", "下午三点二十五分"))
PITCHES = (30, 50, 70)


def timbre(variant: str) -> torch.Tensor:
    """How a variant sounds at three pitches: mel cepstra [3, 19, 200] of an English and a Mandarin phrase, 100 frames each."""
    basis = torchaudio.functional.create_dct(20, 40, norm="ortho")[:, 1:]  # [40 bands, 19]; the first cepstrum is loudness
    pitches = []
    for pitch in PITCHES:
        phrases = [audio.mel(render(text, f"{language}+{variant}", pitch), 16000, 1024, 160, 40) for language, text in PROBES]
        cepstra = [basis.T @ phrase for phrase in phrases]  # [19, frames]
        pitches.append(torch.cat([F.interpolate(c[None], 100, mode="linear")[0] for c in cepstra], 1))  # [19, 200]
    return torch.stack(pitches)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mel-cepstral distances in dB between timbres [..., 3, 19, 200], every pitch of one with every pitch of the other: [..., 3, 3]."""
    a, b = rearrange(a, "... pitch c t -> ... pitch 1 c t"), rearrange(b, "... pitch c t -> ... 1 pitch c t")
    return 10 * math.sqrt(2) / math.log(10) * (a - b).square().sum(-2).sqrt().mean(-1)  # [..., 3, 3, 19, 200] -> [..., 3, 3]


def yardstick(timbres: torch.Tensor) -> torch.Tensor:
    """How much a variant changes with its pitch: the median over timbres [variants, 3, 19, 200] and pairs of pitches, in dB (0-d)."""
    apart = list(itertools.combinations(range(len(PITCHES)), 2))
    return torch.cat([distance(timbres, timbres)[:, i, j] for i, j in apart]).median()


def near_duplicates() -> dict[str, str]:
    """Measures which variants to drop, in about 10 s: {dropped variant: the kept one nearest to it}.

    A variant changes when its pitch does; the median of that change is the yardstick. Going through the variants in order,
    one is dropped if at some pitch it lies nearer to a kept one than a variant lies to itself at another pitch.
    """
    timbres = {variant: timbre(variant) for variant in variants()}
    everything = torch.stack(list(timbres.values()))  # [variants, 3, 19, 200]
    limit = yardstick(everything)
    kept, dropped = [], {}
    for variant, sound in timbres.items():
        nearest = min(kept, key=lambda other: distance(sound, timbres[other]).min(), default=None)
        if nearest and distance(sound, timbres[nearest]).min() < limit:
            dropped[variant] = nearest
        else:
            kept.append(variant)
    return dropped


def near_unseen() -> frozenset[str]:
    """Measures which drawn variants to leave out, in about 30 s: those nearer to an unseen one than the yardstick."""
    natural = torch.stack([timbre(variant) for variant in variants()])  # [variants, 3, 19, 200]
    limit = yardstick(natural)
    unseen = torch.stack([timbre(variant) for variant in voices("test")])
    return frozenset(name for name in DRAWN if distance(timbre(name), unseen).min() < limit)
