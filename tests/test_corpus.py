"""The numbers corpus (texts, voices, rendering, cache) and real speech through the same door."""

import calendar
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch

from vox import audio, corpus, espeak, phrases
from vox.text import DIGITS, CharTokenizer

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}  # for scripts in other folders
LITTLE = 40 / 3600  # hours: 40 seconds of speech


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def pitch_of(wav):
    """Median F0 in Hz of the loud frames of a 16 kHz waveform, by autocorrelation."""
    frames = wav.unfold(0, 1024, 512)  # [frames, 1024]
    frames = frames[frames.square().mean(1) > 0.3 * frames.square().mean(1).max()]
    power = torch.fft.rfft(frames - frames.mean(1, keepdim=True), 2048).abs().square()
    lags = torch.fft.irfft(power)[:, 40:250]  # 64 to 400 Hz
    return float(16000 / (lags.argmax(1) + 40).float().median())


# ---------------------------------------------------------------- texts


def test_splits_share_no_text_and_hold_out_a_tenth():
    for language in phrases.LANGUAGES:
        parts = [set(corpus.texts(language, split)) for split in phrases.SPLITS]
        assert sum(map(len, parts)) == len(set.union(*parts)) > 20000
        assert 0.04 < len(parts[1]) / sum(map(len, parts)) < 0.06 and 0.04 < len(parts[2]) / sum(map(len, parts)) < 0.06
        for split, part in zip(phrases.SPLITS, parts, strict=True):
            assert {corpus.split_of(text) for text in part} == {split}
            assert all(len(kind) >= 40 for kind in phrases.kinds(language, split))  # every kind is in every split


def test_texts_are_the_right_words():
    english = {text for split in phrases.SPLITS for text in corpus.texts("en-us", split)}
    mandarin = {text for split in phrases.SPLITS for text in corpus.texts("cmn", split)}
    assert {
        *("zero", "four hundred and twelve", "nine thousand nine hundred and ninety nine"),
        *("three o'clock", "half past two", "quarter to one", "one minute past nine", "twenty past twelve", "seven minutes to eleven"),
        *("twelve oh five at night", "three twenty five in the afternoon", "eight o'clock in the evening"),
        *("march third", "the thirty first of december", "the twenty second of may", "february twenty ninth"),
    } <= english
    assert {
        *("零", "十二", "四百一十二", "两千零六", "九千九百九十九"),
        *("下午三点二十五分", "凌晨零点零五分", "中午十二点整", "两点半", "二十二点一刻", "上午十点三刻"),
        *("三月三日", "十二月三十一号", "二月二十九日"),
    } <= mandarin
    years = ("nineteen hundred", "twenty ten", "two thousand and seven", "two thousand", "nineteen oh five")
    assert all(any(text.endswith(f" {year}") for text in english) for year in years)
    assert all(any(text.startswith(year) for text in mandarin) for year in ("一九零零年", "二零零七年", "二零一零年"))
    leap_days = [text for text in mandarin if re.search("年二月二十九", text)]
    assert leap_days and all(calendar.isleap(int("".join(str(DIGITS.index(digit)) for digit in text[:4]))) for text in leap_days)
    assert not any(character.isdigit() and character.isascii() for text in english | mandarin for character in text)


def test_the_character_tokenizer_spells_every_text():
    tokenizer = CharTokenizer()
    for language in phrases.LANGUAGES:
        characters = "".join(sorted(set("".join(text for split in phrases.SPLITS for text in corpus.texts(language, split)))))
        assert tokenizer.decode(tokenizer.encode(characters.strip())) == characters.strip()


def test_unknown_languages_and_splits_are_refused():
    with pytest.raises(ValueError, match="'de'.*en-us or cmn"):
        corpus.texts("de")
    with pytest.raises(ValueError, match="'dev'"):
        corpus.texts("cmn", "dev")
    with pytest.raises(ValueError, match="'dev'"):
        corpus.voices("dev")


