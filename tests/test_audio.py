"""Waveforms, files and what a notebook shows of them."""

import base64
import io
import math

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from vox import audio


def tone(hertz=440.0, seconds=1.0, rate=16000, level=0.5):
    return level * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def peak_hertz(wav, rate):
    return float(torch.fft.rfft(wav).abs().argmax()) * rate / len(wav)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_a_saved_waveform_comes_back_within_half_a_step(tmp_path, extension):
    inside = 0.999 * (torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 2 - 1)  # what is near +1 is rounded as +1 is
    wav = torch.cat([torch.tensor([-1.0, 1.0, 0.0]), inside])
    audio.save(tmp_path / "new" / f"a.{extension}", wav, 16000)
    back = audio.load(tmp_path / "new" / f"a.{extension}")
    assert back.dtype == torch.float32 and back.shape == wav.shape
    assert (back - wav).abs()[2:].max() <= 0.5 / 32768 + 1e-7
    assert (back - wav).abs().max() <= 1 / 32768  # +1 itself is one step beyond 16 bits
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a.{extension}"]  # nothing left beside it
    assert soundfile.info(tmp_path / "new" / f"a.{extension}").subtype == "PCM_16"


def test_mp3_is_written_and_read(tmp_path):
    wav = tone(1000)
    audio.save(tmp_path / "a.mp3", wav, 16000)
    back = audio.load(str(tmp_path / "a.mp3"))
    assert soundfile.info(tmp_path / "a.mp3").format == "MP3"
    assert abs(len(back) - len(wav)) < 2000 and peak_hertz(back, 16000) == pytest.approx(1000, abs=2)


def test_stereo_is_mixed_and_another_rate_resampled(tmp_path):
    left, right = tone(440, rate=44100), tone(1000, rate=44100)
    soundfile.write(tmp_path / "a.wav", torch.stack([left, right], 1).numpy(), 44100)
    wav = audio.load(tmp_path / "a.wav", 16000)
    expected = (tone(440) + tone(1000)) / 2
    assert wav.shape == expected.shape
    assert (wav - expected)[500:-500].abs().max() < 1e-3
    samples, rate = audio.read(tmp_path / "a.wav")
    assert samples.shape == (2, 44100) and rate == 44100


def test_resample_keeps_pitch_and_removes_what_the_new_rate_cannot_hold():
    both = tone(1000, rate=48000) + tone(11000, rate=48000)
    down = audio.resample(both[None], 48000, 16000)
    assert down.shape == (1, 16000)
    assert (down[0] - tone(1000))[500:-500].abs().max() < 5e-3
    assert audio.resample(both, 16000, 16000) is both
    with pytest.raises(ValueError, match="positive"):
        audio.resample(both, 0, 16000)


def broken_files(folder):
    """(file name, what the message says)"""
    (folder / "noise.wav").write_bytes(b"this is no sound" * 100)
    yield "noise.wav", "cannot be read as sound"
    whole = audio.encode(tone(), 16000, "flac")
    (folder / "cut.flac").write_bytes(whole[:20])
    yield "cut.flac", "cannot be read as sound"
    (folder / "nothing.wav").write_bytes(b"")
    yield "nothing.wav", "cannot be read as sound"
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    yield "empty.wav", "no samples"
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    yield "nan.wav", "not finite"
    soundfile.write(folder / "loud.wav", np.array([0.1, 20000.0]), 16000, subtype="FLOAT")
    yield "loud.wav", r"scale its samples to \[-1, 1\]"
    yield "gone.wav", "does not exist"
    (folder / "folder.wav").mkdir()
    yield "folder.wav", "is a folder"


