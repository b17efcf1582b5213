"""`Explorer`: controls beside a picture, numbers and a sound, all of them a function of the controls' values.

>>> def draw(frequency, noise):
...     return plots.waveform(sine(frequency, noise), 16000), f"{frequency} Hz"
>>> Explorer(draw, frequency=[220, 440, 880], noise=False, default=dict(frequency=440))

Notable choices
- `draw` is a pure function, so it has its own tests and each of its results is made once and kept;
- picture, numbers and sound are widgets whose values change. Nothing is printed into an Output widget: it would swallow errors, and
  a page without a kernel would show nothing of it;
- an Explorer shows itself as a widget and as a picture: GitHub, and a notebook that was not run yet, show the picture;
- a slider tells its value when it comes to rest, never on the way.
"""

import base64
import html
import inspect
import itertools
import numbers
import reprlib
import sys

import ipywidgets
import torch
import traitlets
from matplotlib.figure import Figure

from vox import audio, plots

WIDE = ipywidgets.Layout(width="26em")
NAMED = {"description_width": "initial"}  # a description is never cut


class _Image(ipywidgets.Image):
    """An Image whose tooltip says what it shows. The page asks what has a tooltip for its description, too, and fails without one."""

    description = traitlets.Unicode("").tag(sync=True)


class Explorer:
    """Shows draw(**values) for the values of its controls, and again whenever one of them changes.

    draw(**values) returns a Figure, or (Figure, text in HTML), or (Figure, text in HTML, sound), where a sound is a `Speech`, or
    (waveform [N], rate in Hz), or None. A control is
    - a list of values: a slider if all are numbers, otherwise a menu; it starts at the first, or at the one that `default` names,
    - True or False: a box to tick,
    - any ipywidgets widget that has a value. Values that cannot be told apart by hash (files, say) are drawn each time.

    `live` takes the same arguments and returns the same as `draw`: a button "Recompute live" runs it, and what it returns is kept in
    place of what was there. `alt` says in words what the picture is, for readers who cannot see it.
    """

    def __init__(self, draw, *, default: dict | None = None, live=None, alt: str = "", **controls):
        if not controls:
            raise ValueError("an Explorer needs at least one control, for instance steps=[1, 2, 4]")
        unknown = sorted(set(default or {}) - set(controls))
        if unknown:
            raise ValueError(f"default names {', '.join(unknown)}; the controls are {', '.join(controls)}")
        self.draw, self.live = draw, live
        self.alt = alt or (inspect.getdoc(draw) or draw.__name__).splitlines()[0].rstrip(".")
        self._made, self._moving = {}, False
        self._values = {name: _values(control) for name, control in controls.items()}
        self.controls = {name: _control(name, control, (default or {}).get(name)) for name, control in controls.items()}
        self.image = _Image(format="png", layout=ipywidgets.Layout(max_width="100%", height="auto", object_fit="contain"))
        self.note = ipywidgets.HTML(layout=ipywidgets.Layout(min_height="2em"))  # room kept: the page does not jump
        self.audio = ipywidgets.Audio(format="mpeg", autoplay=False, loop=False, layout=ipywidgets.Layout(display="none"))
        self.button = ipywidgets.Button(description="Recompute live", icon="refresh")
        self.button.on_click(lambda _: self.recompute())
        row = [*self.controls.values(), *([self.button] if live else [])]
        flow = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        self.panel = ipywidgets.VBox([ipywidgets.Box(row, layout=flow), self.image, self.note, self.audio])
        self._update()
        for control in self.controls.values():
            control.observe(self._moved, names="value")

    @property
    def values(self) -> dict:
        """What the controls stand at: {name: value}."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values):
        """Move controls as a reader would, all at once, and draw. Raises ValueError for a name or a value that they do not have."""
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"there is no control {name!r}: the controls are {', '.join(self.controls)}")
            if self._values[name] is not None and value not in self._values[name]:
                raise ValueError(f"{name} cannot be {value!r}: it is one of {', '.join(map(repr, self._values[name]))}")
        self._moving = True  # draw once, not once for each control
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._moving = False
        self._update()

    def precompute(self) -> "Explorer":
        """Draw every combination of the controls that are lists or boxes, so that each of them answers at once. Returns itself."""
        here = self.values
        lists = {name: values for name, values in self._values.items() if values is not None}
        for combination in itertools.product(*lists.values()):
            self._result(here | dict(zip(lists, combination, strict=True)))
        return self

    def recompute(self):
        """What the button does: run `live` for the present values and keep what it returns."""
        if self.live is None:
            raise ValueError("this Explorer has nothing to recompute: give it live=function")
        if self.button.disabled:  # clicked again while it was busy
            return
        self.button.disabled, self.button.description = True, "Computing …"
        try:
            self._update(self.live)
        finally:
            self.button.disabled, self.button.description = False, "Recompute live"

    def _moved(self, _):
        if not self._moving:
            self._update()

    def _result(self, values, compute=None):
        """(PNG, HTML, MP3 or nothing) of some values: from what was kept, unless `compute` makes it anew."""
        key = tuple(values.items())
        try:
            hash(key)
        except TypeError:
            return _rendered((compute or self.draw)(**values))
        if compute or key not in self._made:
            self._made[key] = _rendered((compute or self.draw)(**values))
        return self._made[key]

    def _update(self, compute=None):
        """Show the present values. An error is told beside the picture and raised: who moves controls from code shall see it."""
        values = self.values
        try:
            picture, note, sound = self._result(values, compute)
        except Exception as error:
            told, setting = html.escape(f"{type(error).__name__}: {error}"), html.escape(_told(values))
            self.note.value = f"<b>This cannot be shown.</b> {told}<br>Setting: {setting}. The picture is an earlier one."
            raise
        self.image.value, self.note.value, self.audio.value = picture, note, sound
        self.image.tooltip = f"{self.alt}: {_told(values)}"
        self.audio.layout.display = None if sound else "none"

    def __repr__(self):
        return f"Explorer: {_told(self.values)}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = self.panel._repr_mimebundle_()  # the widget, for a page with a kernel
        data |= {"image/png": base64.b64encode(self.image.value).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.image.tooltip}}


def _told(values):
    return ", ".join(f"{name} = {_label(value)}" for name, value in values.items())


def _label(value):
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    return value if isinstance(value, str) else reprlib.repr(value)


def _values(control):
    """All values of a list or a box, None where they are not known."""
    if isinstance(control, bool):
        return [False, True]
    if isinstance(control, ipywidgets.Widget):
        return None
    values = list(control)
    if not values:
        raise ValueError("a control needs at least one value")
    return values


def _control(name, control, default):
    """The widget of a control, with a description, silent while it is dragged."""
    if isinstance(control, ipywidgets.Widget):
        if not hasattr(control, "value"):
            raise ValueError(f"{name} is a {type(control).__name__}, which has no value: it cannot be a control")
        control.description = control.description or name
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
        if default is not None:
            control.value = default
        return control
    if isinstance(control, bool):
        return ipywidgets.Checkbox(control if default is None else default, description=name, indent=False, layout=WIDE)
    values = list(control)
    if default is not None and default not in values:
        raise ValueError(f"{name} cannot start at {default!r}: it is one of {', '.join(map(repr, values))}")
    options = dict(options=[(_label(value), value) for value in values], value=values[0] if default is None else default)
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
        return ipywidgets.SelectionSlider(**options, description=name, continuous_update=False, style=NAMED, layout=WIDE)
    return ipywidgets.Dropdown(**options, description=name, style=NAMED, layout=WIDE)


def _rendered(result):
    """(PNG, HTML, MP3) of what `draw` returned."""
    parts = result if isinstance(result, tuple) else (result,)
    figure, note, sound, *more = parts + (None, "", None)[len(parts) :]
    if more or not isinstance(figure, Figure) or not isinstance(note, str):
        raise TypeError(f"draw must return a Figure, (Figure, html) or (Figure, html, sound), not {reprlib.repr(result)}")
    if sound is not None and not isinstance(sound, audio.Speech):
        sound = audio.Speech(torch.as_tensor(sound[0]), sound[1])
    picture = plots.png(figure)
    if "matplotlib.pyplot" in sys.modules:  # a figure made with pyplot would be shown a second time at the end of the cell
        sys.modules["matplotlib.pyplot"].close(figure)
    return picture, note, audio.encode(sound.wav, sound.sample_rate, "mp3") if sound is not None else b""
