"""Speech corpora as `datasets.Dataset`: synthetic ones and your own speech (paper §4.1 describes the real thing).

Notable choices
- `load` gives rows of audio (the bytes of a file, or its path), text, speaker, language and seconds; `wav(row)` decodes one row.
  Decoding is left to soundfile, so `datasets` needs no audio codec of its own;
- "numbers" (cardinals, clock times and dates written as words), "words" (the same words in random order) and "sentences" (drawn from
  a grammar) are rendered on the spot by espeak-ng, in English and Mandarin. Texts are split by a hash and voices by variant; both
  splits are fixed, whatever the `seed`;
- every corpus is checked and written once, as Parquet, to a cache folder named by a hash of all that matters; the folder appears
  under its name when it is complete, so a killed build leaves nothing half-made;
- real speech is read once when it is first loaded. A row that cannot be used is left out, a file of another rate or with several
  channels is converted by `wav`; both are warned of and listed in `report.jsonl` beside the cached rows.
"""

import collections.abc
import concurrent.futures.process
import contextlib
import csv
import functools
import glob
import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import types
import warnings
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import torch
from filelock import FileLock
from tqdm import tqdm

from vox import audio, espeak, phrases, sentences
from vox.espeak import reference, render, speakers, voices
from vox.files import cache_folder, cores
from vox.phrases import LANGUAGES, SPLITS, split_of, texts

__all__ = ["load", "reference", "render", "speakers", "split_of", "texts", "voices", "wav"]

VERSION, REAL_VERSION = 1, 2  # of synthetic and of real speech: raise it whenever the same settings would give other rows
DRAWS = {"numbers": phrases.draw, "voices": phrases.draw, "words": phrases.draw_words, "sentences": sentences.draw}  # what is synthesised
HOURS = {"train": 10.0, "validation": 0.5, "test": 0.5}
SOUNDS = (".wav", ".flac", ".mp3")
MIN_SECONDS = 0.2  # about one patch of the released model
MIN_PEAK = 1e-3  # −60 dB below full scale: nothing to hear
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
FEATURES = datasets.Features(
    audio=datasets.Audio(decode=False),
    text=datasets.Value("string"),
    speaker=datasets.Value("string"),  # "" where it is not known
    language=datasets.Value("string"),
    seconds=datasets.Value("float32"),
)


def load(name: str, split: str = "train", hours: float | None = None, seed: int = 0, cache=None, sample_rate: int = 16000):
    """A speech corpus: a `datasets.Dataset` with columns audio ({"bytes", "path"}), text, speaker, language, seconds.

    name: "numbers", the synthetic corpus: train (seen voices, training texts), validation (seen voices, held-out texts), test
        (unseen voices, other held-out texts), rendered at `sample_rate` Hz until `hours` are full (10, 0.5 and 0.5);
      "voices", the same with some 200 more variants in training, drawn at random: for learning to take over a voice;
      "words", the same words in random order: nothing but the text tells what comes next;
      "sentences", the same with an open vocabulary and punctuation, for preset "small";
      "folder:PATH", wav, flac and mp3 files with a .txt file beside each, or listed in PATH/metadata.csv (columns file_name and text);
      "manifest:FILE.jsonl", one {"audio": path, "text": …} per line; durations are measured, so "duration" is not needed;
      "hub:NAME", a dataset of the Hugging Face hub, or a local folder of that layout.
    Rows of a folder or manifest may say speaker, language and split; without a split they are training rows. `hours` limits real
    speech too. `cache` is the folder for finished corpora: data/cache here, or what the variable VOX_CACHE says.

    Raises ValueError for an unknown name, split or folder, and if no usable row is left; warns of rows left out, naming the files.
    """
    sources = {"folder": _folder, "manifest": _manifest, "hub": _hub}
    kind, _, place = name.partition(":")
    if kind not in sources | DRAWS or bool(place) == (kind in DRAWS):
        raise ValueError(f"unknown corpus {name!r}: use {', '.join(DRAWS)}, folder:PATH, manifest:FILE.jsonl or hub:NAME")
    if split not in SPLITS and kind != "hub":
        raise ValueError(f"unknown split {split!r}: use {', '.join(SPLITS)}")
    if hours is not None and not hours > 0:
        raise ValueError(f"hours must be positive, not {hours}")
    cache = Path(cache) if cache else cache_folder()
    if kind in DRAWS:
        settings, rows = _synthetic(kind, split, float(hours or HOURS[split]), seed, sample_rate)
    else:
        settings, rows = sources[kind](place, split, sample_rate, cache)
    settings |= {"kind": kind, "split": split, "version": VERSION if kind in DRAWS else REAL_VERSION}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"{kind}-{split}-{key}"
    _build(name, folder, settings, rows)
    _warn(name, folder)
    shards = [glob.escape(str(path)) for path in sorted(folder.glob("*.parquet"))]  # `datasets` takes paths for patterns
    data = datasets.Dataset.from_parquet(shards, cache_dir=str(folder / "arrow"))
    if kind not in DRAWS and hours:
        full = sum(total < hours * 3600 for total in itertools.accumulate(data["seconds"]))
        data = data.select(range(min(full + 1, len(data))))
    return data


