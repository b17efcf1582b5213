"""Figures in one style: spectrogram, waveform, a sheet of spectrograms, learning curves, measurements; `save` writes a PNG and its data.

Every function returns a matplotlib Figure of its own, which shows itself in Jupyter: no pyplot, so nothing is left open and
nothing in the reader's session changes. Pictures have an off-white ground and dark ink, so they read the same on a light and a
dark page; lines take the Okabe–Ito colours, which stay apart for colour-blind eyes, and spectrograms a map even in lightness.

Notable choices
- matplotlib's own font has no Chinese: `fonts/vox-han.ttf` brings the 3755 most frequent characters. A character that neither
  font has is written as its code point (⟨U+9955⟩), so no text turns into empty boxes or warnings;
- all spectrograms of a sheet share one time axis and one colour scale: equal pictures mean equal sound.
"""

import functools
import io
import itertools
import math
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from . import audio, files

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe–Ito; yellow left out: too pale for a line
GROUND, INK, FAINT = "#fbfbf9", "#222222", "#d9d9d6"
WIDTH = 8.0  # inches; at 120 dots an inch a picture is 960 pixels wide
DPI = 120
MELS = 80
DARKEST, BRIGHTEST = -80.0, 20.0  # dB of a mel magnitude; a full-scale sine reaches about 20
HERTZ = (500, 1000, 2000, 4000, 8000, 16000)  # marks of the frequency axis
NOT_LOSSES = ("step", "lr", "grad_norm")
HAN = Path(__file__).parent / "fonts" / "vox-han.ttf"

