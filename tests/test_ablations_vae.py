"""The ablation of the AudioVAE: its measures are what they say, its runs are gathered, and its sweep asks what notebook 10 answers."""

import json
import math
import types
from pathlib import Path
from unittest.mock import MagicMock

import papermill
import pytest
import torch
from test_nb_10 import gathered, run_notebook
from torch import nn

from vox import ablations, corpus, files, judge, sweep, vae_loss
from vox.config import VAEConfig, preset

ROOT = Path(__file__).parent.parent
SWEEPS = ROOT / "notebooks/sweeps"
RESULTS = files.read_json(ROOT / "data/results/ablations_vae.json")
SOUNDS = ROOT / "data/results/ablations_vae/samples"


@pytest.fixture(scope="module")
def rows():
    return ablations.recordings()


class Same(nn.Module):
    """An AudioVAE that loses nothing: a latent is its 640 samples, times a gain. The noise of every channel is `sigma`."""

    config = VAEConfig(latent_dim=640)

    def __init__(self, gain=1.0, sigma=0.1):
        super().__init__()
        self.gain, self.sigma = nn.Parameter(torch.tensor(gain)), sigma

    def encode_stats(self, wav):
        mu = nn.functional.pad(wav, (0, -wav.shape[2] % 640)).unflatten(2, (-1, 640))[:, 0].mT  # [1, 640, L]
        return mu, torch.full_like(mu, 2 * math.log(self.sigma))

    def encode(self, wav):
        return self.encode_stats(wav)[0]

    def decode(self, z):
        return self.gain * z.mT.flatten(1)[:, None]


class Chain(nn.Module):
    """An AudioVAE whose latents are a wave's own samples, a frame of `D` each, with noise σ [D]: for made-up latents."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma, self.scale = sigma, nn.Parameter(torch.ones(1))
        self.config = VAEConfig(latent_dim=len(sigma))

    def encode_stats(self, wav):
        mu = wav[0, 0].unflatten(0, (-1, len(self.sigma))).T[None]
        return mu, (2 * self.sigma.log())[None, :, None].expand_as(mu)


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_recordings_are_of_unseen_voices_and_texts(rows):
    train = corpus.load("numbers", hours=0.5)
    assert len(rows) == ablations.RECORDINGS and {row["language"] for row in rows} == {"en-us", "cmn"}
    assert not {row["text"] for row in rows} & set(train["text"]) and not {row["speaker"] for row in rows} & set(train["speaker"])
    assert {name: rows[k]["language"] for name, k in ablations.HEARD.items()} == {"English": "en-us", "Mandarin": "cmn"}


def test_what_loses_nothing_loses_nothing(rows, tmp_path):
    """mel 0, STOI 1, all pitches kept, the judge's own errors; and half as loud costs what a mel distance says, but no word."""
    found, quiet = (ablations.rebuilt(Same(gain), rows[8:12], judge.load(), tmp_path) for gain in (1.0, 0.5))
    for (mel, stoi, _, wrong, pitch), (text, language, units, own, seconds), row in zip(*found.values(), rows[8:12], strict=True):
        assert mel == 0 and stoi == pytest.approx(1, abs=1e-3) and pitch == 1 and wrong == own
        assert (text, language, seconds) == (row["text"], row["language"], round(row["seconds"], 2)) and units >= 3
    assert all(1 < line[0] < 2.2 and line[4] > 0.99 for line in quiet["lines"])
    assert not list(tmp_path.iterdir()), "with four recordings only, the ones to be heard by number are not there"


