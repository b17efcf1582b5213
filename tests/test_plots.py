"""The figures: what they show, in which style, and the files they leave."""

import json
import math
import os
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
import soundfile  # noqa: F401  (before warnings become errors)
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from vox import plots, text
from vox.audio import Speech

RATE = 16000


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning in matplotlib
        yield


def sine(hz, seconds=0.5, rate=RATE):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * rate)) / rate)


def history(steps=100):
    return [
        {"step": i, "mel": 20 * math.exp(-i / 20) + 0.01, "diffusion": 1.5 - i / 200, "lr": 1e-3, "grad_norm": 1.0}
        for i in range(1, steps + 1)
    ]


def pixels(figure, tmp_path):
    """[height, width, 3] in [0, 1]"""
    return imread(plots.save(figure, tmp_path / "figure.png"))[..., :3]


FIGURES = {
    "spectrogram": (lambda: plots.spectrogram(sine(440), RATE, title="nine 九"), 2.6),
    "waveform": (lambda: plots.waveform(Speech(sine(440), RATE, "nine 九")), 2.0),
    "sheet": (lambda: plots.sheet([("four hundred and twelve", sine(440), RATE), ("四百一十二", sine(220, 0.3, 44100), 44100)]), 3.3),
    "learning_curves": (lambda: plots.learning_curves(history(), title="first words 初"), 2.5),
    "lines": (lambda: plots.lines([1, 2, 4], {"with": [1, 1, 1.0], "without 无": [1, 2, 4.0]}, "positions", "ms", log="xy"), 2.6),
    "spoken": (lambda: plots.spoken(Speech(sine(440), RATE, "nine 九", stats={"stop": [0.1, 0.9]}), 0.25), 4.6),
    "stacked": (lambda: plots.stacked({"float32": {"TSLM": 2.0, "VAE": 1.0}}, "ms"), 1.35),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_its_size_ink_and_ground(name, tmp_path):
    make, inches = FIGURES[name]
    figure = make()
    assert isinstance(figure, Figure)
    image = pixels(figure, tmp_path)
    assert image.shape == (round(inches * plots.DPI), 960, 3)
    assert np.allclose(image[0, 0], matplotlib.colors.to_rgb(plots.GROUND), atol=0.01)  # opaque: the page behind it does not matter
    assert image.min() < 0.2
    assert len(np.unique((image * 255).astype(int).reshape(-1, 3), axis=0)) > 20
    assert ((image < 0.5).all(-1)).sum() > 500  # dark pixels: text and axes at least


def test_a_dark_style_of_the_reader_changes_nothing(tmp_path):
    before = {name: pixels(make(), tmp_path) for name, (make, _) in FIGURES.items()}
    with matplotlib.rc_context({"text.color": "white", "axes.facecolor": "black", "xtick.color": "white", "font.size": 20}):
        for name, (make, _) in FIGURES.items():
            assert np.array_equal(pixels(make(), tmp_path), before[name]), name
        assert matplotlib.rcParams["font.size"] == 20


def test_figures_need_no_pyplot_and_show_themselves():
    show = "plots.waveform(torch.ones(9), 9)._repr_png_()[:4]"
    code = f"import sys, torch; from vox import plots; print({show}, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    assert done.stdout.strip() == r"b'\x89PNG' False"


# sound


@pytest.mark.parametrize(("rate", "hz"), [(16000, 500), (16000, 2000), (44100, 4000), (8000, 1000)])
def test_a_sine_lies_on_its_mark(rate, hz):
    axes = plots.spectrogram(sine(hz, rate=rate), rate).axes[0]
    row = axes.images[0].get_array().mean(1).argmax()
    marks = dict(zip([label.get_text() for label in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert abs(row - marks[f"{hz / 1000:g}"]) < 1
    assert max(marks.values()) < plots.MELS


def test_speech_brings_its_rate_and_its_title():
    axes = plots.spectrogram(Speech(sine(300), RATE, "三百")).axes[0]
    assert axes.get_title(loc="left") == "三百"
    assert axes.get_xlim() == pytest.approx((0, 0.5), abs=0.011)  # seconds, up to one column of 10 ms
    assert plots.waveform(sine(300), RATE).axes[0].get_title(loc="left") == ""


def test_a_sheet_shares_time_and_colours():
    figure = plots.sheet([("one", sine(300, 0.5), RATE), ("二", sine(300, 1.0), RATE), ("three", 1e-3 * sine(300, 0.2), RATE)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "二", "three"]
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 1.0)}
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(plots.DARKEST, plots.BRIGHTEST)}
    loud, _, quiet = (axes.images[0].get_array() for axes in figure.axes)
    assert loud.max() - quiet.max() == pytest.approx(60, abs=1)  # dB


@pytest.mark.parametrize(
    ("wav", "rate", "message"),
    [
        (torch.zeros(0), RATE, "N > 0"),
        (torch.zeros(1, 100), RATE, r"\[1, 100\]"),
        (torch.tensor([0.0, math.nan]), RATE, "not finite"),
        (torch.zeros(100), None, "pass its sample_rate"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wav, rate, message):
    for draw in (plots.spectrogram, plots.waveform):
        with pytest.raises(ValueError, match=message):
            draw(wav, rate)
    with pytest.raises(ValueError, match=rf"row 2 \(nine\).*{message}"):
        plots.sheet([("one", sine(300), RATE), ("nine", wav, rate)])


def test_a_sheet_in_columns(tmp_path):
    """Line by line; the lowest of each column has the marks of the time axis, and what is missing in the last line is not there."""
    figure = plots.sheet([(f"{number} " + "long " * 20, sine(300, 0.1 * number), RATE) for number in (1, 2, 3)], columns=2)
    first, second, third = figure.axes
    places = [(axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start) for axes in figure.axes]
    assert places == [(0, 0), (0, 1), (1, 0)]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "seconds", "seconds"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["kHz", "", "kHz"]
    assert first.get_xlim() == second.get_xlim() == third.get_xlim()
    assert first.get_title(loc="left").endswith("…") and len(first.get_title(loc="left")) <= 50
    assert pixels(figure, tmp_path).shape == (round(3.3 * plots.DPI), 960, 3)


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        plots.sheet([])


# text


def test_chinese_is_drawn_as_itself(tmp_path):
    spoken = [c for c in "零〇一二两三四五六七八九十百千万亿点分秒半年月日号星期上下午，。？！"]
    assert plots.drawable("".join(spoken)) == "".join(spoken)
    titles = [pixels(plots.waveform(sine(300), RATE, title=c), tmp_path)[:25] for c in spoken[:6]]
    ink = [(title < 0.5).all(-1).sum() for title in titles]
    assert min(ink) > 5
    assert all((a != b).any() for i, a in enumerate(titles) for b in titles[:i])  # no two are the same box


def test_the_tokenizer_knows_no_character_that_figures_do_not():
    tokenizer = text.CharTokenizer()
    every = "".join(tokenizer.decode([i]) for i in range(tokenizer.vocab_size) if i not in (0, 101, 102, 103, 104))
    assert len(every) > 100
    assert "U+" not in plots.drawable(every, columns=10**6)


def test_a_character_without_a_glyph_becomes_its_code_point(tmp_path):
    assert plots.drawable("饕\n餮 ok") == "⟨U+9955⟩ ⟨U+992E⟩ ok"
    pixels(plots.waveform(sine(300), RATE, title="饕餮"), tmp_path)  # no warning


def test_dollars_are_text(tmp_path):
    pixels(plots.learning_curves(history(), title=r"$5 and $\frac"), tmp_path)
    pixels(plots.waveform(sine(300), RATE, title=r"$\undefined$"), tmp_path)


def test_long_text_is_shortened_by_width():
    assert plots.drawable("a" * 100) == "a" * 100
    assert plots.drawable("a" * 101) == "a" * 99 + "…"
    assert plots.drawable("一" * 50) == "一" * 50
    assert plots.drawable("一" * 51) == "一" * 49 + "…"


# training


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_curves_are_one_panel_a_loss():
    axes = panels(plots.learning_curves(history()))
    assert list(axes) == ["mel", "diffusion"]
    assert [axes[name].get_yscale() for name in axes] == ["log", "linear"]
    raw, smooth = axes["diffusion"].lines
    assert np.allclose(raw.get_ydata(), [row["diffusion"] for row in history()])
    assert np.allclose(smooth.get_ydata()[5:-5], raw.get_ydata()[5:-5])  # the running mean of a straight line is the line: no lag
    assert len(panels(plots.learning_curves(history(39)))["mel"].lines) == 1


def test_missing_and_broken_values_leave_gaps(tmp_path):
    rows = history(60)
    rows[10]["diffusion"] = math.nan
    rows[20]["diffusion"] = math.inf
    for row in rows[::20]:
        row["valid"] = 1.0
    figure = plots.learning_curves(rows)
    raw, smooth = panels(figure)["diffusion"].lines
    assert np.isnan(raw.get_ydata()).sum() == 2
    assert np.isfinite(smooth.get_ydata()).all()
    assert panels(figure)["valid"].lines[0].get_xdata().tolist() == [1, 21, 41]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "step", "step"]  # the lowest panel of each column
    pixels(figure, tmp_path)
    pixels(plots.learning_curves([{"step": 1, "mel": math.nan}, {"step": 2, "mel": 0.0}]), tmp_path)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "lr": 1e-3}], [{"mel": 1.0}]])
