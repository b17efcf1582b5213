"""`Explorer`: controls beside a picture, numbers and a sound, a function of the controls' values; `speak_panel`: one for speech.

>>> def draw(frequency, noise):
...     return plots.waveform(sine(frequency, noise), 16000), f"{frequency} Hz"
>>> Explorer(draw, frequency=[220, 440, 880], noise=False, default=dict(frequency=440))

Notable choices
- `draw` is a pure function, so it has its own tests and each of its results is made once and kept;
- picture, numbers and sound are widgets whose values change. Nothing is printed into an Output widget: it would swallow errors, and
  a page without a kernel would show nothing of it;
- an Explorer shows itself as a widget and as a picture: GitHub, and a notebook whose kernel is gone, show the picture;
- a slider tells its value when it comes to rest, never on the way.
"""

import base64
import html
import inspect
import itertools
import numbers
import reprlib
import sys
import warnings

import ipywidgets
import torch
import traitlets
from matplotlib.figure import Figure

from vox import audio, corpus, microphone, plots

WIDE = ipywidgets.Layout(width="26em")
NOWHERE = ipywidgets.Layout(display="none")
HIDES = "<style>.jp-OutputArea-child:has(.vox-explorer) + .jp-OutputArea-child { display: none }</style>"
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
    place of what was there. With `button`, a label, there is a button to draw at all, and controls only move: for what takes seconds.
    `alt` says in words what the picture is, for readers who cannot see it.
    """

    def __init__(self, draw, *, default: dict | None = None, live=None, button: str = "", alt: str = "", **controls):
        if not controls:
            raise ValueError("an Explorer needs at least one control, for instance steps=[1, 2, 4]")
        unknown = sorted(set(default or {}) - set(controls))
        if unknown:
            raise ValueError(f"default names {', '.join(unknown)}; the controls are {', '.join(controls)}")
        self.draw, self.live, self.label = draw, draw if button else live, button or "Recompute live"
        self.alt = alt or (inspect.getdoc(draw) or draw.__name__).splitlines()[0].rstrip(".")
        self._made, self._moving = {}, bool(button)
        self._values = {name: _values(control) for name, control in controls.items()}
        self.controls = {name: _control(name, control, (default or {}).get(name)) for name, control in controls.items()}
        self.image = _Image(format="png", layout=ipywidgets.Layout(max_width="100%", height="auto", object_fit="contain"))
        self.note = ipywidgets.HTML(layout=ipywidgets.Layout(min_height="2em"))  # room kept: the page does not jump
        self.audio = ipywidgets.Audio(format="mpeg", autoplay=False, loop=False)
        self.button = ipywidgets.Button(description=self.label, icon="refresh")
        self.button.on_click(lambda _: self.recompute())
        row = [*self.controls.values(), *([self.button] if self.live else [])]
        flow = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        self._silent = (ipywidgets.Box(row, layout=flow), self.image, self.note, ipywidgets.HTML(HIDES, layout=NOWHERE))
        self.panel = ipywidgets.VBox(self._silent).add_class("vox-explorer")
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
        silent, self._moving = self._moving, True  # draw once, not once for each control
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._moving = silent
        self._moved()

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
            self.button.disabled, self.button.description = False, self.label

    def _moved(self, _=None):
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
        with self.image.hold_sync():  # one message: each makes the page decode the picture
            self.image.value, self.image.tooltip = picture, f"{self.alt}: {_told(values)}"
        self.note.value, self.audio.value = note, sound
        self.panel.children = (*self._silent, self.audio) if sound else self._silent  # a player of nothing is an error of the page

    def __repr__(self):
        return f"Explorer: {_told(self.values)}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The picture, for pages without a kernel."""
        data = {"image/png": base64.b64encode(self.image.value).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.image.tooltip}}

    def _ipython_display_(self):
        """The widget, and then the picture, which hides while the widget above it lives.

        Both in one output would do where no widget is known. But JupyterLab, once a notebook was run and saved, takes the widget
        of an output even if its kernel is gone, and shows an error in place of the picture.
        """
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        view = self.panel._repr_mimebundle_()
        display({kind: view[kind] for kind in view if kind != "text/plain"}, raw=True)
        display(data, metadata=metadata, raw=True)


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


