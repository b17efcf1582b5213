"""Speaking from end to end against the official inference: text to latents to waveform, with and without a prompt."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch
import torchaudio
from reference import WatchFSQ, close
from test_parity_layout import official_load

from vox import generate
from vox.config import preset
from vox.voxcpm import VoxCPM

# (config, seed of the stop head, patches with a prompt of 0, 1 and 5 patches): chosen so that the stop head ends speech somewhere
# between the least and the most. With a random head it may never fire, and then "equally long" would mean nothing.
LENGTHS = [("v1", 7, (6, 6, 28)), ("v1.5", 6, (17, 15, 36)), ("v1.5", 8, (10, 11, 10)), ("mup", 7, (5, 5, 6))]
CAP = 40


def set_stop_head(both, seed):
    """One random direction decides between go on and stop."""
    weight = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    for head in (both.official.stop_head, both.ours.stop_head):
        head.weight.data.copy_(torch.stack((-weight, weight)))


@contextlib.contextmanager
def quiet():
    """The official loop draws a progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def official_loop(both, tokens, prompt, **options):
    """The official loop on ids [n] and prompt patches [m, P, D] → new patches [m', P, D]."""
    n, m = len(tokens) + 1, len(prompt)
    text = torch.cat((tokens, torch.tensor([101]), torch.zeros(m, dtype=torch.long)))[None]
    is_audio = torch.cat((torch.zeros(n), torch.ones(m)))[None]
    feats = torch.cat((torch.zeros(n, *prompt.shape[1:]), prompt))[None]
    with WatchFSQ(both.official.fsq_layer) as watch, quiet():
        _, patches = both.official.inference(text, 1 - is_audio, feats, is_audio, **options)
    prefill, *steps = watch.inputs
    watch.inputs = [prefill[:, n:]] * bool(m) + steps  # codes are used at audio positions only
    watch.check()
    return patches[min(m, 2) :]  # the loop hands the last two prompt patches back as context


def our_loop(both, tokens, prompt) -> generate.Line:
    """Our loop on the same, with a generator of seed 3."""
    line = generate.Line(tokens, prompt, CAP, torch.Generator().manual_seed(3))
    for _ in generate.draw_patches(both.ours, [line]):
        pass
    return line


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("name, stop, lengths", LENGTHS)
def test_loop(pair, name, stop, lengths, case):
    """Equal patches, equally many, and the same reason to end."""
    both = pair(name)
    set_stop_head(both, stop)
    prompt_length = (0, 1, 5)[case]
    tokens, prompt = torch.randint(105, 400, (7,)), torch.randn(prompt_length, both.tree["patch_size"], 8)
    torch.manual_seed(3)  # the official loop draws from the global generator, ours from one with the same seed
    expected = official_loop(both, tokens, prompt, max_len=CAP)
    assert len(expected) == lengths[case] < CAP, "the stop head must end speech"
    line = our_loop(both, tokens, prompt if prompt_length else None)
    assert line.ended_by == "stop"
    close(torch.stack(line.patches), expected, what=f"loop {name}, {prompt_length} prompt patches")


def test_loop_to_the_cap(pair):
    """A stop head that never fires: as many patches as allowed, on both sides."""
    both = pair("v1")
    set_stop_head(both, 3)
    tokens, prompt = torch.randint(105, 400, (7,)), torch.zeros(0, 2, 8)
    torch.manual_seed(3)
    expected = official_loop(both, tokens, prompt, max_len=CAP)
    line = our_loop(both, tokens, None)
    assert len(line.patches) == len(expected) == CAP and line.ended_by == "cap"
    close(torch.stack(line.patches), expected, what="loop v1, to the cap")


@pytest.mark.parametrize("name, stop, ended_by, retry", [("v1", 7, "stop", True), ("v1.5", 8, "cap", False), ("v1.5", 8, "cap", True)])
def test_speech_from_text(pair, name, stop, ended_by, retry):
    """A text through the public functions of both sides: the same waveform, also if it is tried again because it is too long."""
    both = pair(name)
    set_stop_head(both, stop)
    torch.manual_seed(5)
    with WatchFSQ(both.official.fsq_layer) as watch, quiet():
        expected = both.official.generate("the one 你好", inference_timesteps=10, cfg_value=2.0, retry_badcase=retry)[0]
    watch.inputs = [hidden for hidden in watch.inputs if hidden.ndim == 2]  # what it makes of text is not used
    watch.check()
    speech = both.ours.generate("the one 你好", seed=5, attempts=3 if retry else 1)
    assert speech.stats["ended_by"] == ended_by and speech.stats["attempts"] == (3 if retry and ended_by == "cap" else 1)
    close(speech.wav, expected, what=f"speech {name}, {speech.stats['attempts']} attempts")


@pytest.mark.parametrize("extra", [0, 333], ids=["whole patches", "part of a patch"])
@pytest.mark.parametrize("name, stop", [("v1", 7), ("v1.5", 8)])
def test_speech_with_a_prompt(pair, name, stop, extra, monkeypatch):
    """A prompt of several patches: padded on the left, cut off the same way, and only new speech comes back.

    Its text is a sentence with its end: where there is none, `vox.text.join_texts` adds a full stop, and the official code adds nothing.
    """
    both = pair(name)
    set_stop_head(both, stop)
    samples = both.tree["patch_size"] * both.official.chunk_size
    wav = torch.rand(4 * samples + extra) * 2 - 1
    monkeypatch.setattr(torchaudio, "load", lambda path: (wav[None], both.official.sample_rate))
    cache = both.official.build_prompt_cache("the one. ", "prompt.wav")
    torch.manual_seed(5)
    with WatchFSQ(both.official.fsq_layer) as watch, quiet():
        expected = both.official.generate_with_prompt_cache("one 你好", cache)[0][0]
    watch.inputs[0] = watch.inputs[0][:, -len(cache["audio_feat"]) :]
    watch.check()
    speech = both.ours.generate("one 你好", wav, "the one.", seed=5, attempts=1)
    assert speech.stats["patches"] * samples == len(speech.wav), "only new speech"
    close(speech.wav, expected, what=f"speech {name}, with a prompt")


@pytest.mark.parametrize("text", ["one hundred and two", "一百零二"])
def test_our_export_speaks_there(tmp_path, text):
    """A model that was never released, saved by us with its own tokenizer and read by the official package: the same speech."""
    torch.manual_seed(4)
    ours = VoxCPM(preset("nano")).eval()
    weight = torch.randn(192)
    ours.stop_head.weight.data.copy_(torch.stack((-weight, weight)))
    ours.save(tmp_path)
    both = SimpleNamespace(ours=ours, official=official_load(tmp_path))
    torch.manual_seed(5)
    with WatchFSQ(both.official.fsq_layer) as watch, quiet():
        expected = both.official.generate(text, max_len=12)[0]
    watch.inputs = [hidden for hidden in watch.inputs if hidden.ndim == 2]
    watch.check()
    speech = ours.generate(text, seed=5, attempts=1, max_seconds=12 * ours.config.patch_seconds())
    close(speech.wav, expected, bound=1e-4, what="speech of an exported nano")  # a fresh VAE is loud and amplifies rounding
