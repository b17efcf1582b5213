"""Every metric on inputs whose answer is known, and what each refuses."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio

from vox import corpus, espeak, intervals, metrics
from vox.audio import Speech

RATE = 16000


@pytest.fixture(scope="module")
def voice():
    """A true recording [N]."""
    return espeak.reference("four hundred and twelve", "en-us", "f2-40-60-175")


def tone(hertz, seconds=1.0, level=0.1):
    """A buzz with eight harmonics [N]."""
    t = torch.arange(int(seconds * RATE)) / RATE
    return level * sum(torch.sin(2 * math.pi * hertz * k * t) / k for k in range(1, 9))


# ------------------------------------------------------------------------------------------------------------- intervals


def test_bootstrap_covers_the_truth():
    """In about 95 of 100 samples the interval holds the true mean."""
    rng = np.random.default_rng(1)
    samples = rng.exponential(2.0, (200, 60))
    inside = [low <= 2.0 <= high for low, high in (intervals.bootstrap(sample, draws=300) for sample in samples)]
    assert 0.88 <= np.mean(inside) <= 0.98


def test_bootstrap_of_a_ratio_weighs_utterances_by_their_length():
    counts = np.array([[0, 1]] * 50 + [[50, 100]] * 50)
    low, high = intervals.bootstrap(counts, "ratio")
    assert low < counts[:, 0].sum() / counts[:, 1].sum() < high  # 0.495; the mean of ratios would be 0.25
    assert low > 0.45


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).normal(size=50)
    assert intervals.bootstrap(values) == intervals.bootstrap(values) != intervals.bootstrap(values, seed=1)


@pytest.mark.parametrize(
    "values, statistic, message",
    [([], "mean", "n > 0"), ([1.0], "median", "mean or ratio"), ([1.0, 2.0], "ratio", "n, 2"), ([1.0, math.nan], "mean", "finite")],
)
def test_bootstrap_refuses(values, statistic, message):
    with pytest.raises(ValueError, match=message):
        intervals.bootstrap(values, statistic)


def test_share_stays_honest_when_nothing_fails():
    figure = intervals.share([False] * 100)
    assert figure.value == figure.low == 0 and 0.02 < figure.high < 0.05
    half = intervals.share([True, False] * 50)
    assert half.value == 0.5 and half.low == pytest.approx(0.4038, abs=1e-3) and half.high == pytest.approx(0.5962, abs=1e-3)
    with pytest.raises(ValueError, match="at least one"):
        intervals.share([])
    assert str(half) == "0.5 (0.4038 … 0.5962, n = 100)"


# ----------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "reference, heard, expected",
    [
        ("four hundred and twelve", "four hundred and twelve", (0, 4)),
        ("Four hundred, and twelve!", "four hundred twelve", (1, 4)),
        ("seven o'clock", "seven o'clock sharp now", (2, 2)),
        ("三千零五", "三千五", (1, 4)),
        ("room 12", "room twelve", (0, 2)),
        ("twelve", "", (1, 1)),
        ("twelve", "12:30", (2, 1)),
        ("room 十二", "room 十三", (1, 3)),
    ],
)
def test_errors(reference, heard, expected):
    assert metrics.errors(reference, heard) == expected


def test_a_text_without_words_is_refused():
    with pytest.raises(ValueError, match="no word"):
        metrics.errors("?!", "one")


def test_error_rate_is_all_errors_over_all_units():
    figure = metrics.error_rate(["one", "two three four"], ["one", "two three five"])
    assert figure.value == 0.25 and figure.n == 2 and figure.low <= 0.25 <= figure.high
    with pytest.raises(ValueError, match="at least one text"):
        metrics.error_rate([], [])


# ----------------------------------------------------------------------------------------------------------------- voice


def test_eer():
    assert metrics.eer([0.8, 0.9], [0.1, 0.2, 0.3]) == 0
    assert metrics.eer([0.1, 0.2], [0.8, 0.9]) == 1
    assert metrics.eer([0.5], [0.5]) == 0.5  # no threshold tells equal scores apart
    rng = np.random.default_rng(0)
    same, different = rng.normal(2, 1, 20000), rng.normal(0, 1, 20000)
    assert metrics.eer(same, different) == pytest.approx(0.1587, abs=0.01)  # Φ(−1)
    with pytest.raises(ValueError, match="both kinds"):
        metrics.eer([], [0.1])


def test_eer_counts_by_weight():
    same, different = [0.9, 0.2], [0.1, 0.5]
    assert metrics.eer(same, different) == 0.5
    assert metrics.eer(same, different, [1, 0], [1, 1]) == 0


def test_identify():
    enrolled = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    assert metrics.identify(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), enrolled) == ["a", "b"]


# ----------------------------------------------------------------------------------------------------------------- sound


def test_alignment_finds_a_stretch():
    frames = torch.arange(20.0)[:, None]
    first, second = metrics.align(frames, frames.repeat_interleave(2, 0))
    assert len(first) == 40 and (first == second // 2).all()
    assert (metrics.align(frames, frames)[0] == range(20)).all()


def test_distortion_is_zero_for_itself_and_grows_with_a_filter(voice):
    same = metrics.compare(voice, voice)
    assert same == {"mcd": 0, "f0": 0, "duration": 1}
    bins = torch.linspace(0, 1, len(voice) // 2 + 1)
    dull = [torch.fft.irfft(torch.fft.rfft(voice) * torch.exp(-strength * bins), len(voice)) for strength in (1, 3)]
    weak, strong = (metrics.compare(wav, voice)["mcd"] for wav in dull)
    assert 0.2 < weak < strong
    assert metrics.compare(0.5 * voice, voice)["mcd"] < 0.3  # level does not count, but for what is as quiet as the floor


def test_distortion_is_the_distance_of_spectra_in_decibels():
    """A ripple along the bands has a known deviation, whose shape the cepstra keep."""
    noise = 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    bands = metrics.cepstra(noise)
    ripple = math.log(10) / 20 * 3.0 * math.sqrt(2) * torch.cos(torch.pi * 4 * (torch.arange(80) + 0.5) / 80)  # 3 dB, cepstrum 4
    basis = torch.cos(torch.pi / 80 * (torch.arange(80) + 0.5)[:, None] * torch.arange(1, 25)) * math.sqrt(2 / 80)
    moved = bands + ripple @ basis / math.sqrt(80)
    assert float(20 / math.log(10) * (moved - bands).norm(dim=1).mean()) == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("hertz", [80.0, 123.4, 200.0, 440.0])
def test_pitch_of_a_tone(hertz):
    found = metrics.pitch(tone(hertz))[5:-5]
    assert not found.isnan().any() and (1200 * torch.log2(found / hertz)).abs().max() < 5


def test_noise_and_silence_have_no_pitch():
    assert metrics.pitch(0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))).isnan().all()
    assert metrics.pitch(torch.zeros(RATE)).isnan().all()


def test_pitch_error_in_cents():
    assert metrics.compare(tone(220.0), tone(110.0))["f0"] == pytest.approx(1200, abs=15)
    assert metrics.compare(tone(220.0), torch.randn(RATE) * 0.1)["f0"] is None


def test_duration(voice):
    slow = espeak.reference("four hundred and twelve", "en-us", "f2-40-60-130")
    assert metrics.compare(slow, voice)["duration"] == pytest.approx(len(slow) / len(voice))
    assert 1.1 < len(slow) / len(voice) < 1.6


def test_stop_failures(voice):
    text = "four hundred and twelve"
    assert metrics.stop_failure(voice, "stop", text, text) == ""
    assert metrics.stop_failure(voice, "cap") == "cap" and metrics.stop_failure(voice, "silence") == "silence"
    assert metrics.stop_failure(torch.cat((voice, torch.zeros(10000)))) == "silence"
    assert metrics.stop_failure(torch.cat((voice, torch.zeros(4000)))) == ""
    assert metrics.stop_failure(voice, "stop", text, "four hundred") == "cut"
    assert metrics.stop_failure(voice, "stop", text, "hundred and twelve") == ""
    assert metrics.stop_failure(torch.zeros(0)) == metrics.stop_failure(torch.zeros(RATE)) == "empty"


def test_reconstruction(voice):
    for module in ("pystoi", "torchmetrics"):
        pytest.importorskip(module)
    noise = torch.randn(len(voice), generator=torch.Generator().manual_seed(0))
    noise = noise - (noise @ voice) / (voice @ voice) * voice
    good, bad = (metrics.reconstruction(voice + noise * voice.norm() / noise.norm() / 10 ** (db / 20), voice) for db in (30, 5))
    assert good["si_sdr"] == pytest.approx(30, abs=0.01) and bad["si_sdr"] == pytest.approx(5, abs=0.01)
    assert 1 >= good["stoi"] > bad["stoi"] and good["mel"] < bad["mel"]
    same = metrics.reconstruction(voice, voice)
    assert same["mel"] == 0 and same["pitch"] == 1
    faster = torchaudio.functional.resample(voice, RATE, round(RATE / 1.1))
    higher = metrics.reconstruction(F.pad(faster, (0, len(voice) - len(faster))), voice)
    assert higher["pitch"] < 0.1 and metrics.reconstruction(voice, torch.zeros_like(voice))["pitch"] is None
    with pytest.raises(ValueError, match="one length"):
        metrics.reconstruction(voice[1:], voice)


def test_pesq(voice):
    pytest.importorskip("pesq")
    same = metrics.reconstruction(voice, voice)["pesq"]
    assert same == pytest.approx(4.64, abs=0.01)
    assert metrics.reconstruction(torch.zeros(RATE), torch.zeros(RATE))["pesq"] is None


def test_what_is_too_short_has_no_quality(voice):
    """The packages answer with an error (pesq) or with almost nothing (pystoi), which would spoil a mean."""
    for module in ("pystoi", "torchmetrics"):
        pytest.importorskip(module)
    start = len(voice) // 2
    short = voice[start : start + RATE // 5]
    lost = metrics.reconstruction(short, short)
    assert lost["stoi"] is None and lost["pesq"] is None and lost["mel"] == 0


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package is not installed: pip install -e '.\[metrics\]'"):
        metrics.need("no_such_package", metrics.METRICS)


# -------------------------------------------------------------------------------------------------------------- evaluate


class Parrot:
    """A model that gives back what it is prompted with, or a known recording."""

    class config:
        class vae:
            sample_rate = RATE

    def __init__(self, wavs):
        self.wavs, self.calls = wavs, []

    def generate(self, texts, prompt_wav=None, prompt_text=None, seed=0, **options):
        self.calls.append((texts, prompt_text, seed, options))
        stats = {"ended_by": "stop", "attempts": 1}
        return [Speech(wav, RATE, text, stats=stats) for wav, text in zip(self.wavs, texts, strict=True)]


class Ear:
    """A judge that knows recordings by heart: their text, and their voice as one number in a vector."""

    def __init__(self, known):
        self.known = known

    def transcribe(self, wavs):
        return [next((text for wav, text, _ in self.known if wav.equal(each)), "") for each in wavs]

    def embed(self, wavs):
        numbers = [next((voice for wav, _, voice in self.known if wav.equal(each)), None) for each in wavs]
        return torch.stack([torch.zeros(4) if number is None else torch.eye(4)[number] for number in numbers])


def rows_of(speakers, text):
    """A row of the corpus for each speaker."""
    sounds = [espeak.render_rows([(text, "en-us", speaker)], RATE)[0] for speaker in speakers]
    return [
        {"audio": {"bytes": sound, "path": ""}, "text": text, "speaker": speaker, "language": "en-us", "seconds": seconds}
        for text, _, speaker, sound, seconds in sounds
    ]


def test_evaluate_judges_speech_and_true_recordings_alike():
    speakers = ["f2-40-60-175", "m3-50-50-160"]
    rows, pool = rows_of(speakers, "four hundred and twelve"), rows_of(speakers, "nine hundred and seven")
    prompts = metrics.pick_prompts(rows, rows + pool, (0.5, 3.0))
    assert [prompt["text"] for prompt in prompts] == ["nine hundred and seven"] * 2  # never a row that is judged
    truths = [corpus.wav(row) for row in rows]
    known = [(corpus.wav(row), row["text"], k) for some in (rows, prompts) for k, row in enumerate(some)]
    model = Parrot([truths[1], torch.zeros(0)])  # the wrong voice; nothing at all
    table = metrics.evaluate(model, rows, Ear(known), prompts, seed=3, cfg=1.5)
    assert model.calls == [([row["text"] for row in rows], [row["text"] for row in prompts], 3, {"cfg": 1.5})]
    wrong, nothing = table
    assert wrong["errors"] == 0 and wrong["true_errors"] == 0 and wrong["stop"] == wrong["true_stop"] == ""
    assert wrong["named"] == speakers[1] and wrong["true_named"] == speakers[0]
    assert wrong["sim"] == 0 and wrong["true_sim"] == 1 and wrong["candidates"] == 2
    assert nothing["stop"] == "empty" and nothing["errors"] == 4 and nothing["mcd"] is None and nothing["duration"] == 0
    figures = metrics.summarise(table)
    assert figures["error_rate en-us"].value == 0.5 and figures["true_error_rate en-us"].value == 0
    assert figures["stop_failures"].value == 0.5 and figures["true_stop_failures"].value == 0
    assert figures["identified"].value == 0 and figures["true_identified"].value == 1 and figures["identified_by_chance"].value == 0.5
    assert figures["mcd"].n == 1 and figures["mcd"].value == wrong["mcd"] > 1
    json.dumps([table, figures], allow_nan=False)


def test_evaluate_without_prompts_says_nothing_of_voices():
    rows = rows_of(["f2-40-60-175"], "nine")
    wav = corpus.wav(rows[0])
    table = metrics.evaluate(Parrot([wav]), rows, Ear([(wav, "nine", 0)]))
    assert "sim" not in table[0] and table[0]["errors"] == 0
    assert "sim" not in metrics.summarise(table)


def test_seeds_of_one_text_are_drawn_together():
    line = {"language": "cmn", "speaker": "x", "units": 4, "true_errors": 0, "stop": "", "true_stop": ""}
    table = [line | {"text": str(k), "errors": k % 2, "seed": seed} for k in range(40) for seed in range(3)]
    one = metrics.summarise([row for row in table if row["seed"] == 0])["error_rate cmn"]
    assert metrics.summarise(table)["error_rate cmn"] == pytest.approx(one)  # three copies are no more evidence


def test_prompts_must_fit():
    rows = rows_of(["f2-40-60-175"], "nine")
    with pytest.raises(ValueError, match="no prompt for f2-40-60-175 in en-us"):
        metrics.pick_prompts(rows, rows)
    with pytest.raises(ValueError, match="same speaker"):
        metrics.evaluate(Parrot([]), rows, Ear([]), [rows[0] | {"speaker": "other"}])
