"""The page of a run: it holds everything inside itself, escapes what comes from files, and says what is wrong with a folder."""

import base64
import json
import re
import subprocess
import sys

import pytest
import torch

from vox import audio, files, plots, report

FIGURE = {"value": 0.01234, "low": 0.0101, "high": 0.0234, "n": 40}
TAG = '<script>alert("&")</script>'


def sine(seconds=0.5):
    return 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(int(seconds * 16000)) / 16000)


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it, with speech that has a text and some that has none, and another run below it."""
    folder = tmp_path / "a & <b>"
    audio.save(folder / "english.wav", sine(), 16000)
    audio.save(folder / "tour" / "clone.wav", sine(), 16000)
    plots.save(plots.waveform(sine(), 16000), folder / "sheet.png")
    speech = {"english": {"heard": "four", "true_heard": "for", "patches": 3}, "gone": {"patches": 7}}
    metrics = {"preset": "nano", "texts": {"english": f"四 {TAG}"}, "speech": speech, "seconds": 0.123456, TAG: TAG}
    figures = {"error_rate cmn": FIGURE, "true_error_rate cmn": FIGURE | {"value": 0.0056789}, "sim": FIGURE}
    files.write_json(folder / "metrics.json", metrics | {"legs": [{"steps": 40, "figures": figures}], "ended_by": ["stop", "cap"]})
    files.write_json(folder / "model" / "config.json", {"note": TAG})
    audio.save(folder / "model" / "inside.wav", sine(), 16000)
    return folder


def test_the_page_holds_everything(run):
    path = report.write(run)
    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html" and not [each for each in run.iterdir() if each.name.startswith(".")]
    pictures, sounds = (re.findall(rf'src="data:{kind};base64,([^"]+)"', page) for kind in ("image/png", "audio/mpeg"))
    assert [base64.b64decode(each) for each in pictures] == [(run / "sheet.png").read_bytes()]
    assert len(sounds) == 2, "english and tour/clone, and nothing of the model's folder"
    wav, rate = audio.read(base64.b64decode(sounds[0]))
    assert rate == 16000 and wav.abs().max() > 0.3
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is fetched"
    for row in ("preset</td><td>nano", "seconds</td><td>0.1235", "legs.0.steps</td><td>40", "speech.gone.patches</td><td>7"):
        assert row in page, row
    assert "ended_by</td><td>[&quot;stop&quot;, &quot;cap&quot;]" in page
    assert "<h2>tour</h2>" in page and "heard four (true recording: for) · patches 3" in page
    assert "config of the model" in page and "torch" in page


def test_a_figure_stands_with_its_interval_and_the_judges_own_error(run):
    page = report.write(run).read_text(encoding="utf-8")
    assert "legs.0.figures.error_rate cmn</td><td>0.01234 (0.0101 … 0.0234, n = 40)</td><td>0.005679 (0.0101 … 0.0234, n = 40)" in page
    assert "legs.0.figures.sim</td><td>0.01234 (0.0101 … 0.0234, n = 40)</td><td></td>" in page
    assert "true_error_rate" not in page


def test_what_comes_from_files_is_escaped(run):
    page = report.write(run).read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page.replace("<b>english</b>", "").replace("<b>clone</b>", "")
    assert page.count("&lt;script&gt;") == 4, "a text, a name, its value, the config"
    assert "<title>a &amp; &lt;b&gt;</title>" in page and "四" in page


def test_what_is_too_large_is_named(run, monkeypatch):
    """A large file is left out and a small one behind it is not; the page stays below its limit."""
    whole = len(report.write(run).read_bytes())
    monkeypatch.setattr(report, "LIMIT", report.RESERVED + whole)
    noise = torch.rand(60 * 16000, generator=torch.Generator().manual_seed(0)) - 0.5
    audio.save(run / "big.wav", noise, 16000)
    page = report.write(run).read_text(encoding="utf-8")
    assert "Left out, since a page" in page and "a &amp; &lt;b&gt;/big.wav" in page
    assert page.count("audio/mpeg") == 2 and len(page) < 1.1 * whole


def test_a_run_that_was_cut_has_a_page(tmp_path):
    """Whatever is there is shown: here one sound, without a text."""
    audio.save(tmp_path / "run" / "english.wav", sine(), 16000)
    assert "audio/mpeg" in report.write(tmp_path / "run").read_text(encoding="utf-8")


def test_a_folder_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.*folder of a run"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "empty" / "model").mkdir(parents=True)
    files.write_json(tmp_path / "empty" / "model" / "metrics.json", {"a": 1})
    with pytest.raises(ValueError, match="empty holds no picture"):
        report.write(tmp_path / "empty")
    assert not (tmp_path / "empty" / "report.html").exists()
    monkeypatch.setenv("VOX_HOME", str(tmp_path))  # where notebooks write their runs
    audio.save(tmp_path / "runs" / "x" / "a.wav", sine(), 16000)
    assert report.write("runs/x") == tmp_path / "runs" / "x" / "report.html"


@pytest.mark.parametrize(
    "name, content", [("metrics.json", "{"), ("metrics.json", "[1]"), ("english.wav", "no sound"), ("model/config.json", "{")]
)
def test_a_broken_file_is_named_and_the_old_page_stays(run, name, content):
    before = report.write(run).read_bytes()
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=name):
        report.write(run)
    assert (run / "report.html").read_bytes() == before


def test_a_page_is_whole_or_not_there(run, monkeypatch):
    """It is written aside: where the last step fails, the old page stays, and nothing beside it."""
    before = report.write(run).read_bytes()
    audio.save(run / "another.wav", sine(), 16000)

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        report.write(run)
    assert (run / "report.html").read_bytes() == before and not [each for each in run.iterdir() if each.name.startswith(".")]


def test_the_command(run, tmp_path):
    def call(*arguments):
        return subprocess.run([sys.executable, "-m", "vox.report", *map(str, arguments)], capture_output=True, text=True)

    done = call(run)
    assert done.returncode == 0 and done.stdout.strip() == str(run / "report.html")
    for wrong, word in (((), "FOLDER"), ((tmp_path / "nowhere",), "there is no folder")):
        done = call(*wrong)
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["preset"] == "nano"  # only the page is written