def test_words_are_those_of_numbers_in_any_order():
    for language, space in (("en-us", " "), ("cmn", "")):
        drawn = {split: [] for split in phrases.SPLITS}
        for split, texts in drawn.items():
            source = random.Random(0)
            texts += [phrases.draw_words(source, language, split) for _ in range(400)]
            assert {corpus.split_of(text) for text in texts} == {split}
        spoken = [text.split() if space else list(text) for text in drawn["train"]]
        assert {len(words) for words in spoken} == set(phrases.LENGTHS)
        known = phrases.words(language)
        assert set(itertools.chain.from_iterable(spoken)) == set(known) and len(known) == len(set(known))
        assert all(set(text.split() if space else text) <= set(known) for split in phrases.SPLITS for text in corpus.texts(language, split))
        pairs = {pair for words in spoken for pair in itertools.pairwise(words)}  # in numbers "twenty hundred" cannot come
        likely = {pair for text in corpus.texts(language) for pair in itertools.pairwise(text.split() if space else text)}
        assert len(pairs - likely) > len(pairs) / 2
    with pytest.raises(ValueError, match="no texts for 'de'"):
        phrases.draw_words(random.Random(0), "de")


# ---------------------------------------------------------------- voices


def test_voices_are_split_by_variant():
    seen, unseen = set(corpus.voices("train")), set(corpus.voices("test"))
    assert set(corpus.voices("validation")) == seen and not seen & unseen
    assert len(unseen) >= 20 and len(seen) >= 50
    assert seen | unseen | set(espeak.DUPLICATES) == set(espeak.variants())
    for split in phrases.SPLITS:
        variants = {speaker.rsplit("-", 3)[0] for speaker in corpus.speakers(split)}
        assert variants == set(corpus.voices(split))
    assert len(set(corpus.speakers("train"))) == espeak.SETTINGS * len(seen)


def test_drawn_voices_are_for_training_only_and_follow_from_their_names():
    drawn = {speaker.rsplit("-", 3)[0] for speaker in espeak.drawn_speakers()}
    assert drawn == set(espeak.DRAWN) - espeak.NEAR_UNSEEN and len(drawn) > 200
    assert not drawn & (set(espeak.variants()) | set(corpus.voices("test")))
    files = [espeak.variant_file(name) for name in espeak.DRAWN]
    assert len(set(files)) == len(files) and espeak.variant_file("drawn000") == files[0]
    heard = {}
    for split in phrases.SPLITS:
        for kind in ("numbers", "voices"):
            rows = itertools.islice(corpus._draws(split, 0, kind), 300)
            heard[split, kind] = {speaker.rsplit("-", 3)[0] for _, _, speaker in rows}
    assert [key for key, variants in heard.items() if variants & drawn] == [("train", "voices")]
    assert heard["train", "voices"] & set(corpus.voices("train")) and heard["test", "voices"] == heard["test", "numbers"]


def test_drawn_voices_speak_from_a_folder_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VOX_CACHE", str(tmp_path / "cache"))
    text = {"en-us": "half past one", "cmn": "一点半"}
    wavs = [corpus.render(text[language], f"{language}+{name}") for name in espeak.DRAWN[::60] for language in text]
    assert all(0.4 < len(wav) / 16000 < 3 for wav in wavs)
    assert torch.equal(wavs[0], corpus.render(text["en-us"], f"en-us+{espeak.DRAWN[0]}"))
    assert not list(tmp_path.glob("cache/.espeak-*")) and len(list(tmp_path.glob(f"cache/*/*/{espeak.VARIANTS}/*"))) == len(espeak.DRAWN)
    shutil.rmtree(tmp_path / "cache")  # which may be deleted at any time
    assert torch.equal(wavs[0], corpus.render(text["en-us"], f"en-us+{espeak.DRAWN[0]}"))
    timbres = torch.stack([espeak.timbre(name) for name in espeak.DRAWN[:3]])
    apart = [espeak.distance(timbres[i], timbres[j]).min() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 8  # dB: none is another one
    with pytest.raises(ValueError, match="drawn999.*drawn000 to drawn239"):
        corpus.render("one", "en-us+drawn999")


@pytest.mark.slow
def test_drawn_voices_near_an_unseen_one_measured_again_are_the_recorded_ones():
    assert espeak.near_unseen() == espeak.NEAR_UNSEEN


@pytest.mark.slow
def test_near_duplicates_measured_again_are_the_recorded_ones():
    assert espeak.near_duplicates() == espeak.DUPLICATES
    a, b = espeak.timbre("klatt6"), espeak.timbre("adam")
    assert espeak.distance(a, b).min() < 0.25 * espeak.distance(a, espeak.timbre("f2")).min()


# ---------------------------------------------------------------- rendering


def test_a_rendering_does_not_depend_on_what_was_said_before():
    voices = ["en-us+f2", "cmn+m3", "en-us+Reed", "cmn+caleb", "en-us+robosoft4", "cmn+Marco", "en-us+grandma"]
    first = [corpus.render("一点半" if voice[0] == "c" else "half past one", voice) for voice in voices]
    for voice, wav in reversed(list(zip(voices, first, strict=True))):
        assert torch.equal(wav, corpus.render("一点半" if voice[0] == "c" else "half past one", voice)), voice


def test_a_rendering_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    texts, wavs = phrases.texts("en-us", "test")[::100], {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            wavs[threads] = [corpus.render(text, "en-us+f2") for text in texts]
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, wavs[1], wavs[2]))