def wav(row: dict, sample_rate: int = 16000) -> torch.Tensor:
    """The sound of one row: [N] float32 in [-1, 1], mono at `sample_rate` Hz. Raises ValueError naming a file that is gone or broken."""
    return audio.load(row["audio"]["bytes"] or row["audio"]["path"], sample_rate)


def _build(name, folder, settings, rows):
    """Write `rows` to Parquet files in `folder`, unless it is there. They are pairs (row or None, what is to report or None)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):  # one process builds, the others wait for it
        if folder.is_dir():
            return
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)  # of a build that was killed
        aside.mkdir()
        try:
            kept, report = 0, []
            good = _sorted_out(rows, report)
            for shard, part in enumerate(iter(lambda: list(itertools.islice(good, 1024)), [])):
                table = pyarrow.Table.from_pylist(part, schema=FEATURES.arrow_schema)
                pyarrow.parquet.write_table(table, aside / f"{shard:05d}.parquet", row_group_size=128, compression="none")
                kept += len(part)
            if not kept:
                raise ValueError(f"{name} holds no usable row: {_summary(report)}")
            lines = "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in report)
            (aside / "report.jsonl").write_text(lines, encoding="utf-8", errors="backslashreplace")
            (aside / "settings.json").write_text(json.dumps(settings | {"rows": kept}, indent=2, ensure_ascii=False), encoding="utf-8")
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _sorted_out(rows, report):
    for row, problem in rows:
        if problem:
            report.append(problem)
        if row:
            yield row


def _summary(report):
    out = [problem["problem"] for problem in report if not problem["kept"]]
    converted = [problem["problem"] for problem in report if problem["kept"]]
    lines = [f"{len(out)} left out, {len(converted)} converted when read", *out[:5], *converted[:5]]
    return "\n  ".join(lines + ["…"] * (len(lines) <= len(report)))


def _warn(name, folder):
    path = folder / "report.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # splitlines() would also break at U+2028, which JSON lets stand in a name
    report = [json.loads(line) for line in lines]
    if report:
        warnings.warn(f"{name}: {_summary(report)}\nall listed in {path}", stacklevel=3)


# ---------------------------------------------------------------- the synthetic corpora


def _synthetic(kind, split, hours, seed, sample_rate):
    settings = {"hours": hours, "seed": seed, "sample_rate": sample_rate, "espeak": importlib.metadata.version("espeakng-loader")}
    return settings, _rendered(_draws(split, seed, kind), split, hours * 3600, sample_rate)


def _draws(split, seed, kind="numbers"):
    """Endless (text, language, speaker): both languages equally often, and every speaker."""
    draw = random.Random(f"{split} {seed}")
    crowd = speakers(split) + espeak.drawn_speakers() * (kind == "voices" and split == "train")
    while True:
        language = draw.choice(LANGUAGES)
        text = DRAWS[kind](draw, language, split)
        yield text, language, draw.choice(crowd)


def _rendered(draws, split, target, sample_rate):
    """Rows of a synthetic corpus until `target` seconds are full, in the order of the draws."""
    chunks = iter(lambda: list(itertools.islice(draws, 64)), [])
    workers = 1 if target < 600 else min(cores(), 8)  # starting processes takes longer than rendering ten minutes
    rendered = _parallel(functools.partial(espeak.render_rows, sample_rate=sample_rate), chunks, workers)
    total = 0.0
    with tqdm(total=round(target), unit=" s of speech", desc=f"rendering {split}") as bar:
        for index, (text, language, speaker, sound, seconds) in enumerate(itertools.chain.from_iterable(rendered)):
            sound = {"bytes": sound, "path": f"{split}-{index:06d}.flac"}
            yield {"audio": sound, "text": text, "speaker": speaker, "language": language, "seconds": seconds}, None
            total += seconds
            bar.update(min(int(total), bar.total) - bar.n)
            if total >= target:
                return


def _parallel(function, chunks, workers):
    """`map` over endless `chunks`, in order, by worker processes that stay a few chunks ahead."""
    if workers == 1:
        yield from map(function, chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    with concurrent.futures.ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        try:
            with _no_main():
                pending = collections.deque(pool.submit(function, next(chunks)) for _ in range(2 * workers))
            while True:
                yield pending.popleft().result()
                pending.append(pool.submit(function, next(chunks)))
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RuntimeError("a rendering process died, perhaps for want of memory: close other programs and run again") from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _no_main():
    """Processes started meanwhile do not run the user's script again, so a script needs no `if __name__ == "__main__":` to call `load`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ---------------------------------------------------------------- real speech