font_manager.fontManager.addfont(HAN)
STYLE = {
    "font.family": ["DejaVu Sans", "Vox Han"],  # a glyph missing in the first is taken from the second
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": FAINT,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
styled = matplotlib.rc_context(STYLE)  # as a decorator: the style holds while the function runs


class Picture(Figure):
    """A matplotlib Figure that draws itself in this module's style, wherever it is shown."""

    def _repr_png_(self):
        return png(self)


@styled  # some ticks are made only while drawing
def png(figure: Figure) -> bytes:
    """Any figure as the bytes of a PNG picture in this module's style, 120 dots an inch and 64 colours."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return audio.fewer_colours(file.getvalue())


def _figure(height, rows=1, columns=1, **options):
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)  # [rows, columns] of Axes


# ---- text ------------------------------------------------------------------------------------------------------------


@functools.cache
def _glyphs():
    """Code points that can be drawn."""
    fonts = (font_manager.findfont("DejaVu Sans"), HAN)
    return frozenset().union(*(FT2Font(str(font)).get_charmap() for font in fonts))


def drawable(text: str, columns: int = 100) -> str:
    """`text` as the figures can show it: one line, at most `columns` wide (a Chinese character counts two), the rest as ….

    A character without a glyph becomes its code point in angle brackets.
    """
    pieces = [c if ord(c) in _glyphs() else f"⟨U+{ord(c):04X}⟩" for c in " ".join(text.split())]
    widths = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in piece) for piece in pieces]
    if sum(widths) <= columns:
        return "".join(pieces)
    total = np.cumsum(widths)
    return "".join(pieces[: int((total < columns).sum())]).rstrip() + "…"


def _title(axes, text, columns=100):
    axes.set_title(drawable(text, columns), parse_math=False)  # a price of $5 is no formula


# ---- sound -----------------------------------------------------------------------------------------------------------


def _wave(speech, sample_rate, name="speech"):
    """Speech, or a waveform [N] and its rate → tensor [N] on the CPU, rate."""
    if isinstance(speech, audio.Speech):
        return _wave(speech.wav, speech.sample_rate, name)
    if sample_rate is None:
        raise ValueError(f"{name} is a bare waveform: pass its sample_rate in Hz")
    wav = torch.as_tensor(speech).detach().float().cpu()
    if wav.ndim != 1 or not len(wav):
        raise ValueError(f"{name} must be a waveform [N] with N > 0, not {list(wav.shape)}: pick one clip and squeeze it")
    if not wav.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite: there is nothing to draw")
    return wav, sample_rate


def _mel_row(hertz, sample_rate, mels):
    """Row of the mel band that is centred on a frequency (Slaney's scale: linear up to 1 kHz, then 27 steps to a factor of 6.4)."""
    scale = lambda f: 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)  # noqa: E731
    return scale(hertz) / scale(sample_rate / 2) * (mels + 1) - 1


def _draw_spectrogram(axes, wav, sample_rate):
    """Mel magnitudes in dB, 10 ms a column, with frequencies in kHz on the left."""
    window = 2 ** round(math.log2(0.05 * sample_rate))  # about 50 ms: harmonics of a voice show as lines
    bands = audio.mel(wav, sample_rate, n_fft=window, hop=sample_rate // 100, mels=MELS) * (20 / math.log(10))  # [mels, frames] in dB
    extent = (0, bands.shape[1] * (sample_rate // 100) / sample_rate, -0.5, MELS - 0.5)
    style = dict(origin="lower", aspect="auto", cmap="magma", vmin=DARKEST, vmax=BRIGHTEST, interpolation="nearest")
    image = axes.imshow(bands.numpy(), extent=extent, **style)
    marks = [f for f in HERTZ if f < sample_rate / 2]
    axes.set_yticks([_mel_row(f, sample_rate, MELS) for f in marks], [f"{f / 1000:g}" for f in marks])
    axes.set_ylim(-0.5, MELS - 0.5)
    axes.set_ylabel("kHz")
    return image


@styled
def spectrogram(speech, sample_rate: int | None = None, title: str | None = None) -> Figure:
    """The mel spectrogram of a `Speech`, or of a waveform [N] at `sample_rate` Hz: seconds across, kHz (mel scale) up, dB as colour.

    `title` defaults to the text of the Speech. Raises ValueError for another shape, no samples, or values that are not finite.
    """
    wav, rate = _wave(speech, sample_rate)
    figure, [[axes]] = _figure(2.6)
    bar = figure.colorbar(_draw_spectrogram(axes, wav, rate), ax=axes, pad=0.01, label="dB")
    bar.outline.set_visible(False)
    axes.set_xlabel("seconds")
    _title(axes, title if title is not None else getattr(speech, "text", ""))
    return figure


@styled
def waveform(speech, sample_rate: int | None = None, title: str | None = None) -> Figure:
    """The samples of a `Speech`, or of a waveform [N] at `sample_rate` Hz, over seconds. Errors as `spectrogram`."""
    wav, rate = _wave(speech, sample_rate)
    figure, [[axes]] = _figure(2.0)
    axes.plot(np.arange(len(wav)) / rate, wav.numpy(), linewidth=0.6)
    axes.set_xlim(0, len(wav) / rate)
    axes.set(xlabel="seconds", ylabel="amplitude")
    _title(axes, title if title is not None else getattr(speech, "text", ""))
    return figure


@styled
def sheet(rows: list, columns: int = 1) -> Figure:
    """A sheet of spectrograms: `rows` of (title, waveform [N], sample rate in Hz), line by line in `columns`.

    All share the time axis and the colour scale. Raises ValueError for an empty list; for a row, as `spectrogram`, naming it.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row of (title, wav, sample_rate)")
    waves = [_wave(wav, rate, f"row {number} ({title})") for number, (title, wav, rate) in enumerate(rows, 1)]
    lines = -(-len(rows) // columns)
    figure, axes = _figure(0.6 + 1.35 * lines, lines, columns, sharex=True)
    for number, (ax, (title, *_), (wav, rate)) in enumerate(zip(axes.flat, rows, waves, strict=False)):
        _draw_spectrogram(ax, wav, rate)
        _title(ax, title, 100 // columns)
        if number % columns:
            ax.set_ylabel("")
    for ax in axes.flat[len(rows) :]:
        ax.remove()
    for ax in axes.flat[max(0, len(rows) - columns) : len(rows)]:  # the lowest of each column
        ax.set_xlabel("seconds")
        ax.tick_params(labelbottom=True)
    axes[0, 0].set_xlim(0, max(len(wav) / rate for wav, rate in waves))
    return figure


# ---- training --------------------------------------------------------------------------------------------------------


def _smooth(values, width):
    """Running mean over `width` values around each one, over as many as there are near the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - width // 2, 0), np.minimum(centre + width // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


@styled
def learning_curves(history: list[dict], title: str | None = None) -> Figure:
    """One panel for each named loss of a training run over its steps; `history` is a list of {"step": n, "some loss": value, ...}.

    A row may lack a name; "lr" and "grad_norm" are not drawn. Values that are not finite leave a gap. A positive loss that falls
    by more than a factor of ten gets a logarithmic axis. From 40 points on, a running mean lies over the faint raw values.
    Raises ValueError if no row has a step and a loss.
    """
    names = list(dict.fromkeys(name for row in history for name in row if name not in NOT_LOSSES))
    if not names or any("step" not in row for row in history):
        raise ValueError('no curve to draw: history must be a list of dicts with "step" and at least one loss, as Report.history is')
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(0.6 + 1.9 * rows, rows, columns, sharex=True)
    for number, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        points = np.array([(row["step"], row[name]) for row in history if row.get(name) is not None], dtype=float)  # [points, 2]
        steps, values = points[:, 0], np.where(np.isfinite(points[:, 1]), points[:, 1], np.nan)
        colour, good = COLOURS[number % len(COLOURS)], np.isfinite(values)
        if good.sum() < 40:
            ax.plot(steps, values, color=colour, linewidth=1.6, marker=".")
        else:
            ax.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            ax.plot(steps[good], _smooth(values[good], good.sum() // 20), color=colour, linewidth=1.8)
        positive = values[good]
        if len(positive) and positive.min() > 0 and positive.max() > 10 * positive.min():
            ax.set_yscale("log")
        ax.grid(True, linewidth=0.6)
        _title(ax, name)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax in axes.flat[max(0, len(names) - columns) : len(names)]:
        ax.set_xlabel("step")
        ax.locator_params(axis="x", integer=True)
        ax.tick_params(labelbottom=True)
    if title:
        figure.suptitle(drawable(title), parse_math=False, x=0.01, ha="left", fontsize=11)
    return figure


# ---- speaking --------------------------------------------------------------------------------------------------------


@styled
def stop_curve(probabilities: list[float], patch_seconds: float, title: str | None = None) -> Figure:
    """The stop head's probability of each patch to be the last (`Speech.stats["stop"]`), over seconds of speech.

    Raises ValueError for an empty list.
    """
    if not len(probabilities):
        raise ValueError("no curve to draw: there is not a single patch")
    figure, axes = _figure(2.0)
    ax = axes.flat[0]
    ends = (np.arange(len(probabilities)) + 1) * patch_seconds
    ax.plot(ends, probabilities, color=COLOURS[0], linewidth=1.6, marker=".")
    ax.axhline(0.5, color=COLOURS[1], linewidth=1, linestyle="--")
    ax.set(ylim=(-0.05, 1.05), xlabel="seconds", ylabel="P(last patch)")
    if title:
        _title(ax, title)
    return figure


@styled
def spoken(speech: audio.Speech, patch_seconds: float) -> Figure:
    """What a model said, over seconds: waveform, spectrogram and, if its stats have them, the stop head's probabilities."""
    wav, rate = _wave(speech, None)
    stop = speech.stats.get("stop") or []
    figure = Picture(figsize=(WIDTH, 4.6 if stop else 3.4), layout="constrained")
    axes = figure.subplots(3 if stop else 2, 1, sharex=True, height_ratios=(1, 2, 1)[: 3 if stop else 2])
    axes[0].plot(np.arange(len(wav)) / rate, wav.numpy(), linewidth=0.6)
    axes[0].set_ylabel("amplitude")
    _title(axes[0], speech.text)
    _draw_spectrogram(axes[1], wav, rate)
    if stop:
        axes[2].plot((np.arange(len(stop)) + 1) * patch_seconds, stop, linewidth=1.6, marker=".")
        axes[2].axhline(0.5, color=COLOURS[1], linewidth=1, linestyle="--")
        axes[2].set(ylim=(-0.05, 1.05), ylabel="P(last patch)")
    axes[0].set_xlim(0, len(wav) / rate)
    axes[-1].set_xlabel("seconds")
    return figure


# ---- measurements ----------------------------------------------------------------------------------------------------


@styled
def lines(x: list, series: dict[str, list], xlabel: str, ylabel: str, log: str = "") -> Figure:
    """Named series over one axis; up to 30 points are marked. `log` names the axes that are logarithmic: "x", "y" or "xy".

    Few values of x, or those of a logarithmic axis, are its marks. Raises ValueError where there is nothing to draw or a length differs.
    """
    if not len(x) or not series or any(len(values) != len(x) for values in series.values()):
        raise ValueError("no lines to draw: x and every series must have the same length, at least 1")
    figure, axes = _figure(2.6)
    ax = axes.flat[0]
    for name, values in series.items():
        ax.plot(x, values, linewidth=1.6 if len(x) <= 1000 else 0.8, marker="." if len(x) <= 30 else "", label=drawable(name))
    if "x" in log:
        ax.set_xscale("log")
    if "x" in log or len(x) <= 12:
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.xaxis.minorticks_off()
    if "y" in log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))  # costs and errors are seen whole
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(True, linewidth=0.6)
    if len(series) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def stacked(rows: dict[str, dict[str, float]], xlabel: str) -> Figure:
    """One horizontal bar for each row, made of its named parts {row: {part: value}}. A row may lack a part.

    Raises ValueError if there is no part at all.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    if not parts:
        raise ValueError("no bars to draw: rows must be {row: {part: value}} with at least one part")
    figure, axes = _figure(0.9 + 0.45 * len(rows))
    ax, names, left = axes.flat[0], [drawable(name) for name in rows], np.zeros(len(rows))
    for part, colour in zip(parts, itertools.cycle(COLOURS)):  # noqa: B905  (an endless cycle)
        values = np.array([row.get(part, 0.0) for row in rows.values()])
        ax.barh(names, values, left=left, color=colour, label=drawable(part))
        left = left + values
    ax.invert_yaxis()
    ax.set(xlabel=xlabel)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# ---- files -----------------------------------------------------------------------------------------------------------


def _plain(value):
    """Tensors and arrays as lists, paths as text, numbers that are not finite as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def save(figure: Figure, path, data=None) -> Path:
    """Write the figure as PNG (960 pixels wide) and, given `data`, what it shows as JSON beside it (same name, .json).

    Tensors and arrays become lists. Both files appear whole or not at all; folders are made as needed. Returns the path of the PNG.
    Raises ValueError for another extension, TypeError for data that JSON cannot hold; then nothing is written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are saved as .png, not {path.suffix or 'without extension'}: {path}")
    picture = png(figure)
    if data is not None:  # first: data that JSON refuses must not leave a picture alone
        files.write_json(path.with_suffix(".json"), _plain(data))
    with files.replacing(path) as aside:
        aside.write_bytes(picture)
    return path