def test_a_deep_environment_does_not_silence_espeak(tmp_path, monkeypatch):
    wav = corpus.render("one", "en-us+f2")
    deep = tmp_path / ("deep" * 40) / "espeak-ng-data"
    deep.parent.mkdir()
    deep.symlink_to(espeak.espeakng_loader.get_data_path())
    monkeypatch.setattr(espeak.espeakng_loader, "get_data_path", lambda: str(deep))
    assert torch.equal(corpus.render("one", "en-us+f2"), wav) and len(espeak._short(str(deep))) < 160


def test_the_settings_do_what_they_say():
    low, high = (corpus.render("nine thousand one hundred", "en-us+m3", pitch=pitch) for pitch in (30, 70))
    assert pitch_of(high) > 1.2 * pitch_of(low)
    slow, fast = (corpus.render("nine thousand one hundred", "en-us+m3", rate=rate) for rate in (130, 200))
    assert len(slow) > 1.2 * len(fast)
    flat, lively = (corpus.render("nine thousand one hundred", "en-us+m3", range=range) for range in (0, 99))
    assert len(flat) != len(lively) or not torch.equal(flat, lively)


def test_a_rendering_is_trimmed_level_and_at_the_rate_asked_for():
    for voice, text in (("en-us+f2", "four hundred and twelve"), ("cmn+f2", "四百一十二")):
        wav = corpus.render(text, voice)
        assert wav.dtype == torch.float32 and 0.5 < len(wav) / 16000 < 3
        level = 10 * torch.log10(wav.square().mean())
        assert wav.abs().max() <= 0.99 + 1e-6 and (abs(level + 20) < 0.1 or wav.abs().max() > 0.98)
        assert torch.equal(audio.trim(wav), wav)
        assert len(corpus.render(text, voice, sample_rate=44100)) == pytest.approx(len(wav) * 44100 / 16000, rel=0.02)


