"""Speaking for real: several sentences at once, patch by patch, long texts, bad cases, silence, and prompts as people record them."""

import gc
import os

import pytest
import torch
from test_generate import BASE, HOP, PATCH, STACK, build, figure

from vox import generate
from vox.config import preset
from vox.prompts import Prompt, read_prompt
from vox.text import split_text
from vox.voxcpm import VoxCPM

SAMPLES = PATCH * HOP  # of a patch
TEXTS = ["one", "two hundred and seven", "三十", "nine o'clock in the morning"]


def voice(patches: float, seed: int = 1):
    """A recording of noise."""
    return torch.rand(int(patches * SAMPLES), generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.fixture(scope="module")
def model():
    """A stop head with a direction of its own, chosen so that sentences end at different times."""
    model = build(seed=0)
    with torch.no_grad():
        weight = torch.randn(STACK.hidden, generator=torch.Generator().manual_seed(14))
        model.stop_head.weight.copy_(torch.stack((-weight, weight)))
    return model


# ------------------------------------------------------------------------------------------------------------ at once


@pytest.mark.parametrize("prompts", ["none", "some", "one for all"])
def test_batch_equals_each_alone(model, prompts):
    """Four sentences of different lengths, with and without prompts of different lengths, in one loop."""
    wavs, words = None, None
    if prompts == "some":
        wavs, words = [None, voice(3), voice(6.5, 2), None], [None, "one", "three four", None]
    elif prompts == "one for all":
        wavs, words = voice(4), "eight"
    many = model.generate(TEXTS, wavs, words, seed=5)
    lengths = {speech.stats["patches"] for speech in many}
    assert len(lengths) >= 2 and "stop" in {speech.stats["ended_by"] for speech in many}, "each ends on its own"
    for k, speech in enumerate(many):
        prompt = (wavs[k], words[k]) if prompts == "some" else (wavs, words)
        alone = model.generate(TEXTS[k], *prompt, seed=5 + k)
        assert alone.stats["patches"] == speech.stats["patches"] and alone.stats["attempts"] == speech.stats["attempts"]
        assert figure(speech.latents, alone.latents) <= 1e-4
        assert figure(speech.wav, alone.wav) <= 1e-4


def test_more_sentences_than_rows(model, monkeypatch):
    """Groups of like length; the order of the answers is that of the texts."""
    whole = model.generate(TEXTS, seed=5)
    monkeypatch.setattr(generate, "ROWS", 2)
    parts = model.generate(TEXTS, seed=5)
    assert [speech.text for speech in parts] == TEXTS
    for a, b in zip(parts, whole, strict=True):
        assert figure(a.wav, b.wav) <= 1e-4


def test_rows_leave_the_loop(model, monkeypatch):
    """Who has ended costs nothing any more."""
    rows, condition = [], model.condition
    monkeypatch.setattr(model, "condition", lambda plan, residual: rows.append(len(plan)) or condition(plan, residual))
    many = model.generate(TEXTS, seed=5, attempts=1)
    assert sum(rows) == sum(speech.stats["patches"] for speech in many) and rows[0] == 4 and rows == sorted(rows, reverse=True)


# ----------------------------------------------------------------------------------------------------------- patch by patch


@pytest.mark.parametrize("prompt", [(None, None), (voice(5.5), "three")], ids=["free", "prompt"])
def test_stream_equals_generate(model, prompt):
    knobs = dict(seed=3, cfg=3.0, steps=5, temperature=0.9, sway=0.0, zero_star=False)
    whole = model.generate("two hundred", *prompt, attempts=1, **knobs)
    chunks = list(model.stream("two hundred", *prompt, **knobs))
    assert len(chunks) == whole.stats["patches"] >= 4, "one patch at a time"
    assert figure(torch.cat([chunk.wav for chunk in chunks]), whole.wav) <= 1e-5
    assert figure(torch.cat([chunk.latents for chunk in chunks]), whole.latents) <= 1e-5
    assert [chunk.stats["stop"] for chunk in chunks] == pytest.approx(whole.stats["stop"], abs=1e-5)
    times = [chunk.stats["seconds"] for chunk in chunks]
    assert times[0] > 0 and times == sorted(times)


def test_stream_decodes_each_latent_once(model, monkeypatch):
    """The decoder sees two patches of prompt and then every new patch a single time."""
    seen, call = [], generate.DecoderStream.__call__
    monkeypatch.setattr(generate.DecoderStream, "__call__", lambda self, z: seen.append(z.shape[2]) or call(self, z))
    chunks = list(model.stream("two", voice(5), "one", seed=3))
    assert seen == [2 * PATCH] + [PATCH] * len(chunks)


def test_stream_is_lazy_and_refuses_at_once(model):
    """The first chunk comes before the second is drawn; mistakes are told at the call, not at the first chunk."""
    chunks = model.stream("one", seed=0)
    first = next(chunks)
    assert len(first.wav) == SAMPLES and first.sample_rate == 8000
    chunks.close()
    assert not model.training
    for arguments in (dict(text=""), dict(text="one", sway=2.0), dict(text="one", prompt_text="two"), dict(text=["one"])):
        with pytest.raises(ValueError):
            model.stream(**arguments)


# --------------------------------------------------------------------------------------------------------------- long texts


@pytest.mark.parametrize("prompt", [(None, None), (voice(5.5), "three")], ids=["free", "prompt"])
def test_long_text_in_one_voice(model, prompt, monkeypatch):
    """Pieces go on from one prompt: the given one, or else the first piece. Streamed, they are the same."""
    text = "one two three four. five six seven! eight nine ten eleven? twelve."
    pieces = split_text(text, 1.0)
    assert len(pieces) >= 3 and " ".join(pieces) == text, pieces
    spoken = [model.generate(pieces[0], *prompt, seed=2, attempts=1)]
    given = read_prompt(model, *prompt) or Prompt(pieces[0], spoken[0].latents.view(-1, PATCH, BASE.vae.latent_dim))
    for j, words in enumerate(pieces[1:], start=1):
        piece = generate.Piece(model, words, given, generate._seed(2, 0, j), None)
        for _, wav in generate._speak(model, [piece.begin()], generate.Clock(model.device), chunk=1):
            piece.wavs.append(wav)
        spoken.append(piece)

    monkeypatch.setattr(model, "config", model.config.replace(**{"train.max_seconds": 2.0}))  # pieces of a second
    speech = model.generate(text, *prompt, seed=2, attempts=1)
    assert speech.text == text
    assert figure(speech.wav, torch.cat([part.wav for part in spoken])) <= 1e-4
    streamed = list(model.stream(text, *prompt, seed=2))
    assert figure(torch.cat([chunk.wav for chunk in streamed]), speech.wav) <= 1e-4
    assert list(dict.fromkeys(chunk.text for chunk in streamed)) == pieces


def test_long_text_whose_first_piece_fails(monkeypatch):
    """Speech that ran into its cap is no voice to go on from: the other pieces are spoken freely. Streamed, they are the same."""
    model, text = build(stop=False), "one two. three four. five six."
    monkeypatch.setattr(model, "config", model.config.replace(**{"train.max_seconds": 1.0}))
    speech = model.generate(text, seed=2, attempts=1)
    alone = build(stop=False).generate("three four.", seed=generate._seed(2, 0, 1), attempts=1)
    patches = [6 * len(piece) + 10 for piece in split_text(text, 0.5)]
    assert len(patches) == 3 and speech.stats["patches"] == sum(patches)
    assert figure(speech.wav[patches[0] * SAMPLES :][: patches[1] * SAMPLES], alone.wav) <= 1e-4
    assert figure(torch.cat([chunk.wav for chunk in model.stream(text, seed=2)]), speech.wav) <= 1e-4


def test_long_text_whose_first_piece_fills_the_model(monkeypatch):
    """max_length cuts it off before it counts as failed: the others would find no room after it, and are spoken freely."""
    model, text = build(stop=False), "one two three four five six. seven eight nine ten eleven. twelve."
    monkeypatch.setattr(model, "config", model.config.replace(**{"train.max_seconds": 3.4}))
    tokens = [len(piece) for piece in split_text(text, 1.7)]
    caps = [min(BASE.max_length - n - 1, 6 * n + 10) for n in tokens]
    assert len(tokens) == 3 and caps[0] < 6 * tokens[0]
    speech, other = model.generate([text, "one"], seed=2, attempts=1)
    assert speech.stats["patches"] == sum(caps) and speech.stats["ended_by"] == "cap" and other.stats["patches"] == 28
    assert figure(torch.cat([chunk.wav for chunk in model.stream(text, seed=2)]), speech.wav) <= 1e-4


def said(model, text: str, patches: int, ended_by: str) -> generate.Piece:
    """A piece as if it had been spoken."""
    piece = generate.Piece(model, text, None, 0, None)
    line = piece.begin()
    line.patches, line.stop, line.ended_by = [torch.zeros(PATCH, BASE.vae.latent_dim)] * patches, [0.0] * patches, ended_by
    piece.wavs.append(torch.full((patches * SAMPLES,), 0.5))
    return piece


@pytest.mark.parametrize(
    "patches, ended_by, followed",
    [(10, "stop", True), (10, "silence", True), (10, "cap", False), (40, "stop", False), (78, "stop", False)],
    ids=["good", "silence", "cut off", "room for less than the text", "failed"],
)
def test_which_first_piece_is_followed(model, patches, ended_by, followed):
    piece = generate.Piece(model, "four five six seven", None, 0, None)
    free = piece.cap
    piece.follow(said(model, "one two three", patches, ended_by))
    assert (piece.prompt is not None) == followed
    assert len(piece.tokens) == (13 + 2 if followed else 0) + 19
    assert piece.cap == (BASE.max_length - 35 - patches if followed else free)


@pytest.mark.parametrize(
    "endings, ended_by", [(("stop", "stop", "stop"), "stop"), (("stop", "silence", "stop"), "silence"), (("cap", "silence", "stop"), "cap")]
)
def test_a_bad_end_within_a_long_text_is_told(model, endings, ended_by):
    pieces = [said(model, "one", 2, ending) for ending in endings]
    assert generate._speech("one one one", pieces, None).stats["ended_by"] == ended_by
    assert generate._speech("one one one", pieces, 5).stats["ended_by"] == "cap"


@pytest.mark.parametrize("prompt", [(None, None), (voice(5.5), "three")], ids=["free", "prompt"])
def test_max_seconds_of_a_long_text(model, prompt, monkeypatch):
    """Of the speech, not of each piece; what is before stays as it is. Streamed, it is the same."""
    text = "one two three four. five six seven! eight nine ten eleven? twelve."
    monkeypatch.setattr(model, "config", model.config.replace(**{"train.max_seconds": 2.0}))
    whole = model.generate(text, *prompt, seed=2, attempts=1)
    first = sum(len(chunk.wav) for chunk in model.stream(text, *prompt, seed=2) if chunk.text == split_text(text, 1.0)[0]) // SAMPLES
    for patches in (first - 1, first, first + 3, whole.stats["patches"] - 1):
        options = dict(seed=2, max_seconds=(patches - 0.5) * model.config.patch_seconds())
        cut = model.generate(text, *prompt, attempts=1, **options)
        assert len(cut.wav) == patches * SAMPLES and cut.stats["patches"] == len(cut.stats["stop"]) == patches
        assert cut.stats["ended_by"] == "cap" and len(cut.latents) == patches * PATCH
        assert figure(cut.wav, whole.wav[: len(cut.wav)]) <= 1e-4
        chunks = list(model.stream(text, *prompt, **options))
        assert figure(torch.cat([chunk.wav for chunk in chunks]), cut.wav) <= 1e-4
        assert figure(torch.cat([chunk.latents for chunk in chunks]), cut.latents) <= 1e-4


def test_a_long_text_is_read_before_it_is_spoken(model, monkeypatch):
    """What its last piece cannot say is told at the call, when nothing has been drawn yet."""
    monkeypatch.setattr(model, "config", model.config.replace(**{"train.max_seconds": 1.0}))
    monkeypatch.setattr(generate, "draw_patches", None)
    for speak in (model.generate, model.stream):
        with pytest.raises(ValueError, match="☃"):
            speak("one two. three four. five ☃ six.")


def test_progress_bar(model, capsys):
    """One for several sentences, none for a single one or on demand."""
    for texts, progress, shown in (("one", True, False), (TEXTS, True, True), (TEXTS, False, False)):
        model.generate(texts, seed=0, max_seconds=0.02, progress=progress)
        assert ("sentence" in capsys.readouterr().err) == shown


# ---------------------------------------------------------------------------------------------------------------- bad cases


def test_bad_cases_are_tried_again():
    """A stop head that never fires: three tries, each with new noise, and the last one is kept."""
    model = build(stop=False)
    once, thrice = (model.generate("one", seed=0, attempts=n) for n in (1, 3))
    assert once.stats["attempts"] == 1 and thrice.stats["attempts"] == 3
    assert figure(thrice.latents, once.latents) > 1e-3
    assert model.generate("one", seed=0, max_seconds=0.02).stats["attempts"] == 1, "cut off on demand is not a bad case"


def test_only_the_bad_are_tried_again(model, monkeypatch):
    """In a batch the good ones are kept as they are."""
    sizes, draw = [], generate.draw_patches
    monkeypatch.setattr(generate, "draw_patches", lambda model, lines, **options: sizes.append(len(lines)) or draw(model, lines, **options))
    fair = build(stop=True)
    good = fair.generate(["one", "two"], seed=0)
    assert sizes == [2] and [speech.stats["attempts"] for speech in good] == [1, 1]


class Mute:
    """A decoder that is silent for the patches it is told."""

    def __init__(self, silent):
        self.silent = silent

    def __call__(self, vae, batch=1):
        self.count = 0
        return self.decode

    def decode(self, z):
        patches = z.shape[2] // PATCH
        wav = torch.full((1, 1, patches, SAMPLES), 0.5)
        for k in range(patches):
            if self.count + k in self.silent:
                wav[0, 0, k] = 0.0
        self.count += patches
        return wav.flatten(2)


@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize(
    "silent, patches, ended_by, expected",
    [
        (range(0), 20, "cap", [1] * 20),
        (range(5, 9), 20, "cap", [1] * 5 + [0] * 4 + [1] * 11),  # a pause stays
        (range(3), 20, "cap", [0] * 3 + [1] * 17),  # also at the start
        (range(10, 20), 20, "cap", [1] * 10 + [0] * 5),  # silence at the end is cut to 0.5 s
        (range(6, 100), 60, "silence", [1] * 6 + [0] * 5),  # and ends the speech after 2 s
    ],
)
def test_silence(monkeypatch, chunk, silent, patches, ended_by, expected):
    """Patches of 0.1 s from a decoder that is silent on demand; streaming and generating cut at the same place."""
    model = build(stop=False)
    config = model.config.replace(**{"vae.sample_rate": SAMPLES * 10})
    monkeypatch.setattr(model, "config", config)
    monkeypatch.setattr(generate, "DecoderStream", Mute(silent))
    if chunk == 1:
        chunks = list(model.stream("one three five seven", seed=0, max_seconds=patches / 10))
        wav = torch.cat([chunk.wav for chunk in chunks])
        latents = torch.cat([chunk.latents for chunk in chunks])
    else:
        speech = model.generate("one three five seven", seed=0, max_seconds=patches / 10)
        wav, latents = speech.wav, speech.latents
        assert speech.stats["ended_by"] == ended_by and speech.stats["patches"] == len(expected) == len(speech.stats["stop"])
    assert (wav.view(-1, SAMPLES).mean(1) > 0).int().tolist() == expected
    assert len(latents) == len(expected) * PATCH


def test_max_seconds_within_a_pause(monkeypatch):
    """In the second of two pieces: the patches held back are streamed as far as `generate` gives them."""
    model = build(stop=False)
    monkeypatch.setattr(model, "config", model.config.replace(**{"vae.sample_rate": SAMPLES * 10, "train.max_seconds": 0.8}))
    monkeypatch.setattr(generate, "DecoderStream", Mute(range(3, 6)))
    options = dict(seed=0, max_seconds=3.75)  # 6 · 4 + 10 patches of the first, and 4 of the second
    expected = [1] * 3 + [0] * 3 + [1] * 28 + [1] * 3 + [0]
    wavs = [model.generate("one. two.", attempts=1, **options).wav, torch.cat([part.wav for part in model.stream("one. two.", **options)])]
    assert [(wav.view(-1, SAMPLES).mean(1) > 0).int().tolist() for wav in wavs] == [expected] * 2


def test_nothing_but_silence_is_a_bad_case(monkeypatch):
    model = build(stop=False)
    monkeypatch.setattr(model, "config", model.config.replace(**{"vae.sample_rate": SAMPLES * 10}))
    monkeypatch.setattr(generate, "DecoderStream", Mute(range(1000)))
    speech = model.generate("one three five seven", seed=0)
    assert speech.stats["attempts"] == 3 and speech.stats["ended_by"] == "silence" and speech.seconds == 0.5


def test_damaged_weights_are_named():
    model = build(stop=False)
    with torch.no_grad():
        model.locdit.out_proj.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="weights"):
        model.generate("one", seed=0)


