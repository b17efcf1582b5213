"""Resuming is exact: killed again and again, a run ends with the bits of the one that was left alone; damaged checkpoints are refused.

Run as a program this file is the trainer that gets killed: it loads everything once, then forks one process per leg.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from vox import AudioVAE, VoxCPM, preset, state, train
from vox.batch import Item
from vox.config import TrainConfig, TransformerConfig, VAETrainConfig

STACK = TransformerConfig(layers=1, hidden=16, ffn=16, heads=2, kv_heads=1)
SMALL = {"fsq.dim": 4, "vae.encoder_dim": 2, "vae.decoder_dim": 32, "vae.latent_dim": 4, "vae.use_noise_block": True}
CONFIG = preset("nano").replace(tslm=STACK, locenc=STACK, locdit=STACK, **SMALL)
TRAIN = TrainConfig(steps=60, batch=4, lr=1e-2, warmup=5, decay=20, precision="fp32", checkpoint=3)
VAE_TRAIN = VAETrainConfig(steps=30, batch=2, clip_seconds=0.16, warmup=5, decay=10, checkpoint=2, adversarial_from=10)


def speech(out, config=TRAIN, **leg):
    """A nano-scale VoxCPM on eight random utterances, from the start or from wherever `out` got to."""
    torch.manual_seed(0)
    model = VoxCPM(CONFIG)
    items = [Item(torch.randint(110, 300, (3 + i,)), torch.randn(5 + 7 * i, 4)) for i in range(8)]
    return train.fit(model, items, config, out, progress=False, **leg)


def vae(out, config=VAE_TRAIN, **leg):
    """An AudioVAE with noise blocks (they draw from the global generator) and, from step 10 on, discriminators."""
    torch.manual_seed(0)
    model = AudioVAE(CONFIG.vae)
    return train.fit(model, [torch.rand(6000) - 0.5 for _ in range(8)], config, out, progress=False, **leg)


KINDS = {"speech": (speech, TRAIN.steps), "vae": (vae, VAE_TRAIN.steps)}


def in_a_process(kind, out):
    """Start a leg; returns its process id."""
    process = os.fork()
    if process == 0:
        try:
            KINDS[kind][0](out)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def newest(out):
    """The step of the newest checkpoint."""
    return max(map(state.step_of, state.checkpoints(out / "checkpoints")), default=0)


def interrupted(kind, out, dice):
    """Five legs, each killed at a random moment once it has got to a random step, then one to the end. Returns the steps."""
    killed = []
    for target in sorted(dice.sample(range(KINDS[kind][1] - 12), 5)):
        process = in_a_process(kind, out)
        while newest(out) < target and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the leg meant to be killed after step {target} had ended by itself")
        killed.append(newest(out))
    _, status = os.waitpid(in_a_process(kind, out), 0)
    if status:
        sys.exit("the last leg failed")
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_five_times_and_bit_identical(tmp_path, kind):
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, __file__, kind, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert (whole / "weights.safetensors").read_bytes() == (pieces / "weights.safetensors").read_bytes()
    assert (whole / "history.json").read_bytes() == (pieces / "history.json").read_bytes()
    steps = [row["step"] for row in json.loads((pieces / "history.json").read_text())]
    assert steps == list(range(1, KINDS[kind][1] + 1))
    for name in ("weights", "moments", "averages", "random"):
        last = f"checkpoints/step-{KINDS[kind][1]:06d}/{name}.safetensors"
        assert (whole / last).read_bytes() == (pieces / last).read_bytes()
    assert len(state.checkpoints(pieces / "checkpoints")) == 2 and not list((pieces / "checkpoints").glob(".*"))


SHORT = dataclasses.replace(TRAIN, steps=8, checkpoint=2)


@pytest.fixture
def stopped(tmp_path):
    """A run with checkpoints 6 and 8 that has not ended, and what it ends with."""
    speech(tmp_path / "run", SHORT)
    (tmp_path / "run" / "report.json").unlink()
    weights = tmp_path / "run" / "weights.safetensors"
    weights.rename(tmp_path / "expected.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_legs_end_where_they_are_told_and_change_nothing(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(train, "ROWS", 2)  # a row of history is the mean of four steps
    run, config = KINDS[kind][0], dataclasses.replace(TRAIN if kind == "speech" else VAE_TRAIN, steps=8, checkpoint=5)
    assert run(tmp_path / "whole", config).finished
    for leg, steps in ((dict(until=2), 2), (dict(seconds=0), 3), (dict(until=1, seconds=0), 3), (dict(until=6, seconds=1e9), 6)):
        report = run(tmp_path / "legs", config, **leg)
        assert (report.steps, report.finished, newest(tmp_path / "legs")) == (steps, False, steps)
        assert [row["step"] for row in report.history] == [step for step in (4,) if step < steps] + [steps]
        assert f"{steps} steps so far" in repr(report)
        assert not (tmp_path / "legs" / "report.json").exists()
    with pytest.raises(ValueError, match="until"):
        run(tmp_path / "legs", config, until=0)
    report = run(tmp_path / "legs", config, until=9, seconds=1e9)
    assert report.finished and report.steps == 8 and run(tmp_path / "legs", config, until=1).finished
    for name in ("weights.safetensors", "history.json"):
        assert (tmp_path / "legs" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("weights.safetensors", halve, r"weights\.safetensors has \d+ bytes, \d+ were written"),
        ("moments.safetensors", flip, r"the contents of moments\.safetensors have changed"),
        ("random.safetensors", Path.unlink, r"random\.safetensors is missing"),
        ("state.json", halve, r"state\.json cannot be read"),
    ],
    ids=["cut in half", "a bit flipped", "a file missing", "state cut in half"],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(stopped, file, damage, reason):
    damage(stopped / "checkpoints" / "step-000008" / file)
    with pytest.warns(UserWarning, match=rf"step-000008 is damaged and will not be used: {reason}"):
        report = speech(stopped, SHORT)
    assert [row["step"] for row in report.history] == list(range(1, 9))
    assert (stopped / "weights.safetensors").read_bytes() == (stopped.parent / "expected.safetensors").read_bytes()
    assert state.load_checkpoint(stopped / "checkpoints")[0]["step"] == 8  # written again, whole


def test_only_damaged_checkpoints_are_an_error(stopped):
    for name in ("step-000006", "step-000008"):
        halve(stopped / "checkpoints" / name / "averages.safetensors")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="every checkpoint is damaged: .*step-000008.*step-000006.*resume=False"),
    ):
        speech(stopped, SHORT)


def test_checkpoints_come_whole_and_two_are_kept(tmp_path):
    for step in (2, 10, 9):
        state.save_checkpoint(tmp_path, step, {"weights": {"w": torch.full((3,), float(step))}}, {"note": step})
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-000002", "step-000009"]  # 10 was of a run given up
    (tmp_path / ".step-000011.123").mkdir()  # what a killed process leaves
    state.save_checkpoint(tmp_path, 1000000, {"weights": {"w": torch.zeros(3)}}, {"note": 0})
    state.save_checkpoint(tmp_path, 1000000, {"weights": {"w": torch.ones(3)}}, {"note": 1})  # the same step again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-1000000"]
    saved, files = state.load_checkpoint(tmp_path)
    assert saved["step"] == 1000000 and saved["note"] == 1 and torch.equal(files["weights"]["w"], torch.ones(3))
    assert state.load_checkpoint(tmp_path / "nothing") is None


def test_equal_weights_have_equal_hashes():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(()), "c": torch.ones(2, dtype=torch.bfloat16)}
    assert state.tensor_hash(tensors) == state.tensor_hash(dict(reversed(tensors.items())))
    for name, other in (("a", tensors["a"].view(3, 2)), ("a", tensors["a"].T.contiguous()), ("b", torch.ones(())), ("c", torch.ones(2))):
        assert state.tensor_hash(tensors | {name: other}) != state.tensor_hash(tensors)


def test_the_first_difference_is_named():
    assert state.difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert state.difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c was 2 and is now 3"
    assert state.difference({"a": 1}, {"a": 1, "d": 4}) == "d was None and is now 4"


if __name__ == "__main__":
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with forked legs: one killed while holding it would lock out all the later ones
    tqdm.monitor_interval = 0  # no second thread, whose locks a fork would copy
    kind, out = sys.argv[1], Path(sys.argv[2])
    KINDS[kind][0](out / "whole")
    print("killed after checkpoints", interrupted(kind, out / "pieces", random.Random(0)))