def _entry(row, file, text, source, **more):
    """One utterance before it is read: `source` says where its text stands, for messages."""
    labels = {key: "" if row.get(key) is None else str(row[key]) for key in ("speaker", "language", "split")}  # 0 is a label, too
    return {"file": file, "text": text, "source": source} | labels | more


def _decoded(path):
    """A text file's content; what is not UTF-8 is kept as surrogates, for `_checked` to find row by row."""
    return path.read_bytes().decode("utf-8-sig", "surrogateescape")


def _folder(place, split, sample_rate, cache):
    root = Path(place).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"folder:{place}: there is no such folder, check the path")
    sounds = sorted(path for path in root.rglob("*") if path.suffix.lower() in SOUNDS)
    listing = root / "metadata.csv"
    entries = _listed(listing, sounds) if listing.is_file() else [_beside(sound) for sound in sounds]
    return _real(f"folder:{place}", entries, split, sample_rate)


def _beside(sound):
    text = sound.with_suffix(".txt")
    if not text.is_file():
        return {"file": str(sound), "problem": f"{sound} has no {text.name} beside it: write there what it says"}
    return _entry({}, str(sound), _decoded(text), str(text))


def _listed(listing, sounds):
    rows, entries, last = csv.reader(io.StringIO(_decoded(listing), newline="")), [], 0
    try:
        names, last = next(rows, []), rows.line_num
        column = next((name for name in TEXT_COLUMNS if name in names), None)
        if "file_name" not in names or not column:
            raise ValueError(f"{listing} needs a first line with file_name and text, separated by commas; it has {names}")
        for cells in rows:
            first, last = last + 1, rows.line_num
            if not cells:
                continue
            row = dict(zip(names, cells, strict=False))
            entry = _entry(row, str(listing.parent / row.get("file_name", "")), row.get(column), f"{listing} line {last}")
            if first < last:  # a quote that nothing closes swallows the rows after it
                problem = f"{listing} lines {first} to {last} are read as one row: close the quote in line {first}, keep a text on one line"
                entry = {"file": entry["file"], "problem": problem}
            entries.append(entry)
    except csv.Error as error:
        raise ValueError(f"{listing} line {last + 1} cannot be read ({error}): close the quote that opens there") from error
    known = {entry["file"] for entry in entries}
    lost = [str(sound) for sound in sounds if str(sound) not in known]
    return entries + [{"file": file, "problem": f"{file} has no line in {listing.name}: add one with its text"} for file in lost]


def _manifest(place, split, sample_rate, cache):
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"manifest:{place}: there is no such file, check the path")
    entries = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        source = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file = path.parent / row["audio"]  # an absolute path stays what it is
            entries.append(_entry(row, str(file if os.path.exists(file) else Path(row["audio"])), row.get("text"), source))
        except (ValueError, KeyError, TypeError):
            problem = f'{source} is not of the form {{"audio": "a.wav", "text": "what it says"}}: correct it'
            entries.append({"file": source, "problem": problem})
    return _real(f"manifest:{place}", entries, split, sample_rate)


