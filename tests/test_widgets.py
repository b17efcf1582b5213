"""An Explorer shows draw(**values), once per setting, with a picture for pages that run nothing."""

import base64
import datetime
import io
import itertools
import warnings

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from nbclient import NotebookClient

from vox import audio, corpus, load, preset
from vox.audio import Speech
from vox.microphone import Microphone, samples
from vox.widgets import MICROPHONE, NO_VOICE, OWN_VOICE, Explorer, prompt, speak_panel, voices

PNG = b"\x89PNG"


class Draw:
    """A drawing that counts how often it is made."""

    def __init__(self, sound=False):
        self.calls, self.sound = [], sound

    def __call__(self, k, loud=False, **others):
        """A bar of height k."""
        self.calls.append((k, loud))
        figure = Figure(figsize=(2, 1))
        figure.add_subplot().bar([0], [k])
        figure.axes[0].set_ylim(0, 10)
        wav = 0.1 * torch.sin(torch.arange(1600) * 0.01 * k)
        return (figure, f"k is {k}", Speech(wav, 16000)) if self.sound else (figure, f"k is {k}")


def explorer(draw=None, **options):
    return Explorer(draw or Draw(), alt="a bar", **({"k": [1, 2, 3], "loud": False} | options))


def test_it_shows_the_default_and_what_a_control_moves_to():
    shown = explorer(default=dict(k=2))
    assert shown.values == dict(k=2, loud=False) and shown.note.value == "k is 2" and shown.image.value[:4] == PNG
    first = shown.image.value
    shown.controls["k"].value = 3  # as a reader's slider does
    assert shown.values["k"] == 3 and shown.note.value == "k is 3" and shown.image.value != first
    assert repr(shown) == "Explorer: k = 3, loud = False" and shown.image.tooltip == "a bar: k = 3, loud = False"


def test_each_setting_is_drawn_once_and_all_of_them_ahead_if_wanted():
    draw = Draw()
    shown = explorer(draw)
    shown.set(k=2, loud=True)
    assert draw.calls == [(1, False), (2, True)]  # two controls moved, one drawing
    shown.precompute()
    assert sorted(draw.calls) == [(k, loud) for k in (1, 2, 3) for loud in (False, True)]
    for k in (3, 1, 2):
        shown.set(k=k)
    assert len(draw.calls) == 6


def test_a_page_without_a_kernel_finds_a_picture():
    data, metadata = explorer()._repr_mimebundle_()
    assert base64.b64decode(data["image/png"])[:4] == PNG and data["text/plain"] == "Explorer: k = 1, loud = False"
    assert set(data) == {"image/png", "text/plain"} and metadata == {"image/png": {"alt": "a bar: k = 1, loud = False"}}


def test_sound_is_played_where_there_is_some():
    silent, loud = explorer(), explorer(Draw(sound=True))
    assert silent.audio not in silent.panel.children and not silent.audio.value
    assert loud.audio in loud.panel.children and not loud.audio.autoplay
    assert soundfile.info(io.BytesIO(loud.audio.value)).format == "MP3"
    sounds = Explorer(lambda k: (*Draw()(k), (torch.zeros(1600).numpy(), 16000) if k > 1 else None), k=[1, 2])
    sounds.set(k=2)
    assert sounds.audio.value
    sounds.set(k=1)
    assert not sounds.audio.value and sounds.audio not in sounds.panel.children  # the sound of another setting is gone


def test_controls_are_made_of_lists_boxes_and_widgets():
    shown = explorer(k=[0.5, 2], name=["a", "b"], own=ipywidgets.IntSlider(3, 0, 5))
    kinds = {name: type(control).__name__ for name, control in shown.controls.items()}
    assert kinds == dict(k="SelectionSlider", loud="Checkbox", name="Dropdown", own="IntSlider")
    assert not shown.controls["k"].continuous_update and not shown.controls["own"].continuous_update
    assert all(control.description for control in shown.controls.values())


def test_an_error_is_told_and_raised_and_the_picture_stays():
    def draw(k):
        if k == 2:
            raise ZeroDivisionError("no <two>")
        return Draw()(k)

    shown = Explorer(draw, k=[1, 2, 3])
    before = shown.image.value
    with pytest.raises(ZeroDivisionError):
        shown.set(k=2)
    assert "no &lt;two&gt;" in shown.note.value and "k = 2" in shown.note.value and shown.image.value == before
    shown.set(k=3)
    assert shown.note.value == "k is 3"


