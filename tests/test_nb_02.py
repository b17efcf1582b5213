"""Notebook 02: what it defines equals `vox`, its formulas hold, its pictures can be drawn, its solutions solve its exercises."""

import math
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions
from torch import nn
from torch.nn import functional as F

import vox
from vox import ablations, files, vae, vae_loss
from vox.config import VAEConfig
from vox.exercises import Exercises

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "02_audio_vae.ipynb"
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [(9911, "")],
    2: [(lambda rates: math.prod(rates) - 1, "")],
    3: [(lambda mu, logvar, m, s: 0.5 * (1 + logvar - ((mu - m) ** 2 + logvar.exp()) / s**2) - s.log(), "")],  # the sign
    4: [(lambda variances, k: float(sorted(variances)[-k]), "")],  # half of what it may be: the next one may speak too
    5: [(lambda w, b, stride: lambda x: F.conv_transpose1d(x, w, b, stride)[..., :-stride], "")],  # no memory
}
SMALL = VAEConfig(encoder_dim=4, latent_dim=5, decoder_dim=32)


@pytest.fixture(scope="module")
def code():
    """The notebook's functions and classes, with the plain values that they read."""
    code = definitions(NOTEBOOK)
    code.rate, code.hop, code.distance = 16000, 640, vae_loss.MelDistance(16000)
    return code


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 7), (1, 9, 7), (2, 1, 4), (5, 1, 10), (3, 1, 6), (8, 1, 16)])
def test_causal_convolution_equals_vox(code, stride, dilation, kernel):
    conv, x = vae.CausalConv(2, 3, kernel, stride, dilation), normal(2, 2, 120)
    torch.testing.assert_close(code.causal_conv(x, conv.weight(), conv.bias, stride, dilation), conv(x))


@pytest.mark.parametrize("stride", [2, 3, 5, 8])
def test_painting_equals_the_transposed_convolution(code, stride):
    up, x = vae.CausalTransposedConv(3, 2, stride), normal(2, 3, 9)
    nn.init.normal_(up.bias)
    torch.testing.assert_close(code.paint(x, up.weight(), up.bias, stride), up(x))


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (lambda code: code.Snake(4), lambda: vae.Snake(4), (2, 4, 30)),
        (lambda code: code.Residual(4, 9), lambda: vae.ResidualUnit(4, 9, 4), (2, 4, 30)),
        (lambda code: code.EncoderBlock(4, 5), lambda: vae.EncoderBlock(4, 5, True), (2, 4, 30)),
        (lambda code: code.DecoderBlock(4, 5), lambda: vae.DecoderBlock(4, 5, True, False), (2, 4, 6)),
        (lambda code: code.Encoder(SMALL), lambda: vae.Encoder(SMALL), (2, 1, 1920)),
        (lambda code: code.Decoder(SMALL), lambda: vae.Decoder(SMALL), (2, 5, 3)),
    ],
)
def test_blocks_equal_vox(code, ours, theirs, shape):
    ours, theirs, x = ours(code), theirs(), normal(*shape)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.2, 0.2)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_a_whole_vae_equals_vox(code):
    torch.manual_seed(0)
    theirs = vox.AudioVAE(vox.preset("nano").vae).double().eval()  # in float32 an untrained decoder amplifies the last bits
    ours, wav = code.AudioVAE(theirs.config).double(), 0.3 * normal(1, 1, 6400).double()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(wav), theirs.encode_stats(wav), atol=1e-10, rtol=1e-9)
        z = theirs.encode(wav)
        torch.testing.assert_close(ours.decoder(z), theirs.decode(z), atol=1e-7, rtol=0)


def test_a_stream_goes_on_where_it_stopped(code):
    conv, x = code.Conv(4, 4, 7, dilation=3, groups=4), normal(1, 4, 40)
    stream = code.Stream(conv)
    torch.testing.assert_close(torch.cat([stream(piece) for piece in x.split((1, 5, 34), 2)], 2), conv(x))


def test_draws_and_divergence(code):
    mu, logvar = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    torch.testing.assert_close(code.kl(mu, logvar), vae_loss.kl(mu, logvar))
    torch.manual_seed(0)
    torch.testing.assert_close(code.kl_sampled(mu, logvar), code.kl(mu, logvar), rtol=0.02, atol=0)
    z = code.draw(mu.expand(20_000, 2, 4, 3), logvar.expand(20_000, 2, 4, 3))
    torch.testing.assert_close(z.mean(0), mu, atol=0.1, rtol=0)
    torch.testing.assert_close(z.var(0).log(), logvar, atol=0.1, rtol=0)