def _real(name, entries, split, sample_rate):
    """Settings and rows of the entries of a split. A changed file or text gives other settings, so the rows are made anew."""
    chosen = [entry for entry in entries if (entry.get("split") or "train") == split]
    if not chosen:
        found = ", ".join(sorted({entry.get("split") or "train" for entry in entries})) or "no sound at all"
        raise ValueError(f"{name} has no {split} rows, only {found}: rows without a split are training rows, give some the split {split!r}")
    stamps = [(os.stat(e["file"]).st_size, os.stat(e["file"]).st_mtime_ns) if os.path.exists(e["file"]) else None for e in chosen]
    content = json.dumps([chosen, stamps], sort_keys=True)
    settings = {"name": name, "files": hashlib.sha256(content.encode()).hexdigest(), "sample_rate": sample_rate}
    return settings, _read(name, chosen, sample_rate)


def _hub(place, split, sample_rate, cache):
    folder = str(Path(place).resolve())
    if os.path.isdir(folder) and glob.escape(folder) != folder:  # `datasets` would read other folders that fit the pattern
        raise ValueError(f"hub:{place} is a folder with [, * or ? in its path {folder}: rename it")
    try:
        data = datasets.load_dataset(place, split=split, cache_dir=str(cache / "hub"))
        data = data.cast_column("audio", datasets.Audio(decode=False))
    except Exception as error:  # of many kinds: no network, no such dataset, no such split, no column "audio"
        root = error
        while root.__cause__:  # the first may say no more than that an error occurred
            root = root.__cause__
        why = f"{error}" if root is error else f"{error}; {type(root).__name__}: {root}"
        raise ValueError(f"hub:{place} cannot be loaded ({why}): check the name, the split {split!r} and the network") from error
    column = next((name for name in TEXT_COLUMNS if name in data.column_names), None)
    if not column:
        raise ValueError(f"hub:{place} needs a column named {' or '.join(TEXT_COLUMNS)}; it has {', '.join(data.column_names)}")
    settings = {"name": place, "fingerprint": data._fingerprint, "sample_rate": sample_rate}
    return settings, _read(f"hub:{place}", _HubEntries(place, data, column), sample_rate)


class _HubEntries(collections.abc.Sequence):
    """The rows of a `datasets.Dataset` as entries, one at a time: all its sound may not fit into memory."""

    def __init__(self, place, data, column):
        self.place, self.data, self.column = place, data, column

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        row = self.data[index]
        sound = row["audio"] or {"bytes": None, "path": None}
        file = f"hub:{self.place} row {index}" + (f" ({sound['path']})" if sound["path"] else "")
        if not (sound["bytes"] or sound["path"]):
            return {"file": file, "problem": f"{file} has no audio: leave it out of the dataset"}
        return _entry(row, file, row[self.column], file, sound=sound)


def _read(name, entries, sample_rate):
    for entry in tqdm(entries, desc=f"reading {name}"):
        yield _checked(entry, sample_rate)


def _foreign(text):
    """Whether a text held bytes that are not UTF-8, which Python keeps as surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _checked(entry, sample_rate):
    """(row or None, what is to report or None) for one entry of a real corpus."""
    file, text = entry["file"], entry.get("text")
    sound = entry.get("sound") or {"bytes": None, "path": file}
    try:
        if "problem" in entry:
            raise ValueError(entry["problem"])
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file} has no text in {entry['source']}: write there what it says")
        if any(map(_foreign, (text, entry["speaker"], entry["language"]))):
            raise ValueError(f"{entry['source']} is not UTF-8 (the text of {file}): save it as UTF-8")
        if _foreign(file):
            raise ValueError(f"{file} has a name that is not UTF-8: rename it")
        samples, rate = audio.read(sound["bytes"] or sound["path"], file)
        seconds, peak = samples.shape[1] / rate, float(samples.abs().max())
        if peak < MIN_PEAK:
            raise ValueError(f"{file} is silent (its peak is {peak:.1e}): record it again or leave it out")
        if seconds < MIN_SECONDS:
            raise ValueError(f"{file} lasts {seconds:.3f} s, too short: an utterance needs {MIN_SECONDS} s")
    except (ValueError, OSError) as error:
        problem = f"{file} cannot be opened ({error.strerror}): check the path" if isinstance(error, OSError) else str(error)
        return None, {"file": file, "problem": problem, "kept": False}
    row = {"audio": sound, "text": text.strip(), "seconds": seconds, "speaker": entry["speaker"], "language": entry["language"]}
    if rate == sample_rate and len(samples) == 1:
        return row, None
    form = f"{file} has {len(samples)} channel{'s' * (len(samples) > 1)} at {rate} Hz: read as mono at {sample_rate} Hz"
    return row, {"file": file, "problem": form, "kept": True}
