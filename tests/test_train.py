"""`fit`: schedule, averages, what is logged, what is refused, what is left behind; two processes train as one does."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vox import AudioVAE, VoxCPM, audio, flow, learner, preset, state, train, voxcpm
from vox.batch import Item
from vox.config import TrainConfig, TransformerConfig, VAETrainConfig
from vox.learner import Learner, decay_groups, lr_at

STACK = TransformerConfig(layers=1, hidden=16, ffn=16, heads=2, kv_heads=1)
CONFIG = preset("nano").replace(
    tslm=STACK, locenc=STACK, locdit=STACK, **{"fsq.dim": 4, "vae.encoder_dim": 2, "vae.decoder_dim": 32, "vae.latent_dim": 4}
)
TRAIN = TrainConfig(steps=8, batch=4, lr=1e-2, lr_end=1e-3, warmup=2, decay=4, precision="fp32", checkpoint=4, ema=0.9)
VAE_TRAIN = VAETrainConfig(steps=4, batch=4, clip_seconds=0.16, warmup=2, decay=2, checkpoint=2, adversarial_from=2)


def speech_model():
    torch.manual_seed(0)
    return VoxCPM(CONFIG)


def items():
    rng = torch.Generator().manual_seed(1)
    return [Item(torch.randint(110, 300, (3 + i,), generator=rng), torch.randn(5 + 7 * i, 4, generator=rng)) for i in range(8)]


def vae():
    torch.manual_seed(0)
    return AudioVAE(CONFIG.vae)


def waves():
    rng = torch.Generator().manual_seed(2)
    return [torch.rand(6000, generator=rng) - 0.5 for _ in range(8)]


def fit(out, model=None, data=None, config=TRAIN, **options):
    model = model or speech_model()
    return model, train.fit(model, data or items(), config, out, progress=False, **options)


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("vae.")}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Breaks:
    """A forward hook that does something in its n-th call."""

    def __init__(self, call, action):
        self.call, self.action, self.count = call, action, 0

    def __call__(self, module, inputs, output):
        self.count += 1
        return self.action(output) if self.count == self.call else output


def test_warmup_stable_decay():
    config = TrainConfig(steps=100, lr=1.0, lr_end=0.1, warmup=10, decay=20)
    rates = [lr_at(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80] < 1 and rates[99] == pytest.approx(0.1)
    falls = [a - b for a, b in zip(rates[79:99], rates[80:], strict=True)]
    assert falls == pytest.approx([0.9 / 20] * 20)
    short = dataclasses.replace(config, steps=15)  # half of what warmup and decay ask for
    rates = [lr_at(step, short) for step in range(15)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    flat = dataclasses.replace(config, warmup=0, decay=0)
    assert {lr_at(step, flat) for step in range(100)} == {1.0}


def test_budget(monkeypatch):
    monkeypatch.setenv("VOX_BUDGET", "20")
    assert train.budget(600) == 20 and train.budget(7) == 7
    monkeypatch.delenv("VOX_BUDGET")
    assert train.budget(600) == 600


def test_only_matrices_and_filters_decay():
    for model in (speech_model(), vae()):
        names = {id(p): name for name, p in model.named_parameters()}
        decay, rest = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.1))
        assert not decay & rest and len(decay | rest) == sum(p.requires_grad for p in model.parameters())
        assert not any(
            name.endswith(("bias", "alpha", "weight_g", "norm.weight", "layernorm.weight", "embed_tokens.weight")) for name in decay
        )
        if isinstance(model, VoxCPM):
            assert {"stop_head.weight", "tslm.layers.0.mlp.up_proj.weight"} <= decay and "tslm.embed_tokens.weight" in rest
        else:
            assert {name for name in names.values() if name.endswith("weight_v")} <= decay | {"decoder.model.6.weight_v"}
    assert [group["weight_decay"] for group in decay_groups(vae(), 0.1)] == [0.1, 0.0]


def test_fit_leaves_the_averages(tmp_path):
    model = speech_model()
    before = torch.get_rng_state()
    _, report = fit(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers go on as if nothing had been drawn
    _, files = state.load_checkpoint(tmp_path / "checkpoints")
    averages, weights = files["averages"], files["weights"]
    assert equal(trained(model), averages)
    assert not any(torch.equal(averages[name], weights[name]) for name in averages if averages[name].numel() > 1)
    assert not model.training
    assert [row["step"] for row in report.history] == list(range(1, 9))
    assert set(report.history[0]) == {"step", "diffusion", "stop", "total", "grad_norm", "lr"}
    assert [row["lr"] for row in report.history] == [lr_at(step, TRAIN) for step in range(8)]
    row = report.history[3]
    assert row["total"] == pytest.approx(row["diffusion"] + TRAIN.stop_weight * row["stop"], rel=1e-6)
    assert json.loads((tmp_path / "history.json").read_text()) == report.history
    assert report.steps == 8 and report.seconds > 0 and report.path == str(tmp_path)
    assert "8 steps" in repr(report) and "diffusion" in repr(report)


def test_averages_follow_the_weights(tmp_path):
    """Against the definition, over three steps, with the warm start of (1 + step) / (10 + step)."""
    path = []
    step = Learner.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", lambda learner, *args: (step(learner, *args), path.append(trained(learner.network)))[0])
        model, _ = fit(tmp_path, config=dataclasses.replace(TRAIN, steps=3, ema=0.15))
    expected = trained(speech_model())
    for k, weights in enumerate(path):
        keep = min(0.15, (1 + k) / (10 + k))
        expected = {name: keep * value + (1 - keep) * weights[name] for name, value in expected.items()}
    for name, value in trained(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_models_own(tmp_path):
    """The first row of history is the model's loss on the first batch, and the logged norm is that of its gradient."""
    _, report = fit(tmp_path, config=dataclasses.replace(TRAIN, stop_weight=0.5))
    job = train.SpeechJob(speech_model(), items(), dataclasses.replace(TRAIN, stop_weight=0.5), train.Accelerator(), "", False)
    batch, draw, _ = job.feed(0)
    model = speech_model().train()
    losses = model(batch, draw)
    total = losses.diffusion + 0.5 * losses.stop
    total.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    row = report.history[0]
    assert row["diffusion"] == pytest.approx(losses.diffusion.item(), rel=1e-5)
    assert row["stop"] == pytest.approx(losses.stop.item(), rel=1e-5)
    assert row["total"] == pytest.approx(total.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_the_past_may_be_the_models_own():
    """Where the draw says so, later patches are told what the model draws after a true past; what is to be learnt stays the truth."""
    job = train.SpeechJob(speech_model(), items(), dataclasses.replace(TRAIN, own=0.5), train.Accelerator(), "", False)
    (batch, draw, _), model = job.feed(0), speech_model()
    row, i = batch.loss_mask.nonzero(as_tuple=True)
    assert 0 < len(row[draw.own].unique()) < len(batch.text), "of some sequences, not of all"
    _, mu = model.read(batch, batch.latents)
    sampled = flow.sample(model.velocity, mu, batch.latents[row, i - 1], draw.noise, voxcpm.OWN_STEPS, cfg=1.0)
    past = batch.latents.clone()
    past[row[draw.own], i[draw.own]] = sampled[draw.own]
    torch.testing.assert_close(model.drawn(batch, batch.latents, draw), past)
    assert 0 < draw.own.sum() < len(draw.own) and not torch.equal(past, batch.latents)
    plan, mu = model.read(batch, past)
    y, v = flow.path(batch.latents[row, i], draw.noise, draw.t)
    predicted = model.velocity(y, mu * draw.keep[:, None], draw.t, past[row, i - 1])
    losses, plain = model(batch, draw), model(batch, draw._replace(own=None))
    torch.testing.assert_close(losses.diffusion, (predicted - v).square().mean())
    torch.testing.assert_close(losses.stop, F.cross_entropy(model.stop_logits(plan), batch.stop[row, i]))
    assert losses.diffusion != plain.diffusion and model(batch, draw._replace(own=torch.zeros_like(draw.own))) == plain


def test_round_by_round_the_past_is_what_speaking_would_have_drawn():
    """Drawn patch by patch, each after those before it, and drawn all at once as often as there are patches: the same."""
    job = train.SpeechJob(speech_model(), items(), dataclasses.replace(TRAIN, own=0.5), train.Accelerator(), "", False)
    (batch, draw, _), model = job.feed(0), speech_model()
    row, i = batch.loss_mask.nonzero(as_tuple=True)
    past, most = batch.latents.clone(), max(draw.own[row == one].sum() for one in row.unique())
    order = torch.cat([draw.own[row == one].cumsum(0) for one in row.unique()]) * draw.own  # 1 for a sequence's first own patch, 2, …
    for turn in range(1, most + 1):
        with torch.no_grad():
            _, mu = model.read(batch, past)
            patches = flow.sample(model.velocity, mu, past[row, i - 1], draw.noise, voxcpm.OWN_STEPS, cfg=1.0)
        past[row[order == turn], i[order == turn]] = patches[order == turn]
    once, more = (rounds(model, n).drawn(batch, batch.latents, draw)[row, i] for n in (1, 3))
    whole = rounds(model, most.item()).drawn(batch, batch.latents, draw)[row, i]
    first, soon, later = ((order > least) & (order <= most) for least, most in ((0, 1), (0, 3), (1, 99)))
    torch.testing.assert_close(whole, past[row, i])
    torch.testing.assert_close(once[first], whole[first])
    torch.testing.assert_close(more[soon], whole[soon])
    assert later.any() and not torch.isclose(once[later], whole[later]).all(-1).any(), "one draw deep, not as deep as speaking goes"


def rounds(model, count):
    model.config = model.config.replace(**{"train.own_rounds": count})
    return model


def test_bf16_is_near_fp32(tmp_path):
    _, exact = fit(tmp_path / "fp32")
    _, rough = fit(tmp_path / "bf16", config=dataclasses.replace(TRAIN, precision="bf16"))
    first, other = exact.history[0]["diffusion"], rough.history[0]["diffusion"]
    assert (first != other) == learner.fast_bf16(torch.device("cpu")) and first == pytest.approx(other, rel=0.02)
    weights = state.read_tensors(tmp_path / "bf16" / "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_processor_without_bf16_trains_in_float32(monkeypatch):
    cpu, network = torch.device("cpu"), torch.nn.Linear(2, 2)
    dtypes = {}
    for has in (True, False):
        monkeypatch.setattr(learner, "fast_bf16", lambda device, has=has: has)
        dtypes[has] = learner.Pass(network, lambda network, x: network(x).dtype, "bf16", cpu)(torch.ones(1, 2))
    assert dtypes == {True: torch.bfloat16, False: torch.float32}


def test_a_finished_run_is_loaded(tmp_path):
    model, report = fit(tmp_path)
    again = speech_model()
    again.register_forward_hook(Breaks(1, lambda output: pytest.fail("trained again")))
    _, loaded = fit(tmp_path, again)
    assert dataclasses.asdict(loaded) == dataclasses.asdict(report)
    assert equal(trained(again), trained(model)) and not again.training
    (tmp_path / "weights.safetensors").write_bytes(b"half")  # then the last checkpoint makes the result again
    _, repaired = fit(tmp_path, third := speech_model())
    assert equal(trained(third), trained(model)) and repaired.history == report.history


def test_starting_anew_forgets_the_old_run(tmp_path):
    """Once the new one can begin, and not before: a call that is refused leaves the old run as it was."""
    fit(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = dataclasses.replace(TRAIN, seed=1)
    with pytest.raises(ValueError):
        fit(tmp_path, data=[Item(torch.tensor([CONFIG.vocab]), torch.randn(5, 4))], config=other, resume=False)
    with pytest.raises(ValueError, match="a VAETrainConfig trains an AudioVAE, and the model is of type VoxCPM"):
        fit(tmp_path, config=VAE_TRAIN, resume=False)
    with pytest.raises(ValueError, match="a TrainConfig trains a VoxCPM, and the model is of type AudioVAE"):
        fit(tmp_path, vae(), config=other, resume=False)
    with pytest.raises(ValueError, match="config is a Config: use the `train` or the `vae_train`"):
        fit(tmp_path, config=CONFIG, resume=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    model, report = fit(tmp_path, config=other, resume=False, until=1)
    assert not (tmp_path / "weights.safetensors").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    model, report = fit(tmp_path, config=other)
    fresh, expected = fit(tmp_path / "elsewhere", config=other)
    assert equal(trained(model), trained(fresh)) and report.history == expected.history


def test_another_run_is_refused(tmp_path):
    fit(tmp_path, config=dataclasses.replace(TRAIN, steps=6))
    for finished in (True, False):
        if not finished:
            (tmp_path / "report.json").unlink()
        with pytest.raises(ValueError, match=r"config\.lr was 0\.01 and is now 0\.02"):
            fit(tmp_path, config=dataclasses.replace(TRAIN, steps=6, lr=0.02))
        with pytest.raises(ValueError, match=r"config\.steps was 6 and is now 8.*resume=False"):
            fit(tmp_path)
        with pytest.raises(ValueError, match="data was"):
            fit(tmp_path, data=items()[1:], config=dataclasses.replace(TRAIN, steps=6))
        with pytest.raises(ValueError, match=r"model\.previous_patch was True and is now False"):
            fit(tmp_path, VoxCPM(CONFIG.replace(previous_patch=False)), config=dataclasses.replace(TRAIN, steps=6))
    fit(tmp_path, config=dataclasses.replace(TRAIN, steps=6, checkpoint=1))  # how often is no matter


def test_wrong_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="VoxCPM does not train on a list of Tensor"):
        fit(tmp_path, data=waves())
    with pytest.raises(ValueError, match="AudioVAE does not train on a list of Item"):
        fit(tmp_path, vae(), config=VAE_TRAIN)
    with pytest.raises(ValueError, match="no training data"):
        train.fit(vae(), [], VAE_TRAIN, tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    model = speech_model()
    model.stop_head.register_forward_hook(Breaks(6, lambda output: output * float("nan")))
    with pytest.raises(FloatingPointError, match="stop became nan in step 6"):
        fit(tmp_path, model)
    assert [path.name for path in state.checkpoints(tmp_path / "checkpoints")] == ["step-000004"]
    saved, files = state.load_checkpoint(tmp_path / "checkpoints")
    assert all(value.isfinite().all() for value in files["weights"].values())


def test_ctrl_c_stops_between_steps_and_loses_nothing(tmp_path):
    _, whole = fit(tmp_path / "whole")
    model = speech_model()
    handler = signal.getsignal(signal.SIGINT)
    model.register_forward_hook(Breaks(3, lambda output: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        fit(tmp_path / "stopped", model)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in state.checkpoints(tmp_path / "stopped" / "checkpoints")] == ["step-000003"]
    _, report = fit(tmp_path / "stopped")
    assert report.history == whole.history
    files = [tmp_path / name / "weights.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_history_is_thinned_into_means(tmp_path, monkeypatch):
    _, every = fit(tmp_path / "every")
    monkeypatch.setattr(train, "ROWS", 2)  # a row per 4 of the 8 steps
    model = speech_model()
    model.register_forward_hook(Breaks(6, lambda output: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "thin", model)  # in the middle of a row
    _, thin = fit(tmp_path / "thin")
    assert [row["step"] for row in thin.history] == [4, 8]
    for row, steps in zip(thin.history, (every.history[:4], every.history[4:]), strict=True):
        for name in ("diffusion", "stop", "total", "grad_norm"):
            assert row[name] == pytest.approx(sum(step[name] for step in steps) / 4)


def test_a_vae_is_trained_and_given_unit_scale(tmp_path):
    model, report = fit(tmp_path, vae(), waves(), VAE_TRAIN)
    assert set(report.history[0]) == {"step", "mel", "kl", "total", "grad_norm", "lr"}
    assert set(report.history[2]) == set(report.history[0]) | {"discriminator", "adversarial", "feature"}
    row = report.history[0]
    assert row["total"] == pytest.approx(15 * row["mel"] + 5e-5 * row["kl"], rel=1e-5)
    row = report.history[3]
    assert row["total"] == pytest.approx(15 * row["mel"] + 5e-5 * row["kl"] + row["adversarial"] + 2 * row["feature"], rel=1e-5)
    with torch.no_grad():
        latents = torch.cat([model.encode(wav[None, None])[0] for wav in waves()], 1)
    torch.testing.assert_close(latents.std(1), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert len(report.scale) == 4 and max(report.scale) != 1
    final = (tmp_path / "weights.safetensors").read_bytes()
    loaded, again = fit(tmp_path, vae(), waves(), VAE_TRAIN)
    assert again.scale == report.scale and equal(trained(loaded), trained(model))
    (tmp_path / "report.json").unlink()  # as if killed just before the end: the scale is not applied twice
    remade, again = fit(tmp_path, vae(), waves(), VAE_TRAIN)
    assert again.scale == report.scale and equal(trained(remade), trained(model))
    assert (tmp_path / "weights.safetensors").read_bytes() == final


def test_discriminators_do_not_move_before_their_step(tmp_path):
    _, plain = fit(tmp_path / "plain", vae(), waves(), dataclasses.replace(VAE_TRAIN, adversarial_from=None))
    _, judged = fit(tmp_path / "judged", vae(), waves(), VAE_TRAIN)
    assert [row["mel"] for row in plain.history[:3]] == [row["mel"] for row in judged.history[:3]]
    assert plain.history[3]["mel"] != judged.history[3]["mel"]


def test_a_frozen_vae_can_be_trained_on(tmp_path):
    """VoxCPM freezes the VAE it is given, fit of the VAE thaws it, and fit of VoxCPM leaves it alone."""
    model = speech_model()
    fit(tmp_path / "vae", model.vae, waves(), dataclasses.replace(VAE_TRAIN, adversarial_from=None))
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    fit(tmp_path / "model", model)
    assert equal(dict(model.vae.state_dict()), before)


def test_a_decoder_is_trained_alone(tmp_path):
    """So latents stay what they are, to the bit, and with them whatever was trained on them."""
    codec = vae()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    _, report = fit(tmp_path, codec, waves(), dataclasses.replace(VAE_TRAIN, encoder=False, waveform=1.0))
    after = codec.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"} and report.scale is None
    assert {name for name in load_file(tmp_path / "weights.safetensors")} == {name for name in before if name.startswith("decoder")}


def test_a_decoder_trained_alone_is_loaded_again(tmp_path):
    """By a later call with a fresh AudioVAE; and a decoder that was begun for one encoder is not finished for another."""
    config = dataclasses.replace(VAE_TRAIN, encoder=False, adversarial_from=None)
    fit(tmp_path, first := vae(), waves(), config)
    again = vae()
    again.register_forward_hook(Breaks(1, lambda output: pytest.fail("trained again")))
    fit(tmp_path, again, waves(), config)
    assert equal(dict(again.state_dict()), dict(first.state_dict()))
    other = vae()
    with torch.no_grad():
        other.encoder.fc_mu.bias += 1
    for _ in range(2):
        with pytest.raises(ValueError, match="vae was"):
            fit(tmp_path, other, waves(), config)
        (tmp_path / "report.json").unlink(missing_ok=True)


def test_a_dataset_is_encoded_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("VOX_CACHE", str(tmp_path / "cache"))
    texts = ("one", "two", "three", "four")
    rows = [
        {"audio": {"bytes": audio.encode(wav, 16000), "path": None}, "text": t, "speaker": "anna"}
        for wav, t in zip(waves(), texts, strict=False)
    ]
    data = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    config = dataclasses.replace(TRAIN, join=1.0)
    model, report = fit(tmp_path / "model", data=data, config=config)
    assert len(report.history) == 8 and list((tmp_path / "cache").glob("latents/*/*.safetensors"))
    other = speech_model()
    with torch.no_grad():
        other.vae.encoder.fc_mu.bias += 1
    with pytest.raises(ValueError, match="vae was"):
        fit(tmp_path / "model", other, data, config)
    model, report = fit(tmp_path / "vae", vae(), data, dataclasses.replace(VAE_TRAIN, adversarial_from=None))
    assert len(report.history) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fsq.kind": "identity"},
        {"fsq.kind": "noise"},
        {"fsq.kind": "none", "fsq.dim": 16},
        {"ralm": "none"},
        {"ralm": "no_history"},
        {"ralm": "no_residual"},
        {"previous_patch": False},
    ],
    ids=str,
)
def test_every_weight_is_trained(tmp_path, changes):
    """With several processes a weight that is to be trained and gets no gradient would stop the run."""
    torch.manual_seed(0)
    model = VoxCPM(CONFIG.replace(**changes))
    job = train.SpeechJob(model, items(), TRAIN, train.Accelerator(), "", False)
    job.learner.optimizer.zero_grad = lambda: None
    job.step(0)
    assert sum(not p.requires_grad for name, p in model.named_parameters() if not name.startswith("vae.")) <= 2
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same global batches on one and on two CPU processes, in two legs: losses equal within 1e-5, and nearly equal weights."""
    for out, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, *launcher, __file__, str(tmp_path / out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for kind in ("speech", "vae"):
        one, two = (json.loads((tmp_path / out / kind / "history.json").read_text()) for out in ("one", "two"))
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        one, two = (load_file(tmp_path / out / kind / "weights.safetensors") for out in ("one", "two"))
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert len(state.checkpoints(tmp_path / "two" / kind / "checkpoints")) == 2


if __name__ == "__main__":  # one process of `test_two_processes_train_as_one`
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    seven = dataclasses.replace(TRAIN, batch=7)  # an uneven share for each
    fit(out / "speech", config=seven, until=3)
    fit(out / "speech", config=seven)  # each process takes up its own random state
    fit(out / "vae", vae(), waves(), dataclasses.replace(VAE_TRAIN, batch=3))