# ------------------------------------------------------------------------------------------------------------------ prompts


def test_loud_prompt_is_scaled_down(model):
    with pytest.warns(UserWarning, match="scaled down"):
        loud = model.generate("two", voice(5) * 40, "one", seed=0, max_seconds=0.02)
    assert figure(loud.latents, model.generate("two", voice(5) / voice(5).abs().max(), "one", seed=0, max_seconds=0.02).latents) < 1e-4


def test_clipped_and_long_prompts_are_told(model):
    with pytest.warns(UserWarning, match="clipped"):
        model.generate("two", (voice(8) * 4).clamp(-1, 1), "one", seed=0, max_seconds=0.02)
    config, rate = model.config, BASE.vae.sample_rate
    short = config.replace(**{"train.max_seconds": 5 * SAMPLES / rate})
    try:
        model.config = short
        with pytest.warns(UserWarning, match="longer than anything"):
            model.generate("two", voice(8), "one", seed=0, max_seconds=0.02)
    finally:
        model.config = config


def test_good_prompts_pass_without_a_word(model, recwarn):
    model.generate("two", voice(8), "one", seed=0, max_seconds=0.02)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


# ------------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
def test_memory_stays_flat():
    """Ten minutes of generated speech in sentences of about 10 s: no tensor and no megabyte stays behind."""
    model = VoxCPM(preset("nano")).eval()
    with torch.no_grad():
        model.stop_head.weight.zero_()
    counts, resident, seconds = [], [], 0.0
    while seconds < 600:
        for _ in range(5):
            for chunk in model.stream("four hundred and twelve", seed=0, steps=2, cfg=1.0, max_seconds=10):
                seconds += chunk.seconds
        gc.collect()
        counts.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    print(f"{seconds:.0f} s of speech, tensors {counts}, resident {[round(r) for r in resident]} MB")
    assert len(counts) >= 10 and max(counts) == counts[0], counts
    assert resident[-1] - resident[len(resident) // 3] < 10, resident
