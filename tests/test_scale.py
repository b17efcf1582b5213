"""Notebook 12 as a job: killed and started again it ends with the same weights, and what is mistyped is refused."""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from vox import VoxCPM, lab, load_vae, preset, state
from vox.text import CharTokenizer

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "12_scale.ipynb"
SHORT = {"preset": "nano", "hours": 0.02, "vae_steps": 3, "steps": 8, "every": 4, "rows": 2, "device": "cpu"}


def start(out, **parameters):
    """papermill on the notebook, in a process of its own."""
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(out.with_suffix(".ipynb")), "--cwd", str(NOTEBOOK.parent)]
    for name, value in (SHORT | {"out": str(out)} | parameters).items():
        command += ["-y", json.dumps({name: value})] if isinstance(value, dict) else ["-p", name, str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(NOTEBOOK.parent.parent)}
    environment.pop("VOX_BUDGET", None)
    return subprocess.Popen(command + ["--no-progress-bar"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process):
    """Wait for papermill; its exit status and what it complained of."""
    _, complaint = process.communicate(timeout=300)
    return process.returncode, complaint


def kill(process):
    """SIGKILL to papermill and the kernel it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        member.kill()
    psutil.wait_procs(family[:-1], timeout=30)
    process.communicate()


@pytest.mark.slow
@pytest.mark.notebook
def test_killed_and_resumed_to_the_same_weights(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    status, complaint = ended(start(whole))
    assert status == 0, complaint
    process = start(pieces)
    while not state.checkpoints(pieces / "voxcpm" / "checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill(process)
    assert not (pieces / "voxcpm" / "report.json").exists() and not (pieces / "metrics.json").exists()
    status, complaint = ended(start(pieces))
    assert status == 0, complaint
    for name in ("vae/weights.safetensors", "voxcpm/weights.safetensors", "voxcpm/history.json", "legs/000004/0.wav", "legs/000008/1.wav"):
        assert (whole / name).read_bytes() == (pieces / name).read_bytes(), name
    metrics = json.loads((pieces / "metrics.json").read_text())
    assert metrics["finished"] and [leg["steps"] for leg in metrics["legs"]] == [4, 8]
    assert all("true_error_rate cmn" in leg["figures"] or "true_error_rate en-us" in leg["figures"] for leg in metrics["legs"])
    decay = json.loads((pieces / "decay.json").read_text())
    assert decay["begins_after_step"] == 5 and [row["step"] for row in decay["rows"]] == [6, 7, 8]


@pytest.mark.slow
@pytest.mark.notebook
def test_time_that_is_up_ends_a_leg_and_the_next_call_goes_on(tmp_path):
    out = tmp_path / "out"
    for call, finished in enumerate((False, False, True)):
        status, complaint = ended(start(out, steps=3, vae_steps=2, minutes=0 if finished else 1e-5))
        assert status == 0, complaint
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["finished"] is finished
        assert (metrics["training"]["steps"], metrics["training"]["of"]) == ((1, 2), (1, 3), (3, 3))[call]


RUNS = 10  # of notebook 12, in `make tiny`
SHORTER = "-p hours 0.01 -p vae_steps 2 -p steps 2 -p every 2 -p rows 1 -p device cpu"


def rebuild(root, target="tiny"):
    """What `make tiny` does with the notebook, shortened, in a folder that has nothing yet, not even a corpus → number of runs."""
    root.mkdir()
    folder = Path(sys.executable).parent
    command = ["make", "--dry-run", target, f"BIN={folder}", f"OUT={root / target}", f"ARGS={SHORTER}"]
    lines = subprocess.run(command, cwd=NOTEBOOK.parent.parent, capture_output=True, text=True, check=True).stdout.splitlines()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(NOTEBOOK.parent.parent), "VOX_CACHE": str(root / "cache")}
    environment.pop("VOX_BUDGET", None)
    lines = "\n".join(lines).replace("\\\n", "").splitlines()
    runs = [shlex.split(line) for line in lines if line.startswith(("mkdir", f"{folder}/papermill"))]
    for run in runs:
        done = subprocess.run(run, cwd=NOTEBOOK.parent.parent, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return len(runs) - 1  # one makes the folders


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The folder of one shortened rebuild."""
    root = tmp_path_factory.mktemp("rebuilt") / "first"
    assert rebuild(root) == RUNS
    return root


def parameters_of(folder):
    """What notebook 12 was given for a run that it finished."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["finished"]
    return metrics["parameters"]


@pytest.mark.slow
@pytest.mark.notebook
def test_the_audiovae_of_tiny_is_made_in_four_runs(rebuilt):
    folders = [rebuilt / f"tiny_{name}" for name in ("vae_first", "vae", "decoder", "decoder_on")]
    recipes = [json.loads((folder / "vae/report.json").read_text())["identity"]["config"] for folder in folders]
    assert [recipe["mel"] for recipe in recipes] == [3, 15, 15, 15]
    assert [recipe["encoder"] for recipe in recipes] == [True, True, False, False]
    assert all(recipe["waveform"] == 10 for recipe in recipes)
    one, two, three, four = (load_vae(folder / "model", device="cpu").state_dict() for folder in folders)
    name = "decoder.model.2.block.1.weight_v"
    assert 0 < (one[name] - two[name]).norm() < 0.5 * one[name].norm(), "the second goes on from the first, and not from nothing"
    for before, after in ((two, three), (three, four)):
        assert {key.split(".")[0] for key in two if not torch.equal(before[key], after[key])} == {"decoder"}, "latents stay what they are"


@pytest.mark.slow
@pytest.mark.notebook
def test_voxcpm_is_made_in_six_runs(rebuilt):
    """Of words; of voices; with a past of its own; thrice of joined utterances: on one AudioVAE, each going on from the one before."""
    names = "tiny_words", "tiny_true", "tiny_own", "tiny_joined", "tiny_joined_on", "tiny"
    words, *others = (parameters_of(rebuilt / name) for name in names)
    assert [run["corpus"] for run in (words, *others)] == ["words", *["voices"] * 5]
    begins = [str(rebuilt / name / "model") for name in ("tiny_decoder_on", *names[:-1])]
    assert [words["vae"], *(run["start"] for run in others)] == begins
    recipes = [json.loads((rebuilt / name / "voxcpm/report.json").read_text())["identity"]["config"] for name in names]
    assert [recipe["own"] for recipe in recipes] == [0, 0, 0.75, 0.5, 0.5, 0.5]
    assert [recipe["join"] for recipe in recipes] == [0, 0.5, 0.6, 0.9, 0.9, 0.9]
    assert [recipe["lr"] for recipe in recipes] == [1e-3] * 5 + [5e-4]
    codecs = [(rebuilt / name / "model/audiovae.safetensors").read_bytes() for name in ("tiny_decoder_on", *names)]
    assert codecs.count(codecs[0]) == 7


@pytest.mark.slow
@pytest.mark.notebook
def test_tiny_rebuilt_twice_is_the_same(rebuilt, tmp_path):
    assert rebuild(second := tmp_path / "second") == RUNS
    runs = "_words", "_true", "_own", "_joined", "_joined_on", ""
    names = *(f"tiny_{run}/vae" for run in ("vae_first", "vae", "decoder", "decoder_on")), *(f"tiny{run}/voxcpm" for run in runs)
    for name in [*(f"{name}/weights" for name in names), "tiny/model/model"]:
        one, two = ((root / f"{name}.safetensors").read_bytes() for root in (rebuilt, second))
        assert one == two, name


@pytest.mark.slow
@pytest.mark.notebook
def test_the_audiovae_of_the_ablations_is_made_in_one_run(tmp_path):
    assert rebuild(tmp_path / "root", "mel_vae") == 1
    recipe = json.loads((tmp_path / "root/mel_vae/vae/report.json").read_text())["identity"]["config"]
    assert (recipe["waveform"], recipe["kl"]) == (0, 100 * 5e-5)


def test_what_is_said_of_a_past_of_its_own_was_measured():
    """Most of a voice is lost from patch to patch, and less of it since; a single patch is as good as it was."""
    results = NOTEBOOK.parent.parent / "data/results"
    drift = json.loads((results / "tiny.json").read_text())["drift"]["figures"]
    _, (_, true_low, true_high, _), (_, _, clone_high, _) = (drift[name]["identified"]["speech"] for name in list(drift)[:3])
    assert true_low > clone_high
    (now, *_), (later, *_) = (drift[f"shipped, {kind}"]["identified"]["speech"] for kind in ("after a true past", "clone"))
    assert true_low < now < true_high and later > 1.5 * drift["before, clone"]["identified"]["speech"][0]
    (_, low, _, _), (_, _, high, _) = (drift[f"{name}, clone"]["sim"]["speech"] for name in ("shipped", "before"))
    assert low > high


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"step": 20}, "unknown parameter 'step': this notebook has preset, changes"), ({"preset": "nanno"}, "preset must be one of nano")],
    ids=["name", "value"],
)
def test_papermill_cannot_mistype(tmp_path, wrong, message):
    status, complaint = ended(start(tmp_path / "out", **wrong))
    assert status and message in complaint and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.notebook
def test_a_start_must_fit(tmp_path):
    """Weights to begin with bring their AudioVAE along, and are those of the model that is asked for."""
    config = preset("nano").replace(**{"tslm.layers": 2})
    VoxCPM(config, tokenizer=CharTokenizer.learn(["one"], config.vocab)).save(tmp_path / "other")
    other = str(tmp_path / "other")
    for wrong, message in (
        ({"vae": other}, "give one of them"),
        ({"vae_only": True}, "give vae_start to train it on"),
        ({"changes": {"vae_train.encoder": False}}, "give the AudioVAE it is in as vae_start"),
        ({}, "other holds another model: give the preset and the changes"),
    ):
        status, complaint = ended(start(tmp_path / "out", start=other, **wrong))
        assert status and message in complaint
        assert not (tmp_path / "out" / "voxcpm").exists()


@pytest.mark.slow
@pytest.mark.notebook
def test_an_audio_vae_may_be_trained_on(tmp_path):
    """With more channels, or its decoder alone, on latents that stay what they are."""
    few = {"vae.latent_dim": 4}
    status, complaint = ended(start(tmp_path / "first", changes=few, vae_steps=2, vae_only=True))
    assert status == 0, complaint
    assert sorted(path.name for path in (tmp_path / "first/model").iterdir()) == ["audiovae.safetensors", "config.json"]
    assert json.loads((tmp_path / "first/metrics.json").read_text())["finished"]
    more = {"vae.latent_dim": 6, "vae_train.waveform": 1.0}
    status, complaint = ended(start(tmp_path / "second", changes=more, vae_steps=2, steps=1, vae_start=str(tmp_path / "first/model")))
    assert status == 0, complaint
    history = json.loads((tmp_path / "second/history.json").read_text())
    recipe = preset("nano").vae_train
    assert len(history["vae"]) == 2
    for row in history["vae"]:
        terms = recipe.mel * row["mel"] + recipe.kl * row["kl"] + 1.0 * row["waveform"]
        assert row["waveform"] > 0 and row["total"] == pytest.approx(terms, rel=1e-4)
    one, two = (state.read_tensors(tmp_path / name / "model/audiovae.safetensors") for name in ("first", "second"))
    name = "decoder.model.1.weight_v"
    assert two[name].shape[1] <= 6 and one[name].shape[1] <= 4 and not torch.equal(one[name], two[name][:, : one[name].shape[1]])
    alone = {"vae_train.encoder": False, "vae_train.adversarial_from": 0}
    options = dict(vae_steps=2, vae_only=True, vae_start=str(tmp_path / "second/model"))
    status, complaint = ended(start(tmp_path / "third", changes=alone, **options))
    assert status == 0, complaint
    three = state.read_tensors(tmp_path / "third/model/audiovae.safetensors")
    assert {name.split(".")[0] for name in two if not torch.equal(two[name], three[name])} == {"decoder"}
    assert json.loads((tmp_path / "third/history.json").read_text())["vae"][0]["adversarial"] > 0


RULES = dict(size=("s", "m"), name=str, count=int, share=float, loud=bool)
GOOD = dict(size="s", name="", count=0, share=1, loud=False)


def test_good_parameters_come_back():
    jupyter = {"In": [""], "Out": {}, "_": 3, "__name__": "__main__", "open": open, "lab": lab}
    assert lab.check_parameters(GOOD | jupyter, **RULES) == GOOD


def test_a_cell_may_be_run_again():
    """By then the notebook has names of its own; values are looked at again."""
    namespace = dict(GOOD)
    lab.check_parameters(namespace, **RULES)
    namespace["total"] = 5
    assert lab.check_parameters(namespace, **RULES) == GOOD
    with pytest.raises(ValueError, match="count must be of type int"):
        lab.check_parameters(namespace | {"count": 1.5}, **RULES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"counts": 3}, "unknown parameter 'counts'"),
        ({"nothing": None}, "unknown parameter 'nothing'"),
        ({"size": "l"}, "size must be one of s, m, not 'l'"),
        ({"size": []}, "size must be one of s, m"),
        ({"name": 3}, "name must be of type str, not 3"),
        ({"count": True}, "count must be of type int, not True"),
        ({"count": "3"}, "count must be of type int, not '3'"),
        ({"count": -1}, "count must be finite and not negative"),
        ({"share": math.nan}, "share must be finite and not negative"),
        ({"loud": 1}, "loud must be of type bool, not 1"),
    ],
)
def test_each_mistake_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        lab.check_parameters(GOOD | wrong, **RULES)


def test_memory_is_measured():
    assert 0.05 < lab.peak_memory(torch.device("cpu")) < 100