@pytest.mark.parametrize("beta", [0.01, 0.2, 1.0])
def test_where_the_toy_ends_is_where_no_step_helps(code, beta):
    variances = torch.tensor([2.0, 0.6, 0.3, 0.05])
    signal, noise, error = code.optimum(variances, beta)
    for got, expected in zip(code.descend(variances, beta, 3000), (signal, noise), strict=True):
        torch.testing.assert_close(got, expected, atol=0.03, rtol=0)
    a = (signal / variances).sqrt()
    b = a * variances / (a**2 * variances + noise)  # the best decoder of z is regression
    torch.testing.assert_close(variances * (1 - a * b) ** 2 + b**2 * noise, error)


def test_mel_distance_equals_vox(code):
    wav, target = 0.1 * normal(2, 1, 8000), 0.1 * normal(2, 1, 8000, seed=1)
    torch.testing.assert_close(code.mel_distance(wav, target), code.distance(wav, target))


def test_a_sine_is_learned(code):
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 100)[:, None]
    assert code.fit_sine(code.Flat(16), x, 400, width=16)[1] < 0.01


def test_explorers_draw_every_corner(code):
    for beta in (1e-5, 1.0, 3.0):
        figure, html = code.draw_kl(beta)
        assert isinstance(figure, Figure)
    assert "0 of 8 channels speak, 0.0 nats" in html  # a weight of more than 2 silences variance 1
    tiny = vox.load("tiny").vae
    sounds = code.traverse(tiny, 0.1 * normal(1, 1, 640 * 12), 3, [-4, 0, 2])
    with torch.no_grad():
        z = tiny.encode(0.1 * normal(1, 1, 640 * 12))
        torch.testing.assert_close(sounds[0], tiny.decode(z)[0, 0], atol=1e-5, rtol=1e-4)
        z[:, 3] += 2
        torch.testing.assert_close(sounds[2], tiny.decode(z)[0, 0], atol=1e-5, rtol=1e-4)
    code.traversals = [sounds]
    for shift in sounds:
        figure, html, speech = code.draw_traversal(0, shift)
        assert isinstance(figure, Figure) and isinstance(speech, vox.Speech) and len(speech.wav) == 640 * 12
        assert html.startswith("mel distance to the plain one 0.00") == (shift == 0)


@pytest.fixture
def swept(code):
    """The notebook with the committed sweep as its cells leave it."""
    code.sweep = files.read_json(files.HOME / "data/results/ablations_vae.json")
    code.stored, code.usual = files.HOME / "data/results/ablations_vae/samples", code.sweep["about"]["recipe"]
    code.test = ablations.recordings()
    code.swept = {(code.titled(run), run["seed"]): run for run in code.sweep["variants"]}
    return code


def test_a_run_of_the_sweep_is_named_by_what_it_has(swept):
    assert swept.titled({"changes": {}}) == "KL weight 5e-05, 16 channels"
    assert swept.titled({"changes": {"vae_train.kl": 0.0}}) == "KL weight 0, 16 channels"
    assert swept.titled({"changes": {"vae.latent_dim": 4}}) == "KL weight 5e-05, 4 channels"
    assert len(swept.swept) == len(swept.sweep["variants"]), "two runs have one name"


def test_the_sweeps_explorer_draws_every_corner(swept):
    """Picture, note and sound of every run; the sound is the variant's, its numbers stand before the default's."""
    default = swept.titled({"changes": {}})
    for (variant, seed), run in swept.swept.items():
        for recording, number in swept.sweep["about"]["heard"].items():
            figure, note, speech = swept.draw_sweep(variant, seed, recording)
            assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes][0] == variant
            ours, *theirs = note.split("<br>")
            assert ours.startswith(f"<b>{variant}</b>") and f"mel distance {run['lines'][number][0]:.2f}, heard" in ours
            assert f"{run['channels']} channels speak" in ours and (variant == default or theirs[0].startswith(f"<b>{default}</b>"))
            wav = vox.audio.load(swept.stored / run["samples"][recording], 16000)
            assert torch.equal(speech.wav, wav) and abs(len(wav) / 16000 - swept.sweep["sentences"][number][4]) < 0.2


def test_a_run_that_is_not_there_is_said_to_be_missing(swept):
    figure, note, speech = swept.draw_sweep("KL weight 0.5, 16 channels", 99, "English")
    assert "was not run with seed 99" in note and speech is None and not figure.axes