# ---- speaking --------------------------------------------------------------------------------------------------------

EXAMPLES = {"English": ("en-us", "four hundred and twelve"), "Mandarin": ("cmn", "四百一十二")}
NO_VOICE, OWN_VOICE, MICROPHONE = "of its own making", "of my file", "of my microphone"


def voices(count: int = 4) -> tuple[str, ...]:
    """Some unseen speakers of the corpus, spread over all of them."""
    speakers = corpus.speakers("test")
    return speakers[:: len(speakers) // count][:count]


def prompt(model, language: str, voice: str, file: tuple = (), recorded: bytes = b"", words: str = "") -> dict:
    """What `generate` has to be told for a voice: nothing, a recording of the corpus in a language, or the reader's own and its words.

    The reader's own is a file, as FileUpload has it, or what a Microphone at the model's rate recorded. Raises ValueError where it or
    its words are missing.
    """
    rate = model.config.vae.sample_rate
    if voice == NO_VOICE:
        return {}
    if voice == OWN_VOICE:
        if not file or not words.strip():
            raise ValueError("a voice of your own needs a sound file and the words that are said in it")
        return dict(prompt_wav=audio.load(bytes(file[0]["content"]), rate), prompt_text=words)
    if voice == MICROPHONE:
        if not recorded or not words.strip():
            raise ValueError("a voice of your own needs a recording (Record, speak, Stop) and the words that are said in it")
        return dict(prompt_wav=microphone.samples(recorded), prompt_text=words)
    code, example = EXAMPLES[language]
    texts = sorted((text for text in corpus.texts(code, "test") if text != example), key=len)
    said = texts[len(texts) // 2]  # of middle length: one to three seconds
    return dict(prompt_wav=corpus.reference(said, code, voice, rate), prompt_text=said)


def speaking(model):
    """draw(text, language, voice, file, recorded, words, **knobs of generate) of a model, for an Explorer: what it says, seen and heard."""

    def draw(text, language, voice, file, recorded, words, **knobs):
        """Waveform, spectrogram and stop probability of what the model says"""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            before = prompt(model, language, voice, file, recorded, words)
            speech = model.generate(text.strip() or EXAMPLES[language][1], **before, **knobs, progress=False)
        facts = f"{speech.seconds:.2f} s of speech, {speech.stats['patches']} patches, ended by {speech.stats['ended_by']}"
        note = f"<b>{html.escape(speech.text)}</b><br>{facts}"
        note += "".join(f"<br>{html.escape(str(warning.message))}" for warning in said)
        return plots.spoken(speech, model.config.patch_seconds()), note, speech

    return draw


def speak_panel(model) -> Explorer:
    """A panel that makes a model speak: text, voice and every knob of `generate`; drawn when "Speak" is pressed.

    Without a text it says an example in the language, which is also the language of the corpus voices' prompts. A voice of your own
    needs a sound file or a recording, and its words; ask before you clone anybody else's.
    """
    controls = dict(
        text=ipywidgets.Textarea(EXAMPLES["English"][1], layout=WIDE, rows=2),
        language=list(EXAMPLES),
        voice=[NO_VOICE, *voices(), OWN_VOICE, MICROPHONE],
        file=ipywidgets.FileUpload(accept="audio/*", multiple=False, description="my file"),
        recorded=microphone.Microphone(rate=model.config.vae.sample_rate),
        words=ipywidgets.Text(description="its words", layout=WIDE),
        cfg=[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
        steps=[2, 4, 6, 10, 20, 40],
        temperature=[0.0, 0.5, 0.8, 1.0, 1.2],
        seed=ipywidgets.BoundedIntText(0, 0, 99_999, layout=WIDE),
    )
    return Explorer(speaking(model), button="Speak", default=dict(cfg=2.0, steps=10, temperature=1.0), **controls)