def test_what_cannot_be_said_is_refused():
    for arguments, message in [
        (("one", "de+f2"), "language 'de'"),
        (("one", "en-us+nobody"), "variant 'nobody'"),
        (("one", "en-us"), "variant ''"),
        (("", "en-us+f2"), "nothing to say"),
        (("one", "en-us+f2", 100), "pitch and range"),
        (("one", "en-us+f2", 50, 50, 20), "rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            corpus.render(*arguments)
    for speaker in ("f2", "f2-1-2", "f2-a-2-3"):
        with pytest.raises(ValueError, match="not of the form"):
            corpus.reference("one", "en-us", speaker)


# ---------------------------------------------------------------- the corpus


def test_the_numbers_corpus(cache):
    for split in phrases.SPLITS:
        data = corpus.load("numbers", split=split, hours=LITTLE, cache=cache)
        assert data.column_names == ["audio", "text", "speaker", "language", "seconds"]
        assert 40 <= sum(data["seconds"]) < 44 and set(data["language"]) == {"en-us", "cmn"}
        for row in data:
            assert row["text"] in corpus.texts(row["language"], split) and row["speaker"] in corpus.speakers(split)
            wav = corpus.wav(row)
            assert len(wav) == round(row["seconds"] * 16000)
        true = corpus.reference(row["text"], row["language"], row["speaker"])
        assert true.shape == wav.shape and (true - wav).abs().max() <= 0.5 / 32768 + 1e-7  # 16 bits
        assert len(corpus.wav(row, 8000)) == pytest.approx(len(wav) / 2, abs=1)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_a_rebuild_gives_the_same_bytes_and_another_seed_other_rows(cache, tmp_path, monkeypatch):
    old = corpus.load("numbers", hours=LITTLE, cache=cache)
    monkeypatch.setenv("VOX_CACHE", str(tmp_path))  # the other way to say where
    corpus.load("numbers", hours=LITTLE)
    (again,) = tmp_path.glob("numbers-train-????????????????")
    assert contents(again) == contents(cache / again.name) != {}
    new = corpus.load("numbers", hours=LITTLE, seed=1)
    assert new["text"] != old["text"]
    monkeypatch.setattr(corpus, "VERSION", corpus.VERSION + 1)
    corpus.load("numbers", hours=LITTLE)
    assert len(list(tmp_path.glob("numbers-train-????????????????"))) == 3


def test_a_finished_corpus_is_not_rendered_again(cache, monkeypatch):
    corpus.load("numbers", hours=LITTLE, cache=cache)
    monkeypatch.setattr(espeak, "synthesise", lambda *a: pytest.fail("rendered again"))
    assert len(corpus.load("numbers", hours=LITTLE, cache=cache)) > 10


def test_one_hour_and_one_point_zero_hours_are_one_corpus(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(corpus, "_build", lambda name, folder, *rest: built.append(folder))
    monkeypatch.setattr(corpus, "_warn", lambda *a: None)
    for hours in (1, 1.0):
        with pytest.raises(Exception):  # noqa: B017 (nothing was built, so nothing can be read)
            corpus.load("numbers", hours=hours, cache=tmp_path)
    assert built[0] == built[1]


@pytest.mark.slow
def test_worker_processes_give_the_rows_of_one_process_even_to_a_plain_script(tmp_path):
    rows = [[("one", "en-us", "f2-40-60-175")], [("二", "cmn", "m3-50-50-160")], [("three", "en-us", "Reed-50-50-170")]]
    script = f"""
import functools, hashlib
from vox import corpus, espeak
print("started")
render = functools.partial(espeak.render_rows, sample_rate=16000)
done = corpus._parallel(render, iter({rows!r} * 9), workers=2)
print(hashlib.sha256(repr([next(done) for _ in range(5)]).encode()).hexdigest())
done.close()
"""
    (tmp_path / "plain.py").write_text(script, encoding="utf-8")
    run = subprocess.run([sys.executable, tmp_path / "plain.py"], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    one = [espeak.render_rows(chunk, 16000) for chunk in (rows * 2)[:5]]
    expected = ["started", hashlib.sha256(repr(one).encode()).hexdigest()]  # once: the workers did not run the script
    assert run.stdout.split() == expected, run.stderr


def test_workers_are_as_many_as_cores_up_to_eight(monkeypatch):
    asked = []
    monkeypatch.setattr(corpus, "_parallel", lambda function, chunks, workers: asked.append(workers) or [])
    for cores, seconds in ((2, 3600), (64, 3600), (64, 60)):
        monkeypatch.setattr(corpus, "cores", lambda cores=cores: cores)
        list(corpus._rendered(iter([]), "train", seconds, 16000))
    assert asked == [2, 8, 1]


def test_a_killed_build_leaves_nothing_half_made(cache, tmp_path):
    code = f"from vox import corpus; corpus.load('numbers', hours=0.15, cache={str(tmp_path)!r})"
    build = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while not list(tmp_path.glob(".numbers-*.tmp")):
        assert build.poll() is None
        time.sleep(0.005)
    build.send_signal(signal.SIGKILL)
    assert build.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("numbers-*/")) and list(tmp_path.glob(".numbers-*.tmp"))
    left = next(tmp_path.glob(".numbers-*.tmp"))
    (left / "00000.parquet").write_bytes(b"half")
    os.rename(left, tmp_path / f".{corpus_folder(cache).name}.tmp")  # as if the small corpus had been killed
    data = corpus.load("numbers", hours=LITTLE, cache=tmp_path)
    assert contents(next(tmp_path.glob("numbers-*/"))) == contents(corpus_folder(cache)) and len(data) > 10
    assert not list(tmp_path.glob(".numbers-*.tmp"))


def corpus_folder(cache):
    corpus.load("numbers", hours=LITTLE, cache=cache)
    return next(
        path for path in cache.glob("numbers-train-????????????????") if json.loads((path / "settings.json").read_text())["seed"] == 0
    )


def test_wrong_names_and_splits_are_refused(tmp_path):
    for name in ("nombres", "numbers:3", "folder", "folder:", "hub:"):
        with pytest.raises(ValueError, match="use numbers, voices, words, sentences, folder:PATH"):
            corpus.load(name, cache=tmp_path)
    with pytest.raises(ValueError, match="split 'dev'"):
        corpus.load("numbers", split="dev", cache=tmp_path)
    with pytest.raises(ValueError, match="hours must be positive"):
        corpus.load("numbers", hours=0, cache=tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        corpus.load(f"folder:{tmp_path}/none", cache=tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        corpus.load(f"manifest:{tmp_path}/none.jsonl", cache=tmp_path)
    with pytest.raises(ValueError, match="no sound at all"):
        corpus.load(f"folder:{tmp_path}", cache=tmp_path / "cache")


# ---------------------------------------------------------------- real speech


def tone(seconds=0.5, rate=16000, level=0.3):
    return level * np.sin(np.arange(int(seconds * rate)) * 440 * 2 * np.pi / rate)


def recordings(folder):
    """A folder of sounds: two good ones, two to convert, and one for each way to be unusable; {name: what the report says}."""
    folder.mkdir()
    good = {"a.wav": tone(), "b.flac": tone(0.7), "c.mp3": tone(0.6)}
    for name, wav in good.items():
        soundfile.write(folder / name, wav, 16000)
    soundfile.write(folder / "stereo.wav", np.stack([tone(), tone()], 1), 16000)
    soundfile.write(folder / "fast.wav", tone(rate=44100), 44100)
    soundfile.write(folder / "silent.wav", np.zeros(8000), 16000)
    soundfile.write(folder / "short.wav", tone(0.05), 16000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "latin.wav", tone(), 16000)
    soundfile.write(folder / "untold.wav", tone(), 16000)
    soundfile.write(folder / "blank.wav", tone(), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF of nothing")
    return {
        "stereo.wav": "2 channels at 16000 Hz",
        "fast.wav": "1 channel at 44100 Hz",
        "silent.wav": "is silent",
        "short.wav": "lasts 0.050 s, too short",
        "empty.wav": "no samples",
        "broken.wav": "cannot be read as sound",
        "latin.wav": "not UTF-8",
        "blank.wav": "has no text",
    }


def reported(caught):
    """The lines of the report that a warning names."""
    path = Path(re.search("all listed in (.*)", str(caught[0].message))[1])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_real(name, expected, cache):
    """Loads a corpus with unusable rows: the good ones are there, every other file is reported with its reason."""
    with pytest.warns(UserWarning, match="left out.* 2 converted") as caught:
        data = corpus.load(name, cache=cache)
    report = {line["file"].rsplit("/")[-1]: line for line in reported(caught)}
    assert set(report) == set(expected)
    for file, message in expected.items():
        assert message in report[file]["problem"] and file in report[file]["problem"]
        assert report[file]["kept"] == (file in ("stereo.wav", "fast.wav"))
    rows = {os.path.basename(row["audio"]["path"]): row for row in data}
    assert sorted(rows) == ["a.wav", "b.flac", "c.mp3", "fast.wav", "stereo.wav"]
    assert rows["b.flac"]["text"] == "text of b" and rows["b.flac"]["seconds"] == pytest.approx(0.7)
    for file in ("stereo.wav", "fast.wav"):
        wav = corpus.wav(rows[file])
        assert wav.shape == (8000,) and (wav - torch.from_numpy(tone()).float())[200:-200].abs().max() < 2e-3
    return data


def test_a_folder_with_texts_beside(tmp_path, cache):
    expected = recordings(tmp_path / "speech")
    for path in list((tmp_path / "speech").iterdir()):
        if path.stem != "untold":
            path.with_suffix(".txt").write_text(f" text of {path.stem}\n", encoding="utf-8")
    (tmp_path / "speech" / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "speech" / "blank.txt").write_text(" \n")
    expected["untold.wav"] = "has no untold.txt beside it"
    check_real(f"folder:{tmp_path}/speech", expected, cache)


def test_a_folder_with_a_metadata_file(tmp_path, cache):
    expected = recordings(tmp_path / "speech")
    names = [path.name for path in (tmp_path / "speech").iterdir() if path.stem not in ("untold", "latin", "blank")]
    lines = ["file_name,transcription,speaker,language,extra"] + [f"{name},text of {name.split('.')[0]},ann,en,1" for name in names]
    lines += ["blank.wav,,ann,en", "gone.wav,text,ann,en"]
    table = "\ufeff" + "\r\n".join(lines) + "\r\n"
    (tmp_path / "speech" / "metadata.csv").write_bytes(table.encode() + "latin.wav,café,ann,en\r\n".encode("latin-1"))
    expected |= {"untold.wav": "has no line in metadata.csv", "gone.wav": "does not exist"}
    data = check_real(f"folder:{tmp_path}/speech", expected, cache)
    assert set(data["speaker"]) == {"ann"} and set(data["language"]) == {"en"}
    (tmp_path / "speech" / "metadata.csv").write_text("file;words\na.wav;one\n")
    with pytest.raises(ValueError, match="metadata.csv needs a first line with file_name and text"):
        corpus.load(f"folder:{tmp_path}/speech", cache=cache)


def test_a_manifest(tmp_path, cache):
    expected = recordings(tmp_path / "speech")
    names = [path.name for path in (tmp_path / "speech").iterdir() if path.stem not in ("untold", "latin", "blank")]
    rows = [{"audio": f"speech/{name}", "text": f"text of {name.split('.')[0]}", "duration": 9.9, "dataset_id": 1} for name in names]
    rows[0]["audio"] = str(tmp_path / rows[0]["audio"])  # absolute paths, too
    rows += [{"audio": "speech/blank.wav"}, {"audio": "speech/gone.wav", "text": "x"}]
    rows += [{"audio": "speech/untold.wav", "text": "held out", "split": "validation"}]
    lines = "\n".join(map(json.dumps, rows)) + '\n\n{"audio": 3}\nno json\n["a list"]\n'
    (tmp_path / "m.jsonl").write_bytes(lines.encode() + '{"audio": "speech/latin.wav", "text": "café"}'.encode("latin-1"))
    number = len(rows) + 2
    expected |= {f"m.jsonl line {number + i}": "is not of the form" for i in range(3)} | {"gone.wav": "does not exist"}
    check_real(f"manifest:{tmp_path}/m.jsonl", expected, cache)
    held = corpus.load(f"manifest:{tmp_path}/m.jsonl", split="validation", cache=cache)
    assert held["text"] == ["held out"]
    with pytest.raises(ValueError, match="no test rows, only train, validation"):
        corpus.load(f"manifest:{tmp_path}/m.jsonl", split="test", cache=cache)


def test_a_hub_repository(tmp_path, cache):
    expected = recordings(tmp_path / "speech")
    names = [path.name for path in (tmp_path / "speech").iterdir() if path.stem not in ("untold", "latin")]
    rows = [
        {"audio": {"bytes": (tmp_path / "speech" / n).read_bytes(), "path": n}, "sentence": f"text of {n.split('.')[0]}"} for n in names
    ]
    rows[names.index("blank.wav")]["sentence"] = None
    del expected["latin.wav"]
    (tmp_path / "repo" / "data").mkdir(parents=True)
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema({"audio": kind, "sentence": pyarrow.string()}))
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, tmp_path / "repo" / "data" / f"{split}-00000-of-00001.parquet")
    name = f"hub:{tmp_path}/repo"
    with pytest.warns(UserWarning, match="left out.* 2 converted") as caught:
        data = corpus.load(name, split="test", cache=cache)
    report = reported(caught)
    assert len(report) == len(expected)
    for file, message in expected.items():
        assert any(f"({file})" in line["problem"] and message in line["problem"] for line in report), file
    assert sorted(row["audio"]["path"] for row in data) == ["a.wav", "b.flac", "c.mp3", "fast.wav", "stereo.wav"]
    row = next(row for row in data if row["audio"]["path"] == "fast.wav")
    assert row["text"] == "text of fast" and corpus.wav(row).shape == (8000,)
    with pytest.raises(ValueError, match="split 'validation'"):
        corpus.load(name, split="validation", cache=cache)
    with pytest.raises(ValueError, match="cannot be loaded"):
        corpus.load(f"hub:{tmp_path}/nowhere", cache=cache)


def test_a_hub_repository_with_other_columns_is_refused(tmp_path, cache):
    datasets.Dataset.from_dict({"audio": [{"bytes": b"x", "path": "x"}], "words": ["x"]}).to_parquet(tmp_path / "repo" / "train.parquet")
    with pytest.raises(ValueError, match="needs a column named text or .*; it has audio, words"):
        corpus.load(f"hub:{tmp_path}/repo", cache=cache)


def sounds(folder, *names):
    folder.mkdir()
    for name in names:
        soundfile.write(folder / name, tone(), 16000)


def hub(folder, **columns):
    """A folder of hub layout whose rows have one sound and these columns."""
    folder.mkdir()
    file = io.BytesIO()
    soundfile.write(file, tone(), 16000, format="wav")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    table = [{"audio": {"bytes": file.getvalue(), "path": "a.wav"}} | row for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "train.parquet")
    return f"hub:{folder}"


def test_a_label_may_be_a_number(tmp_path, cache):
    """Speaker 0 is a speaker; only a missing one is unknown."""
    sounds(tmp_path / "speech", "a.wav")
    labels = [{"speaker": 0, "language": 0}, {"speaker": 1, "language": "en"}, {"speaker": None}, {}, {"split": 5}, {"split": ["x"]}]
    lines = [json.dumps({"audio": "a.wav", "text": "x"} | more) for more in labels]
    (tmp_path / "speech" / "m.jsonl").write_text("\n".join(lines))
    data = corpus.load(f"manifest:{tmp_path}/speech/m.jsonl", cache=cache)
    assert data["speaker"] == ["0", "1", "", ""] and data["language"] == ["0", "en", "", ""]
    with pytest.raises(ValueError, match=r"no test rows, only 5, \['x'\], train"):
        corpus.load(f"manifest:{tmp_path}/speech/m.jsonl", split="test", cache=cache)
    data = corpus.load(hub(tmp_path / "repo", text=["x", "y", "z"], speaker=[0, 1, None]), cache=cache)
    assert data["speaker"] == ["0", "1", ""]


def test_brackets_are_no_pattern(tmp_path):
    """`datasets` would take a split or a folder with brackets for a pattern, and read the files of another folder."""
    name = hub(tmp_path / "repo", text=["one", "two"])
    for _ in range(2):  # built, and read again
        assert corpus.load(name, split="train[:50%]", cache=tmp_path / "c")["text"] == ["one"]
    sounds(tmp_path / "speech", "a.wav")
    texts = {"c1": "another", "c[1]": "its own"}
    for folder, text in texts.items():
        (tmp_path / "speech" / "a.txt").write_text("the same")
        corpus.load(f"folder:{tmp_path}/speech", cache=tmp_path / folder)
        (built,) = (tmp_path / folder).glob("folder-train-????????????????")
        table = pyarrow.parquet.read_table(built / "00000.parquet").to_pylist()
        table[0]["text"] = text
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, corpus.FEATURES.arrow_schema), built / "00000.parquet")
    for folder, text in texts.items():
        assert corpus.load(f"folder:{tmp_path}/speech", cache=tmp_path / folder)["text"] == [text]
    hub(tmp_path / "repo1", text=["another"])
    with pytest.raises(ValueError, match=r"repo\[1\]: rename it"):
        corpus.load(hub(tmp_path / "repo[1]", text=["its own"]), cache=tmp_path / "c")


def test_a_hub_error_names_its_cause(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # which `datasets` wants for a folder of sound files
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)
    sounds(tmp_path / "repo", "a.wav")
    (tmp_path / "repo" / "metadata.csv").write_text("file_name,text\na.wav,one\n")
    with pytest.raises(ValueError, match="cannot be loaded .*torchcodec"):
        corpus.load(f"hub:{tmp_path}/repo", cache=cache)


def test_an_odd_name_costs_one_row(tmp_path, cache):
    odd, long = "line\u2028and\x85next.wav", "x" * 300 + ".wav"
    sounds(tmp_path / "speech", "a.wav", odd)
    (tmp_path / "speech" / "a.txt").write_text("one")
    for _ in range(2):  # built, and read again
        with pytest.warns(UserWarning, match=f"1 left out.*\n.*{odd} has no"):
            assert corpus.load(f"folder:{tmp_path}/speech", cache=cache)["text"] == ["one"]
    lines = [json.dumps({"audio": name, "text": "one"}) for name in ("a.wav", long)]
    (tmp_path / "speech" / "m.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=f"1 left out.*\n.*{long} cannot be opened .*: check the path"):
        assert corpus.load(f"manifest:{tmp_path}/speech/m.jsonl", cache=cache)["text"] == ["one"]
    table = f"file_name,text,speaker\na.wav,one,ann\n{long},one,ann\n{odd},one,".encode() + "José\n".encode("latin-1")
    (tmp_path / "speech" / "metadata.csv").write_bytes(table)
    with pytest.warns(UserWarning, match=f"2 left out.*\n.*{long} cannot be opened.*\n.*metadata.csv line 4 is not UTF-8 .*{odd}"):
        assert corpus.load(f"folder:{tmp_path}/speech", cache=cache)["text"] == ["one"]


@pytest.mark.parametrize("row", ['a.wav,"one,ann', '"a.wav,one,ann', 'a.wav,one,"ann', 'a.wav,one,ann,"more'])
def test_a_quote_left_open_swallows_no_row_unseen(tmp_path, cache, row):
    sounds(tmp_path / "speech", "a.wav", "b.wav", "c.wav", "d.wav")
    listing = tmp_path / "speech" / "metadata.csv"
    listing.write_text(f'file_name,text,speaker\n\n"d.wav","four, or 4",ann\n\n{row}\nb.wav,two,ann\nc.wav,three,ann\n')
    with pytest.warns(UserWarning, match="lines 5 to 7 are read as one row: close the quote in line 5") as caught:
        data = corpus.load(f"folder:{tmp_path}/speech", cache=cache)
    assert data["text"] == ["four, or 4"]
    assert {"b.wav", "c.wav"} < {line["file"].rsplit("/")[-1] for line in reported(caught)}
    with listing.open("a") as file:
        file.write("b.wav,two,ann\n" * 10000)  # more than Python's csv takes for one field
    with pytest.raises(ValueError, match="metadata.csv line 5 cannot be read .*: close the quote"):
        corpus.load(f"folder:{tmp_path}/speech", cache=cache)


def test_changed_files_are_read_again_and_hours_limit_them(tmp_path, cache):
    (tmp_path / "speech").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "speech" / f"{index}.wav", tone(1.0), 16000)
        (tmp_path / "speech" / f"{index}.txt").write_text(f"take {index}")
    name = f"folder:{tmp_path}/speech"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is wrong with these
        assert corpus.load(name, cache=cache)["text"] == ["take 0", "take 1", "take 2", "take 3"]
        assert len(corpus.load(name, cache=cache, hours=1.5 / 3600)) == 2
        (tmp_path / "speech" / "2.txt").write_text("take two")
        assert corpus.load(name, cache=cache)["text"][2] == "take two"
        soundfile.write(tmp_path / "speech" / "3.wav", tone(2.0), 16000)
        data = corpus.load(name, cache=cache)
        assert data["seconds"][3] == 2.0
    os.remove(tmp_path / "speech" / "3.wav")
    with pytest.raises(ValueError, match="3.wav does not exist"):
        corpus.wav(data[3])


def test_nothing_usable_is_an_error_that_says_why(tmp_path, cache):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "bad.wav").write_bytes(b"x")
    (tmp_path / "speech" / "bad.txt").write_text("words")
    for _ in range(2):  # and it is not taken for a finished corpus
        with pytest.raises(ValueError, match="(?s)no usable row.*bad.wav cannot be read as sound"):
            corpus.load(f"folder:{tmp_path}/speech", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("folder-*/"))


def test_the_dataset_card_says_what_the_code_does():
    card = (Path(__file__).parent.parent / "data" / "README.md").read_text(encoding="utf-8")
    for language in phrases.LANGUAGES:
        parts = [corpus.texts(language, split) for split in phrases.SPLITS]
        counts = " | ".join(f"{n:,}" for n in (sum(map(len, parts)), *map(len, parts)))
        assert f"| {language} | {counts} |" in card
        letters = "".join(sorted(set("".join(sum(parts, [])))))
        assert letters in card or letters == " 'abcdefghijklmnopqrstuvwxyz"
    seen, unseen, dropped = len(corpus.voices("train")), len(corpus.voices("test")), len(espeak.DUPLICATES)
    assert (
        f"| train | {seen} | {len(corpus.speakers('train'))} |" in card
        and f"| test | {unseen} others | {len(corpus.speakers('test'))} |" in card
    )
    assert f"brings {len(espeak.variants())} voice variants" in card and f"{dropped} are, {seen + unseen} stay" in card
    left, near = len(espeak.DRAWN) - len(espeak.NEAR_UNSEEN), len(espeak.NEAR_UNSEEN)
    assert f"speaks in {left} more variants" in card and f"Of {len(espeak.DRAWN)} those" in card and f"out: {near}." in card