def test_the_text_says_what_the_sweep_found(swept):
    """Words of section 15 on the table that it prints, of seed 0."""
    found = {setting: run for run in swept.sweep["variants"] if run["seed"] == 0 for setting in [swept.setting(run)]}
    mean = lambda setting, k: sum(line[k] for line in found[setting]["lines"]) / len(found[setting]["lines"])  # noqa: E731
    usual, heavy, hum, wide, narrow = (5e-5, 16), (0.05, 16), (0.5, 16), (5e-5, 32), (5e-5, 4)
    assert [found[setting]["channels"] for setting in (usual, heavy, hum, wide, narrow)] == [16, 16, 0, 32, 4]
    assert found[heavy]["kl"] < found[usual]["kl"] and mean(heavy, 0) < mean(usual, 0) + 0.05
    assert mean(hum, 0) > mean(usual, 0) + 0.3 and abs(mean(hum, 1) - mean(usual, 1)) < 0.01
    assert 1.9 < found[wide]["kl"] / found[usual]["kl"] < 2.2 and mean(wide, 0) > mean(usual, 0) - 0.05
    assert mean(narrow, 0) > mean(usual, 0) + 0.1
    worse = {name: [] for name in ("KL weight 0.5, 16 channels", "KL weight 5e-05, 4 channels")}
    for (title, seed), run in swept.swept.items():
        if title in worse:
            default = swept.swept[swept.titled({"changes": {}}), seed]
            worse[title].append([sum(line[k] for line in run["lines"]) - sum(line[k] for line in default["lines"]) for k in (0, 1)])
    assert all(mel > 0 for pairs in worse.values() for mel, _ in pairs)
    assert any(stoi > 0 for _, stoi in worse["KL weight 0.5, 16 channels"][1:])


def test_facts_of_a_run(swept):
    run = {"lines": [[4.0, 0.5, "", 3, 0.0], [5.0, 0.7, "", 3, 0.0]], "kl": 2.0, "channels": 7}
    assert swept.facts(run) == "mel distance 4.50, STOI 0.60, 50 nats a second, 7 channels speak"


def test_pitches_of_rebuilt_speech(code, monkeypatch):
    """A VAE that changes nothing keeps the pitch."""
    wave = torch.sin(2 * math.pi * 150 * torch.arange(16000) / 16000)
    monkeypatch.setattr(code, "through", lambda vae, wav: wav)
    monkeypatch.setattr(code.corpus, "wav", lambda row, rate: 0.3 * wave)
    (true, rebuilt), voiced = code.pitches(None, [{}])
    assert len(true) == voiced > 50 and torch.equal(true, rebuilt) and (true / 150 - 1).abs().median() < 0.01


def test_the_text_quotes_the_measurement():
    """Words and figures about the VAEs that ship, and that stand in text cells."""
    measured = files.read_json(files.HOME / "data/results/mel_vae.json")["vae"]["figures"]
    figure = lambda codec, name: measured[codec][name]["speech"][0]  # noqa: E731
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown")
    assert f"is {figure('AudioVAE', 'stoi'):.2f}; we had aimed for 0.9 and missed it" in text
    assert f"{figure('AudioVAE', 'si_sdr'):.0f} dB".replace("-", "−") in text
    assert figure("AudioVAE", "mel") < figure("Opus 6", "mel")
    assert all(figure("AudioVAE", name) < figure("Opus 6", name) for name in ("stoi", "pesq", "si_sdr"))
    shipped = files.read_json(files.HOME / "data/results/tiny.json")
    before, after = (shipped[part]["figures"]["AudioVAE"] for part in ("vae_before", "vae"))
    assert before["pitch"]["speech"][0] > 0.5 and 20 < 1 / figure("AudioVAE", "pitch") < 30
    assert before["mel"]["speech"][1] > figure("AudioVAE", "mel") and before["identified"]["speech"][0] < figure("AudioVAE", "identified")
    assert before["identified"]["speech"][2] < after["identified"]["speech"][1], "the decoder's run brings back voices"
    assert before["pitch"]["speech"][1] < after["pitch"]["speech"][0] < before["pitch"]["speech"][2], "and hardly any pitch"
    channels = [vox.load_vae(files.HOME / "data/checkpoints" / name).config.latent_dim for name in ("mel_vae", "tiny")]
    weights = [files.read_json(files.HOME / f"data/results/{name}.json")["config"]["kl"] for name in ("mel_vae_log", "tiny_vae")]
    assert channels == [14, 26] and weights == [100 * 5e-5, 10 * 5e-5]


def test_what_a_latent_sees_is_what_a_gradient_says():
    exercises = Exercises("02_audio_vae").module
    small, wav = vae.AudioVAE(SMALL), (0.1 * normal(1, 1, 30 * 640)).requires_grad_()
    small.encode(wav)[0, :, 20].sum().backward()
    seen = wav.grad[0, 0].nonzero()[:, 0]
    assert seen[-1] - 20 * 640 == exercises.exercise_2()((2, 5, 8, 8)) and seen[-1] - seen[0] + 1 == exercises.exercise_1()