def test_no_curve_is_an_error(rows):
    with pytest.raises(ValueError, match="no curve to draw"):
        plots.learning_curves(rows)


# files


def test_save_writes_the_data_beside_the_picture(tmp_path):
    data = {"wav": torch.tensor([0.5, math.nan]), "mel": np.eye(2), "text": "四百", "best": np.float32(0.5), "path": tmp_path}
    path = plots.save(plots.waveform(sine(300), RATE), tmp_path / "deep" / "wave.png", data)
    assert path == tmp_path / "deep" / "wave.png"
    assert sorted(os.listdir(path.parent)) == ["wave.json", "wave.png"]
    read = json.loads((path.parent / "wave.json").read_text(encoding="utf-8"))
    assert read == {"wav": [0.5, None], "mel": [[1, 0], [0, 1]], "text": "四百", "best": 0.5, "path": str(tmp_path)}
    plots.save(plots.waveform(sine(300), RATE), tmp_path / "bare.png")
    assert not (tmp_path / "bare.json").exists()


def test_the_same_figure_is_the_same_file(tmp_path):
    first, second = (plots.save(plots.sheet([("九", sine(300), RATE)]), tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert b"Software" not in first


def test_a_failed_save_leaves_the_old_files_whole(tmp_path, monkeypatch):
    path = plots.save(plots.waveform(sine(300), RATE), tmp_path / "wave.png", {"hz": 300})
    before = path.read_bytes(), (tmp_path / "wave.json").read_bytes()

    with pytest.raises(TypeError):
        plots.save(plots.waveform(sine(600), RATE), path, {"hz": object()})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        plots.save(plots.waveform(sine(600), RATE), path, {"hz": 600})
    assert (path.read_bytes(), (tmp_path / "wave.json").read_bytes()) == before
    assert sorted(os.listdir(tmp_path)) == ["wave.json", "wave.png"]


def test_only_png(tmp_path):
    with pytest.raises(ValueError, match=r"\.png, not \.svg"):
        plots.save(plots.waveform(sine(300), RATE), tmp_path / "wave.svg")
    assert not os.listdir(tmp_path)


def test_the_stop_curve_shows_each_patch_at_its_end():
    axes = plots.stop_curve([0.1, 0.2, 0.9], 0.16).axes[0]
    seconds, probability = axes.lines[0].get_data()
    assert list(probability) == [0.1, 0.2, 0.9] and list(seconds) == pytest.approx([0.16, 0.32, 0.48])
    with pytest.raises(ValueError, match="not a single patch"):
        plots.stop_curve([], 0.16)


def test_lines_share_an_axis_that_starts_at_nothing():
    axes = plots.lines([1, 2, 4], {"with": [5, 5, 5], "without": [5, 6, 9]}, "positions", "ms", log="x").axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[5, 5, 5], [5, 6, 9]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"] and axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["with", "without"]
    assert plots.lines([1, 2], {"only": [1, 2]}, "x", "y").axes[0].get_legend() is None
    for x, series in (([], {}), ([1], {}), ([1, 2], {"short": [1]})):
        with pytest.raises(ValueError, match="no lines to draw"):
            plots.lines(x, series, "x", "y")


def test_stacked_parts_stand_behind_each_other():
    axes = plots.stacked({"float32": {"TSLM": 2.0, "VAE": 1.0}, "int8": {"VAE": 4.0}}, "ms").axes[0]
    bars = [[(bar.get_x(), bar.get_width()) for bar in part] for part in axes.containers]
    assert bars == [[(0, 2), (0, 0)], [(2, 1), (0, 4)]]  # TSLM, then VAE, in both rows
    with pytest.raises(ValueError, match="no bars to draw"):
        plots.stacked({"float32": {}}, "ms")
