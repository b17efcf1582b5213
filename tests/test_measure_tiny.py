"""The shipped model's measurement: parts resume and are written whole, and the card says what was measured. And what ships is sound."""

import functools
import os
import shutil

import card_tiny
import measure_tiny
import pytest
import torch

import vox
from vox import judge, layout, metrics
from vox.config import preset, to_dict
from vox.files import HOME, read_json, write_json
from vox.state import read_tensors

CHECKPOINTS = HOME / "data/checkpoints"
shipped = pytest.mark.skipif(not (CHECKPOINTS / "tiny").is_dir() and not os.environ.get("CI"), reason="no weights of tiny are shipped yet")

FIGURE = [0.0123, 0.0101, 0.0234, 40]


class Nods:
    """Judges that hear one word, in one voice."""

    def transcribe(self, wavs):
        return ["four"] * len(wavs)

    def embed(self, wavs):
        return torch.nn.functional.normalize(torch.ones(len(wavs), 4), dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    vox.VoxCPM(preset("nano")).save(path := tmp_path_factory.mktemp("nano"))
    return path


def test_parts_resume(folder, tmp_path, monkeypatch):
    """What is there is kept, unless it is asked for again or other weights are measured; a part that fails costs no other."""
    calls = []

    def part(name):
        return lambda model, judges, **_: calls.append(name) or {"n": len(calls)}

    def fails(model, judges, **_):
        raise RuntimeError("cut")

    out = tmp_path / "tiny.json"
    monkeypatch.setattr(measure_tiny, "PARTS", {"tts": part("tts"), "clone": fails, "legs": part("legs")})
    with pytest.raises(RuntimeError, match="cut"):
        measure_tiny.measure(folder, out, judges=Nods())
    assert list(read_json(out)) == ["tts"] and [path.name for path in tmp_path.iterdir()] == ["tiny.json"]
    monkeypatch.setitem(measure_tiny.PARTS, "clone", part("clone"))
    measure_tiny.measure(folder, out, judges=Nods())
    assert calls == ["tts", "clone"], "legs need folders, and tts was there"
    measure_tiny.measure(folder, out, ["tts"], judges=Nods())
    assert calls == ["tts", "clone", "tts"] and read_json(out)["tts"]["figures"] == {"n": 3}
    with pytest.raises(ValueError, match="--legs"):
        measure_tiny.measure(folder, out, ["legs"], judges=Nods())
    tree = read_json(out)
    tree["tts"]["weights"] = "others"
    write_json(out, tree)
    measure_tiny.measure(folder, out, judges=Nods())
    assert calls[3:] == ["tts"]


def test_parts_are_not_taken_for_legs(folder, capsys):
    """`--legs A tts` would otherwise measure everything, and fail at the end."""
    with pytest.raises(SystemExit):
        measure_tiny.main(["--model", str(folder), "--legs", str(folder), "tts"])
    assert "tts is no folder" in capsys.readouterr().err


def test_clone_on_a_small_model(folder, monkeypatch):
    """The whole way of a part: every pick has a prompt of its own voice, candidates are of one variant each."""
    monkeypatch.setattr(measure_tiny, "speak", lambda model, rows, *rest, **more: speak(model, rows, *rest, max_seconds=0.5, **more))
    figures = measure_tiny.clone(vox.load(folder), Nods(), count=2, seeds=(0,), hours=0.05)
    assert figures["cloned"]["error_rate cmn"]["speech"][3] == 2
    assert {"speech", "true", "below"} == figures["cloned"]["identified"].keys()
    assert 0 < figures["chance"] <= 1


def test_drift_on_a_small_model(folder):
    """What follows a true past is spoken after it: a LocDiT that says the patch before again is one patch late, and in time otherwise."""
    model, (rows, prompts) = vox.load(folder), measure_tiny.pick("test", 1, 0.05)
    true, drawn = measure_tiny.one_by_one(model, rows[0], prompts[0], 0)
    wav = vox.corpus.wav(rows[0])
    assert len(true) == len(drawn) == len(wav) and not torch.equal(true, drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_tiny.flow, "sample", lambda velocity, mu, previous, noise: previous)  # each patch says again what was before
        _, late = measure_tiny.one_by_one(model, rows[0], prompts[0], 0)
    one = model.config.patch_samples  # and the decoder remembers some patches
    torch.testing.assert_close(late[5 * one :], true[4 * one : -one], atol=1e-3, rtol=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vox.VoxCPM, "generate", lambda self, texts, *_, **__: [vox.Speech(wav, 16000, text) for text in texts])
        figures = measure_tiny.drift(model, Nods(), count=1, hours=0.05, before=folder)
    assert list(figures) == [f"{name}, {kind}" for name in ("before", "shipped") for kind in ("AudioVAE", "after a true past", "clone")]
    assert all(sides["speech"][3] == 2 for entry in figures.values() for sides in entry.values())


def test_an_audiovae_is_measured_without_language_models(folder, tmp_path):
    copy = tmp_path / "vae"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    part = functools.partial(measure_tiny.vae, count=2, hours=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(measure_tiny.PARTS, "vae", part)
        figures = measure_tiny.measure(copy, tmp_path / "vae.json", ["vae"], judges=Nods())["vae"]["figures"]
    assert {"AudioVAE", "Opus 6", "Opus 12"} == figures.keys()
    for codec in figures.values():
        assert codec["identified"]["speech"][3] == 4 and 0 <= codec["pitch"]["speech"][0] <= 1


speak = measure_tiny.speak


def a_measurement():
    """Results as tiny.json holds them, no two figures alike."""
    counter = iter(range(1000))

    def some(*names):
        return {
            name: {side: [(k := next(counter)) / 1e4, 0.0, 0.5, 40 + k] for side in ("speech", "true", "above", "below")} for name in names
        }

    spoken = ("error_rate en-us", "error_rate cmn", "stop_failures", "identified")
    figures = {
        "tts": {"no prompt": some(*spoken), "prompted": some(*spoken)},
        "clone": {"candidates": [24], "chance": 1 / 24, "cloned": some(*spoken, "mcd")},
        "vae": {"AudioVAE": some(*spoken, "stoi")},
        "sphinx": {"cloned": some("error_rate en-us")},
    }
    machine = {"cpu": "a processor", "threads": 1, "torch": "2", "commit": "abc"}
    return {name: {"figures": each, "weights": "w", "command": name, "machine": machine, "seconds": 60} for name, each in figures.items()}


def a_log(model):
    recipe = {"own": 0.75, "join": 0.6} | to_dict(preset("tiny").vae_train)
    facts = {"steps": 10, "seconds": 4000.0, "threads": 1, "seed": 0, "logged": {"cpu": "c", "torch": "2"}}
    return facts | {"model": model, "config": recipe}


def test_the_card_says_what_was_measured():
    report = {
        "errors": {"recogniser": {v: {"en-us": FIGURE, "cmn": FIGURE} for v in ("seen", "unseen")}, "speaker": {"unseen": {"eer": FIGURE}}}
    }
    config = to_dict(preset("tiny"))
    runs = {title: a_log(config["vae"] if "VAE" in title else config) for title in card_tiny.LOGS}
    results = a_measurement()
    text = card_tiny.card(results, report, runs, 12_300_000, "make it")
    for part in results.values():
        for figures in part["figures"].values():
            for figure, sides in figures.items() if isinstance(figures, dict) else ():
                for values in sides.values():
                    assert card_tiny.figure(values, card_tiny.MEASURES[figure][1]) in text
    assert text.startswith("# tiny: ") and "`make tiny`" in text and "{" not in text and "75 % of the sequences go on" in text
    assert "12.3 MB" in text and "1.1 h" in text and "Not measured: " in text and "not run on a gpu" in text.lower()
    del results["vae"]
    with pytest.raises(card_tiny.MissingPart, match="no card without vae"):
        card_tiny.card(results, report, runs, 0, "")
    results = a_measurement()
    results["vae_before"] = results["vae"] | {"weights": "others"}
    assert "through that AudioVAE" in card_tiny.card(results, report, runs, 0, "")
    results["clone"]["weights"] = "others"
    with pytest.raises(card_tiny.MissingPart, match="clone measured on other weights"):
        card_tiny.card(results, report, runs, 0, "")


def test_the_card_says_how_it_was_made():
    lines = (
        "run: x\n\techo\ntiny: OUT = y\ntiny: .venv/lab.done\n\t@mkdir $(OUT)_vae\n\t$(PAPERMILL) a.ipynb -p hours 4 $(ARGS)\n\nb:\n\tls"
    )
    assert card_tiny.rebuild(lines) == "mkdir runs/tiny_vae\npapermill --cwd notebooks a.ipynb -p hours 4"
    with pytest.raises(card_tiny.MissingPart, match="Makefile"):
        card_tiny.rebuild("run:\n\techo\n")


def test_training_time_is_counted_over_runs():
    first, second = {"steps": 10, "seconds": 100.0}, {"steps": 4, "seconds": 80.0}
    assert [card_tiny.seconds_until(step, first, second) for step in (5, 10, 12, 14)] == [50, 100, 140, 180]


def test_verdicts():
    assert card_tiny.verdict([0.01, 0.0, 0.02, 9], "≤", 0.05) == "reached"
    assert card_tiny.verdict([0.04, 0.0, 0.06, 9], "≤", 0.05) == "reached, the interval is not"
    assert card_tiny.verdict([0.7, 0.6, 0.9, 9], "≥", 0.8) == "missed"


def test_a_log_is_short(tmp_path):
    rows = [{"step": k + 1, "total": float(k), "lr": 0.1 * k} for k in range(305)]
    report = {"history": rows, "steps": 305, "seconds": 9.0, "dropped": 0}
    write_json(tmp_path / "report.json", {"identity": {"config": {"seed": 3}, "model": {}}, "report": report})
    log = measure_tiny.log(tmp_path, threads=2)
    assert len(log["history"]) <= 100 and log["history"][-1]["step"] == 305 and log["history"][0]["total"] == 1.5
    assert (log["seed"], log["threads"]) == (3, 2)
    with pytest.raises(ValueError, match="report.json"):
        measure_tiny.log(tmp_path / "none", threads=1)


# ---- what ships --------------------------------------------------------------------------------------------------------


@shipped
def test_what_ships_is_small():
    paths = sorted((CHECKPOINTS / "tiny").glob("*.safetensors"))
    assert [path.name for path in paths] == ["audiovae.safetensors", "model.safetensors"]
    assert card_tiny.shipped() < 40e6
    for path in paths:
        assert {tensor.dtype.itemsize for tensor in read_tensors(path).values() if tensor.is_floating_point()} == {2}, path.name


@shipped
def test_what_ships_speaks():
    """A held-out text of each language, heard almost right."""
    texts = [min(vox.corpus.texts(language, "validation")) for language in vox.corpus.LANGUAGES]
    speeches = vox.load("tiny", device="cpu").generate(texts, seed=0, progress=False)
    heard = judge.load().transcribe([speech.wav for speech in speeches])
    assert metrics.error_rate(texts, heard).value <= 0.34, heard


@shipped
@pytest.mark.parametrize("name", ["tiny", "mel_vae"])
def test_the_card_that_ships_is_of_these_weights(name):
    """Every figure of the results was measured on what ships, and stands in the card; and the card is made again as it says."""
    folder = CHECKPOINTS / name
    which, card = measure_tiny.weights(folder), (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert which in card
    for part, found in read_json(HOME / f"data/results/{name}.json").items():
        before = part.endswith("_before")  # of the AudioVAE whose decoder was trained on
        assert (found["weights"] == which) != before, f"{part} is of other weights: python tests/measure_tiny.py {part}, then card"
        assert card_tiny.all_figures(found, part) in card, f"the card lacks {part}: python tests/measure_tiny.py card"
    assert card_tiny.rebuild((HOME / "Makefile").read_text(encoding="utf-8"), name) in card


@shipped
def test_notebook_12_says_what_three_rounds_did():
    """No better at voices, worse at words, as its text has it; and through the AudioVAE that ships."""
    shipped, tried = (read_json(HOME / f"data/results/{name}.json")["clone"] for name in ("tiny", "tiny_rounds"))
    now, then = (part["figures"]["cloned"] for part in (shipped, tried))
    assert tried["weights"] != shipped["weights"]
    _, low, high, _ = now["identified"]["speech"]
    assert low < then["identified"]["speech"][0] < high
    assert all(then[f"error_rate {language}"]["speech"][0] > now[f"error_rate {language}"]["speech"][0] for language in ("en-us", "cmn"))
    log = read_json(HOME / "data/results/tiny_rounds_log.json")
    assert (log["steps"], log["config"]["decay"], log["config"]["own_rounds"]) == (2850, 1650, 3)


@shipped
def test_the_readme_quotes_the_figures():
    results, readme = read_json(HOME / "data/results/tiny.json"), (HOME / "README.md").read_text(encoding="utf-8")
    for part, entry in (("tts", "no prompt"), ("tts", "prompted"), ("clone", "cloned")):
        figures = results[part]["figures"][entry]
        for name in {"error_rate en-us", "error_rate cmn", "stop_failures", "identified"} & figures.keys():
            for side in ("speech", "true"):
                assert f"| {card_tiny.figure(figures[name][side], card_tiny.MEASURES[name][1])} |" in readme, (part, name, side)
    shares = [row["identified"]["speech"] for row in results["drift"]["figures"].values()]  # three before, three of what ships
    kept = [round(share * n) for share, _, _, n in shares]
    words = " ".join(readme.split())
    assert f"of {shares[0][3]} recordings the AudioVAE alone keeps it in {kept[3]}, drawing each patch" in words
    assert f"after true ones in {kept[4]}, speaking on in {kept[5]}; before the model" in words
    assert f"was trained on its own past, in {kept[2]}." in words


@shipped
def test_the_audiovae_of_tiny_keeps_the_pitch():
    """A recording's melody comes through it, and not through the one that was trained on mel distance alone."""
    wav = vox.corpus.wav(next(iter(vox.corpus.load("numbers", "test", hours=0.05))))
    kept = {}
    for name in ("tiny", "mel_vae"):
        vae = vox.load_vae(CHECKPOINTS / name, device="cpu")
        with torch.inference_mode():
            kept[name] = metrics.reconstruction(vae.decode(vae.encode(wav[None, None]))[0, 0, : len(wav)], wav)["pitch"]
    assert kept["tiny"] > 0.3 > kept["mel_vae"], kept


def test_a_card_of_an_audiovae(tmp_path):
    folder, results = tmp_path / "vae", tmp_path / "results"
    write_json(results / "mel_vae_log.json", a_log(to_dict(preset("tiny").vae)))
    write_json(tmp_path / "measured.json", measured := a_measurement())
    config = preset("tiny").replace(**{"vae.latent_dim": 14})
    layout.write_vae(folder, config, vox.AudioVAE(config.vae))
    card_tiny.write_card(folder, tmp_path / "measured.json", results)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card_tiny.all_figures(measured["vae"], "vae") in card and "in 10 steps on mel distance and KL, weighed 15 : 0.005" in card
    assert "14 latent channels" in card and "Of 32 latent\nchannels 14 say" in card and "4 hours" in card
    (results / "mel_vae_log.json").unlink()
    with pytest.raises(card_tiny.MissingPart, match="mel_vae_log.json: python tests/measure_tiny.py log"):
        card_tiny.write_card(folder, tmp_path / "measured.json", results)