def test_values_that_cannot_be_kept_are_drawn_each_time():
    """Files, say: their value is a list of dictionaries."""
    draw, upload = Draw(), ipywidgets.FileUpload()
    shown = explorer(draw, files=upload)
    upload.value = [{"name": "a.wav", "type": "audio/wav", "size": 1, "content": b"x", "last_modified": datetime.datetime.now()}]
    shown.set(k=2)
    shown.set(k=2)
    assert len(draw.calls) == 4 and shown.note.value == "k is 2" and shown.values["files"][0]["name"] == "a.wav"


def test_figures_are_of_one_style_and_those_of_pyplot_are_closed():
    shown = Explorer(lambda k: plt.subplots(figsize=(2, 1))[0], k=[1, 2]).precompute()
    assert not plt.get_fignums()
    picture = imread(io.BytesIO(shown.image.value))
    assert picture.shape[:2] == (120, 240)
    own = Explorer(lambda k: Draw()(k)[0], k=[1])
    assert imread(io.BytesIO(own.image.value)).shape[:2] == (120, 240)


def test_a_notebook_shows_a_widget_and_a_picture():
    """Driving it from another cell prints nothing, but an error stops the notebook."""
    code = (
        "import matplotlib.pyplot as plt\nfrom vox.widgets import Explorer\n"
        "explorer = Explorer(lambda k: plt.subplots(figsize=(2 / k, 1))[0], k=[1, 2, 0])",
        "explorer",
        "explorer.set(k=2)",
        "try:\n    explorer.controls['k'].value = 0\nexcept ZeroDivisionError:\n    print('raised')",
    )
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, code)))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [[sorted(output.data) if "data" in output else output.text for output in cell.outputs] for cell in notebook.cells]
    assert outputs == [[], [["application/vnd.jupyter.widget-view+json"], ["image/png", "text/plain"]], [], ["raised\n"]]


def test_live_replaces_what_was_kept_and_is_not_run_twice_at_once():
    states = []

    def live(k, loud):
        states.append(shown.button.disabled)
        shown.button.click()  # a second click while it is busy
        figure, _ = Draw()(9)
        return figure, "made anew"

    shown = explorer(live=live)
    shown.button.click()
    assert shown.note.value == "made anew" and states == [True] and not shown.button.disabled
    shown.set(k=2)
    shown.set(k=1)
    assert shown.note.value == "made anew"  # kept in place of the first
    assert shown.button in shown.panel.children[0].children and explorer().button not in explorer().panel.children[0].children
    with pytest.raises(ValueError, match="live=function"):
        explorer().recompute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(default=dict(j=1)), "default names j; the controls are k, loud"),
        (dict(default=dict(k=9)), "k cannot start at 9: it is one of 1, 2, 3"),
        (dict(k=[]), "at least one value"),
        (dict(box=ipywidgets.VBox()), "box is a VBox, which has no value"),
    ],
)
def test_what_cannot_be_a_control_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explorer(**options)


def test_what_draw_must_return_and_what_set_may_name():
    with pytest.raises(ValueError, match="at least one control"):
        Explorer(Draw())
    for wrong in ("text", None, (), (Figure(), 3), (1, "text"), (Figure(), "text", None, None)):
        with pytest.raises(TypeError, match=r"draw must return a Figure, \(Figure, html\)"):
            Explorer(lambda k, wrong=wrong: wrong, k=[1])
    with pytest.raises(ValueError, match="no control 'j': the controls are k, loud"):
        explorer().set(j=1)
    shown = explorer()
    with pytest.raises(ValueError, match="k cannot be 7: it is one of 1, 2, 3"):
        shown.set(loud=True, k=7)
    assert shown.values == dict(k=1, loud=False)  # nothing has moved


# ---------------------------------------------------------------------------------------------------------- speaking