def test_files_that_are_no_sound_are_refused_by_name(tmp_path):
    for name, message in broken_files(tmp_path):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            audio.load(tmp_path / name)


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path):
    for name, wav, message in [
        ("a.ogg", tone(), "use wav, flac or mp3"),
        ("a.wav", tone()[None], "shape"),
        ("a.wav", torch.zeros(0), "shape"),
        ("a.wav", torch.tensor([0.0, math.nan]), "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            audio.save(tmp_path / name, wav, 16000)
    with pytest.raises(ValueError, match="resample"):
        audio.save(tmp_path / "a.mp3", tone(), 12345)
    assert not list(tmp_path.iterdir())


def test_clipping_on_writing():
    samples, _ = soundfile.read(io.BytesIO(audio.encode(torch.tensor([1.5, -1.5, 0.5]), 16000)))
    assert samples.tolist() == [32767 / 32768, -1.0, 0.5]


def test_loudness_is_a_level_limited_by_the_peak():
    wav = audio.loudness_normalise(tone(level=0.01), level=-20)
    assert 20 * math.log10(wav.square().mean().sqrt()) == pytest.approx(-20, abs=1e-3)
    click = torch.zeros(16000)
    click[100] = 0.1
    assert audio.loudness_normalise(click).abs().max() == pytest.approx(0.99)
    with pytest.raises(ValueError, match="silent"):
        audio.loudness_normalise(torch.zeros(100))


def test_trim_leaves_the_margin_and_the_speech():
    wav = torch.cat([torch.zeros(8000), tone(seconds=0.5), torch.zeros(3200), tone(seconds=0.5), 1e-4 * torch.randn(8000)])
    short = audio.trim(wav, 16000, threshold=-40, margin=0.03)
    assert torch.equal(short, wav[8000 - 480 : 8000 + 8000 + 3200 + 8000 + 480])  # the pause inside stays
    assert len(audio.trim(torch.zeros(1000))) == 0 and len(audio.trim(torch.zeros(0))) == 0
    assert torch.equal(audio.trim(tone(seconds=0.005)), tone(seconds=0.005))


def test_mel_has_its_shape_scale_and_place():
    bands = audio.mel(tone(1000).expand(2, 3, -1), 16000, n_fft=1024, hop=160, mels=40)
    assert bands.shape == (2, 3, 40, 101)
    assert torch.allclose(bands[0, 0], bands[1, 2])
    filters = audio._filters(16000, 1024, 40)  # [513, 40]
    assert bands[0, 0, :, 50].argmax() == filters[64].argmax()  # 1000 Hz is bin 64 of 15.625 Hz
    louder = audio.mel(2 * tone(1000), 16000, 1024, 160, 40)
    assert (louder - bands[0, 0])[:, 50].max() == pytest.approx(math.log(2), abs=1e-4)
    assert audio.mel(torch.zeros(1600)).eq(math.log(1e-5)).all()
    click = torch.zeros(16000)
    click[8000] = 1.0
    assert audio.mel(click, hop=160).sum(0).argmax() == 50  # frame i is centred on sample i · hop


def test_speech_knows_its_length_and_saves_itself(tmp_path):
    speech = audio.Speech(tone(seconds=1.5), 16000, "one")
    assert speech.seconds == 1.5 and repr(speech) == "Speech(1.50 s at 16000 Hz, 'one')"
    speech.save(tmp_path / "a.wav")
    assert len(audio.load(tmp_path / "a.wav")) == 24000


@pytest.fixture(scope="module")
def shown():
    """What a notebook shows of two utterances: the outputs of its two cells."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    code = ["import torch; from vox.audio import Speech\nSpeech(torch.sin(torch.arange(16000) / 5) / 2, 16000, '四 <b>')"]
    code += ["Speech(torch.zeros(0), 16000, 'x')"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, code)))
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [[output["data"] for output in cell.outputs] for cell in notebook.cells]


def test_speech_shows_a_picture_then_a_player(shown):
    picture, player = shown[0]
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG") and "text/html" not in picture
    page = player["text/html"]
    assert "四 &lt;b&gt;" in page and "<audio controls" in page
    sound = base64.b64decode(page.split("data:audio/mpeg;base64,")[1].split('"')[0])
    assert soundfile.info(io.BytesIO(sound)).format == "MP3"
    assert peak_hertz(audio.load(sound), 16000) == pytest.approx(16000 / 5 / (2 * math.pi), abs=3)


def test_what_a_notebook_stores_of_a_speech_is_small():
    """Notebooks hold many. Noise is the worst case."""
    noise = audio.Speech(torch.randn(48000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3, 16000)
    assert len(noise.png()) <= 40_000 and len(audio.encode(noise.wav, 16000, "mp3")) <= 27_000


def test_the_picture_of_a_speech_is_its_waveform_over_its_spectrogram():
    """Sound in the second half only: ink in both parts lies on the right."""
    wav = torch.cat([torch.zeros(8000), tone(1000, seconds=0.5)])
    with Image.open(io.BytesIO(audio.Speech(wav, 16000).png())) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float()  # [rows, columns, 3]
    left, right = pixels[:, 100:350], pixels[:, 450:690]
    blue = lambda part: int((part[:60, :, 2] - part[:60, :, 0] > 80).sum())  # noqa: E731  (the waveform's colour)
    bright = lambda part: int((part[75:200].mean(-1) > 120).sum())  # noqa: E731
    assert blue(right) > 20 * blue(left) > 0 and bright(right) > 0 == bright(left)


def test_empty_speech_shows_a_line(shown):
    assert shown[1] == [{"text/plain": "Speech(0.00 s at 16000 Hz, 'x')"}]


def test_a_few_bars_beside_a_spectrogram_keep_their_colours():
    """64 colours go to what there is most of; a colour of some dozens of pixels must not come out as another."""
    rng = np.random.default_rng(0)
    pixels = matplotlib.colormaps["magma"](rng.random((300, 400)), bytes=True)[..., :3].copy()
    solid = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233)]
    for k, colour in enumerate(solid):
        pixels[:6, 10 * k : 10 * k + 6] = colour
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    few = audio.fewer_colours(file.getvalue())
    with Image.open(io.BytesIO(few)) as picture:
        shown = np.asarray(picture.convert("RGB"), dtype=int)
        assert len(picture.getpalette()) // 3 <= 64
    assert [tuple(shown[2, 10 * k + 2]) for k in range(len(solid))] == solid
    assert np.abs(shown - pixels).sum(-1).mean() < 20 and len(few) < len(file.getvalue()) / 2
    assert audio.fewer_colours(file.getvalue()) == few


def test_what_a_judge_has_made_serves_training():
    """Filters are kept; those made in inference mode must not break a later call that wants gradients."""
    for change in (lambda wav: audio.mel(wav, 11000, 512, 100, 33), lambda wav: audio.resample(wav, 11000, 7000)):
        with torch.inference_mode():
            expected = change(tone(rate=11000)).clone()
        wav = tone(rate=11000).requires_grad_()
        found = change(wav)
        found.sum().backward()
        assert torch.equal(found.detach(), expected) and wav.grad.abs().sum() > 0