def test_sounds_are_kept(rows, tmp_path):
    ablations.rebuilt(Same(), rows, judge.load(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["English.mp3", "Mandarin.mp3"]
    for name, k in ablations.HEARD.items():
        assert len(ablations.audio.load(tmp_path / f"{name}.mp3", 16000)) >= len(corpus.wav(rows[k]))


def test_an_audiovae_is_measured_where_it_is(rows, monkeypatch):
    """`fit` leaves it on a GPU, if there is one: recordings go there, what comes back goes on here."""

    class Elsewhere(Same):
        def encode(self, wav):
            assert wav.device.type == "meta"
            return wav

        def decode(self, z):
            sound = MagicMock()  # it can be used once it has been fetched
            sound.__getitem__.return_value.cpu.return_value = torch.randn(z.shape[-1])
            return sound

    ablations.rebuilt(Elsewhere().to("meta"), rows[:1], judge.load())
    statistics = [types.SimpleNamespace(cpu=lambda value=value: value) for value in (torch.randn(2, 50), torch.zeros(2, 50))]
    monkeypatch.setattr(ablations.feed, "statistics", lambda *_: statistics)
    assert ablations.difficulty(Same(), [torch.zeros(640)], [1.0, 1.0])["kl"] > 0


def test_the_surprise_is_that_of_a_known_chain():
    """z_t = a z_{t-1} + e with noise σ: ½ log(1 + var e / σ²) nats a frame; a channel of noise alone adds nothing that anybody says."""
    torch.manual_seed(0)
    drawn, a, sigma = 0.1 * torch.randn(60000), 0.9, torch.tensor([0.02, 1.0])
    z = [torch.tensor(0.0)]
    for e in drawn:
        z.append(a * z[-1] + e)
    wave = torch.stack((torch.stack(z), torch.zeros(len(z))), 1).flatten()
    found = ablations.difficulty(Chain(sigma), [wave], [1.0, 1.0])
    assert found["surprise"] == pytest.approx(0.5 * math.log(1 + 0.01 / 0.02**2), rel=0.01) and found["channels"] == 1


def test_the_kl_is_that_of_training_and_the_surprise_has_no_scale():
    torch.manual_seed(0)
    sigma, wave = torch.tensor([0.1, 0.3, 2.0]), torch.randn(3000)
    trained = ablations.difficulty(Chain(sigma), [wave], [1.0, 1.0, 1.0])
    mu, logvar = Chain(sigma).encode_stats(wave[None, None])
    assert trained["kl"] == pytest.approx(vae_loss.kl(mu, logvar).item(), abs=1e-3) and trained["channels"] == 2
    scale = torch.tensor([0.5, 2.0, 1.0])
    rescaled = Chain(sigma / scale)
    stretched = (wave.unflatten(0, (-1, 3)) / scale).flatten()
    assert ablations.difficulty(rescaled, [stretched], scale.tolist()) == pytest.approx(trained, abs=2e-3)


# ---- the sweep -------------------------------------------------------------------------------------------------------


def test_the_sweep_file_is_good():
    runs = sweep.read(SWEEPS / "vae.yaml").runs
    seeds = {}
    for run in runs:
        config = preset("nano").replace(**run.parameters["changes"])
        assert config != preset("nano") or not run.parameters["changes"], f"{run.name} changes nothing"
        seeds.setdefault(ablations.name_of(run.parameters["changes"]), []).append(run.parameters["seed"])
    assert "default" in seeds and set(map(tuple, seeds.values())) == {(0, 1, 2)}
    assert [run.parameters["seed"] for run in runs] == sorted(run.parameters["seed"] for run in runs), "every variant has one seed first"


def test_a_wrong_change_is_refused(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown config field 'vae.latent'"):
        run_notebook("vae", tmp_path, {"changes": {"vae.latent": 4}, "out": str(tmp_path / "out")})
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.slow
@pytest.mark.notebook
def test_a_run_is_gathered(tmp_path, monkeypatch):
    """The notebook in four steps; then what it left, through `gather` and `write`, with the run that is missing beside it."""
    variants = "[{changes: {}, seed: 0}, {changes: {vae.latent_dim: 4}, seed: 0}]"
    tree = gathered("vae", variants, ablations.ABOUT_VAE, tmp_path, monkeypatch)
    (row,) = tree["variants"]
    assert row["name"] == "default" and row["steps"] == 4 and len(row["lines"]) == len(tree["sentences"]) == 4
    assert len(row["lines"][0]) == len(ablations.REBUILT) and len(tree["sentences"][0]) == len(ablations.RECORDING)
    assert tree["missing"] == [{"sweep": "few", "name": "vae.latent_dim 4", "seed": 0}] and row["kl"] > 0
    assert tree["about"]["recipe"]["model"]["latent_dim"] == 16 and tree["about"]["columns"] == ablations.REBUILT
    ablations.write(tmp_path / "tree.json", tree)
    assert files.read_json(tmp_path / "tree.json") == json.loads(json.dumps(tree))


def test_unknown_results_are_refused(capsys):
    with pytest.raises(SystemExit):
        ablations.main(["ablation"])
    assert "no results named 'ablation': choose from ablations, ablations_vae" in capsys.readouterr().err


def test_main_writes_what_is_done_and_leaves_the_rest(tmp_path, monkeypatch, capsys):
    """One result has a finished run and is written where it belongs; the other has none, and its file stays as it is."""
    monkeypatch.setattr(ablations, "HOME", tmp_path)
    monkeypatch.setenv("VOX_HOME", str(tmp_path))
    results = tmp_path / "data/results"
    files.write_json(results / "ablations_vae.json", {"kept": True})
    monkeypatch.setattr(ablations, "RESULTS", {name: ((f"{name}.yaml",), {}) for name in ("ablations", "ablations_vae")})
    for name in ablations.RESULTS:
        file = tmp_path / f"notebooks/sweeps/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"notebook: {SWEEPS / 'vae.ipynb'}\nlist: [{{changes: {{vae.latent_dim: 4}}, seed: 0}}]\n", encoding="utf-8")
    (run,) = sweep.read(tmp_path / "notebooks/sweeps/ablations.yaml").runs
    done = {"sentences": [["one"]], "lines": [[4.5]], "history": [{"step": 1, "mel": 9.0, "kl": 40.0}], "changes": {}}
    files.write_json(Path(run.folder) / "metrics.json", done)
    assert ablations.main([]) == 0
    written = files.read_json(results / "ablations.json")
    assert written["variants"][0]["lines"] == [[4.5]] and written["variants"][0]["history"] == [[1, 9.0, 40.0]]
    assert files.read_json(results / "ablations_vae.json") == {"kept": True}
    said = capsys.readouterr().err
    assert "ablations: 1 variants" in said and "ablations_vae: none of the 1 runs is done here" in said


# ---- the results -----------------------------------------------------------------------------------------------------


def test_results_are_whole():
    """Every run of the sweep is there, each with a line per recording, and what was counted can be counted again."""
    runs = {(run["name"], run["seed"]) for run in RESULTS["variants"]}
    planned = {(ablations.name_of(run.parameters["changes"]), run.parameters["seed"]) for run in sweep.read(SWEEPS / "vae.yaml").runs}
    assert runs == planned and not RESULTS["missing"]
    for run in RESULTS["variants"]:
        for (text, *_), (mel, stoi, heard, wrong, pitch) in zip(RESULTS["sentences"], run["lines"], strict=True):
            assert ablations.metrics.errors(text, heard)[0] == wrong and mel > 0 and 0 <= stoi <= 1 and 0 <= pitch <= 1
        assert {"cpu", "threads", "torch", "commit"} <= set(run["machine"]) and run["wall_seconds"] > 0
    assert {run["steps"] for run in RESULTS["variants"]} == {RESULTS["about"]["recipe"]["config"]["steps"]}, "equal budgets"


def test_every_sound_is_there():
    named = [sound for run in RESULTS["variants"] for sound in run["samples"].values()]
    assert sorted(named) == sorted(path.name for path in SOUNDS.iterdir())
    assert sum(path.stat().st_size for path in SOUNDS.iterdir()) <= 600_000


def test_the_judge_hears_true_recordings_as_stored(rows):
    true = ablations.rebuilt(Same(), rows, judge.load())["true"]
    assert true == RESULTS["sentences"]