class Speaker:
    """Says a tone for every text, and remembers how it was asked."""

    config = preset("nano")

    def __init__(self):
        self.asked = []

    def generate(self, text, **options):
        self.asked.append((text, options))
        if "prompt_wav" in options:
            warnings.warn("the prompt is <clipped>", stacklevel=1)
        wav, stop = 0.1 * torch.sin(torch.arange(16000) * 0.3), [0.0, 0.2, 0.9]
        return Speech(wav, 16000, text, stats={"patches": 3, "ended_by": "stop", "stop": stop})


def test_the_panel_speaks_when_it_is_asked_to():
    speaker = Speaker()
    panel = speak_panel(speaker)
    assert panel.button.description == "Speak" and len(speaker.asked) == 1
    panel.set(text="seven <b>", cfg=3.0, seed=5)
    panel.controls["steps"].value = 20
    assert len(speaker.asked) == 1  # controls only move
    panel.button.click()
    text, options = speaker.asked[-1]
    assert text == "seven <b>" and options == dict(cfg=3.0, steps=20, temperature=1.0, seed=5, progress=False)
    assert "seven &lt;b&gt;" in panel.note.value and "ended by stop" in panel.note.value
    assert panel.button.description == "Speak" and not panel.button.disabled and panel.audio.value
    panel.set(text=" ", language="Mandarin")
    panel.recompute()
    assert speaker.asked[-1][0] == "四百一十二"


def test_a_voice_is_of_the_corpus_or_of_a_file():
    speaker = Speaker()
    rate = speaker.config.vae.sample_rate
    assert prompt(speaker, "English", NO_VOICE) == {}
    for language, voice in itertools.product(("English", "Mandarin"), voices()):
        assert 1 <= len(prompt(speaker, language, voice)["prompt_wav"]) / rate <= 3
    given = prompt(speaker, "Mandarin", voices()[1])
    assert given["prompt_text"] in corpus.texts("cmn", "test") and given["prompt_text"] != "四百一十二"
    for file, words in (((), "one"), (({"content": b""},), " ")):
        with pytest.raises(ValueError, match="needs a sound file and the words"):
            prompt(speaker, "English", OWN_VOICE, file, words=words)
    sound = audio.encode(torch.sin(torch.arange(22050) * 0.2) / 2, 22050)
    own = prompt(speaker, "English", OWN_VOICE, ({"content": memoryview(sound)},), words="one")
    assert own["prompt_text"] == "one" and len(own["prompt_wav"]) == rate
    panel = speak_panel(speaker)
    panel.controls["file"].value = [{"name": "a.wav", "type": "", "size": 1, "content": sound, "last_modified": datetime.datetime.now()}]
    panel.set(voice=OWN_VOICE, words="one")
    panel.recompute()
    assert speaker.asked[-1][1]["prompt_text"] == "one" and "the prompt is &lt;clipped&gt;" in panel.note.value
    with pytest.raises(ValueError, match="needs a sound file"):
        panel.set(words="")
        panel.recompute()
    assert "needs a sound file" in panel.note.value


def test_a_voice_is_of_the_microphone():
    speaker, sound = Speaker(), torch.sin(torch.arange(16000) * 0.2)
    panel = speak_panel(speaker)
    assert panel.controls["recorded"].rate == speaker.config.vae.sample_rate
    with pytest.raises(ValueError, match="needs a recording .Record, speak, Stop. and the words"):
        panel.set(voice=MICROPHONE, words="one")
        panel.recompute()
    panel.controls["recorded"].value = sound.numpy().tobytes()
    with pytest.raises(ValueError, match="and the words"):
        panel.set(words=" ")
        panel.recompute()
    panel.set(words="one")
    panel.recompute()
    told = speaker.asked[-1][1]
    assert torch.equal(told["prompt_wav"], sound) and told["prompt_text"] == "one"


def test_a_microphone_has_nothing_before_it_records():
    assert samples(Microphone().value).shape == (0,)


def test_speakers_of_the_panel_are_unseen_and_apart():
    assert len(set(voices())) == 4 and set(voices()) <= set(corpus.speakers("test"))
    assert len({voice.rsplit("-", 3)[0] for voice in voices()}) == 4


def test_the_shipped_model_speaks_in_the_panel():
    panel = speak_panel(load("tiny"))
    assert "ended by" in panel.note.value and imread(io.BytesIO(panel.image.value)).shape[1] == 960
    assert audio.read(bytes(panel.audio.value))[0].abs().max() > 0.05
