"""The training loop: `fit` for the AudioVAE and for VoxCPM (paper §4.1 and appendix).

    feed → forward → backward → clip → AdamW → running average of the weights

Notable choices
- `accelerate` is used for devices and processes only; each process weighs its loss by its share of the global batch, so the
  averaged gradient is that of one process;
- everything random about a step depends on (seed, step) alone (`vox.feed`), and a checkpoint holds weights, moments, averages
  and the state of the global generators: a killed run goes on bit for bit on the same CPU.
"""

import math
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vox import state, vae_loss
from vox.batch import Item
from vox.config import TrainConfig, VAETrainConfig, to_dict
from vox.feed import ClipFeed, Items, SpeechFeed, Utterances, data_hash, latent_scale
from vox.files import read_json, write_json
from vox.learner import Learner, lr_at, set_weights

ROWS = 1000  # rows of history a run leaves, at most


def budget(steps: int) -> int:
    """`steps`, or VOX_BUDGET if that environment variable is set and smaller: for a quick look at a long notebook."""
    limit = os.environ.get("VOX_BUDGET")
    return min(steps, int(limit)) if limit else steps


@dataclass
class Report:
    """What a run left behind."""

    history: list[dict]  # per logged step: step (from 1), lr, and losses and grad_norm as means since the row before
    steps: int  # done so far
    seconds: float  # of training, over all legs of a resumed run
    path: str
    dropped: int = 0  # utterances left out because they are too long
    scale: list[float] | None = None  # the deviations the VAE's latents had before `fit` made them unit, per channel
    finished: bool = True  # False: the leg ended where `fit` was told to end it, and the next one goes on

    @property
    def steps_per_second(self) -> float:
        """Mean speed."""
        return self.steps / max(self.seconds, 1e-9)

    def __repr__(self) -> str:
        last = {name: value for name, value in self.history[-1].items() if name not in ("step", "lr", "grad_norm")}
        losses = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
        steps = f"{self.steps} steps" if self.finished else f"{self.steps} steps so far"
        return f"Report({steps}, {self.seconds:.0f} s, {self.steps_per_second:.2f} steps/s, {losses}, {self.path})"


# ---- the two trainings -----------------------------------------------------------------------------------------------


class SpeechJob:
    """VoxCPM: flow matching and stop loss on packed latents."""

    trains, part = "a VoxCPM", "locdit"  # the models it is for, and what tells them

    @staticmethod
    def freeze(model, config):
        """Freeze what is not to be trained, and return it, since the result depends on it; None if that is nothing."""
        return model.vae.requires_grad_(False)

    def __init__(self, model, data, config: TrainConfig, accelerator: Accelerator, fingerprint: str, progress: bool):
        self.config, self.accelerator = config, accelerator
        model.to(accelerator.device).train()
        model.vae.eval()
        if isinstance(data, list):
            source = Items(data, model.config.patch)
        else:
            source = Utterances(model, data, config, accelerator, fingerprint, progress)
        self.feed = SpeechFeed(source, config, model.config)
        self.learner = Learner(model, lambda model, *inputs: model(*inputs), config, config.clip, accelerator)
        self.learners, self.dropped = {"": self.learner}, self.feed.dropped

    def step(self, step: int) -> dict[str, Tensor]:
        """One update. Returns what to log; its sum over all processes is the value for the global batch."""
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        batch, draw, share = self.feed(step, rank, world)
        losses = self.learner(batch.to(device), draw.to(device))
        total = losses.diffusion + self.config.stop_weight * losses.stop
        norm = self.learner.step(total * share * world, step)
        row = {"diffusion": losses.diffusion, "stop": losses.stop, "total": total}
        return {name: loss.detach() * share for name, loss in row.items()} | {"grad_norm": norm / world}

    def finish(self) -> dict:
        """Leave the averaged weights in the model."""
        self.learner.use_averages()
        return {}


def reconstruct(vae, wav: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """wav [B, 1, N], noise [B, D, L] → the speech decoded from a sample of the posterior [B, 1, N]; mu, logvar [B, D, L]."""
    mu, logvar = vae.encode_stats(wav)
    return vae.decode(mu + (0.5 * logvar).exp() * noise), mu, logvar


class VAEJob:
    """AudioVAE: mel distance and KL; with a weight, the waveform; from step `adversarial_from` on, discriminators too (paper §3.4)."""

    trains, part = "an AudioVAE", "encoder"

    @staticmethod
    def freeze(model, config):
        """See `SpeechJob.freeze`."""
        model.requires_grad_(True)
        return None if config.encoder else model.encoder.requires_grad_(False)

    def __init__(self, model, data, config: VAETrainConfig, accelerator: Accelerator, fingerprint: str, progress: bool):
        self.config, self.accelerator, self.vae, self.dropped = config, accelerator, model, 0
        model.to(accelerator.device).train()
        rate = model.config.sample_rate
        self.feed = ClipFeed(data, config, model.config)
        self.mel = vae_loss.MelDistance(rate).to(accelerator.device)
        self.waveform = vae_loss.WaveformDistance(rate).to(accelerator.device)
        self.learner = Learner(model, reconstruct, config, config.clip, accelerator)
        self.learners = {"": self.learner}
        if config.adversarial_from is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.judges = vae_loss.Discriminators(rate, width=model.config.decoder_dim / 1536)  # 1 for the paper's VAE
            self.critic = Learner(self.judges, lambda judges, wav: judges(wav), config, config.disc_clip, accelerator, average=False)
            self.learners["discriminators-"] = self.critic

    def step(self, step: int) -> dict[str, Tensor]:
        """One update. Returns what to log; its sum over all processes is the value for the global batch."""
        c, world = self.config, self.accelerator.num_processes
        wav, noise, share = self.feed(step, self.accelerator.process_index, world)
        wav, noise = wav.to(self.accelerator.device), noise.to(self.accelerator.device)
        fake, mu, logvar = self.learner(wav, noise)
        fake, mu, logvar = fake.float(), mu.float(), logvar.float()
        row = {"mel": self.mel(fake, wav), "kl": vae_loss.kl(mu, logvar)}
        total = c.mel * row["mel"] + c.kl * row["kl"]
        if c.waveform:
            row["waveform"] = self.waveform(fake, wav)
            total = total + c.waveform * row["waveform"]
        if c.adversarial_from is not None and step >= c.adversarial_from:
            row["discriminator"] = vae_loss.discriminator_loss(*vae_loss.halves(self.critic(torch.cat((wav, fake.detach())))))
            self.critic.step(row["discriminator"] * share * world, step)
            self.judges.requires_grad_(False)  # they pass gradients on to the VAE and keep none
            with torch.no_grad():
                real = self.critic.plain(wav)
            judged = self.critic.plain(fake)
            self.judges.requires_grad_(True)
            row |= {"adversarial": vae_loss.generator_loss(judged), "feature": vae_loss.feature_loss(real, judged)}
            total = total + c.adversarial * row["adversarial"] + c.feature * row["feature"]
        norm = self.learner.step(total * share * world, step)
        return {name: loss.detach() * share for name, loss in (row | {"total": total}).items()} | {"grad_norm": norm / world}

    def finish(self) -> dict:
        """Leave the averaged weights in the VAE and give its latents unit scale, unless the encoder was not to be changed.

        Flow matching walks from noise of deviation 1 to the latents: data of another scale would waste its steps and its times.
        """
        self.learner.use_averages()
        if not self.config.encoder:
            return {}
        scale = latent_scale(self.vae, self.feed.waves, self.config.seed)
        self.vae.rescale_(scale)
        return {"scale": scale.tolist()}


JOBS = {TrainConfig: SpeechJob, VAETrainConfig: VAEJob}  # which training a config is for; `vox.judge_train` adds its own


# ---- the run ---------------------------------------------------------------------------------------------------------


def fit(
    model, data, config: TrainConfig | VAETrainConfig, out, resume=True, progress=True, until: int | None = None, seconds=math.inf
) -> Report:
    """Train an AudioVAE (config: VAETrainConfig) or a VoxCPM (config: TrainConfig), in place.

    Args:
        model: it moves to the device that `accelerate` picks (ACCELERATE_USE_CPU=1 keeps it on the CPU) and stays there.
        data: a dataset of `vox.corpus` (columns audio, text, speaker); or a list of `batch.Item` for VoxCPM, which are
            taken as they are and never joined, or of waveforms [N] for the AudioVAE.
        out: folder of the run: checkpoints/, history.json and, once done, weights.safetensors and report.json.
        resume: go on from the newest checkpoint; a finished run is loaded and returns at once. False starts anew, and
            deletes the run that is in `out` once the new one is ready to begin.
        progress: show a bar.
        until, seconds: end this leg with a checkpoint once so many of config.steps are done, or after the step with which
            this call has trained so long; the same call goes on from there. The learning rate follows config.steps alone, so
            where a run is cut changes no weight.
    Returns: Report. The model holds the averaged weights, in eval mode; the latents of a finished VAE have unit scale.
    Raises ValueError if config is for another kind of model; if `out` holds a run with another config, model or data (it names
    the field; only `checkpoint` may change), or if all its checkpoints are damaged; FloatingPointError at a loss that is not
    finite. After Ctrl-C the step is finished and a checkpoint written before KeyboardInterrupt goes on; a second Ctrl-C does
    not wait.
    """
    accelerator, out = Accelerator(), Path(out)
    job_class = JOBS.get(type(config))
    if job_class is None:
        raise ValueError(f"config is a {type(config).__name__}: use the `train` or the `vae_train` of a Config")
    if not hasattr(model, job_class.part):
        raise ValueError(f"a {type(config).__name__} trains {job_class.trains}, and the model is of type {type(model).__name__}")
    if isinstance(data, list) and data and isinstance(data[0], Item) != (job_class is SpeechJob):
        raise ValueError(f"{type(model).__name__} does not train on a list of {type(data[0]).__name__}: help(vox.train.fit) says on what")
    if until is not None and until < 1:
        raise ValueError(f"until is a step of the run, at least 1, not {until}")
    if config.batch < accelerator.num_processes:
        raise ValueError(f"batch {config.batch} cannot be shared by {accelerator.num_processes} processes: raise it")
    frozen = job_class.freeze(model, config)
    fingerprint = data_hash(data)
    run = Run(out, accelerator, config, progress)
    run.identity = {
        "config": state.without(to_dict(config), "checkpoint"),
        "model": state.without(to_dict(model.config), "train", "vae_train"),
        "data": fingerprint,
        "vae": None if frozen is None or job_class is SpeechJob and isinstance(data, list) else state.tensor_hash(frozen.state_dict()),
    }
    accelerator.wait_for_everyone()
    report = run.finished(model) if resume else None
    if report is None:
        checkpoint = run.checkpoint() if resume else None
        cards = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(cards):  # the caller's random state is left as it was
            torch.manual_seed(config.seed + accelerator.process_index)
            job = job_class(model, data, config, accelerator, fingerprint, progress)
            if not resume:
                run.forget()
            report = run.train(job, checkpoint, until, seconds)
    model.eval()
    return report


class CtrlC:
    """Inside, Ctrl-C is only noted, for the loop to stop between two steps; the second one interrupts as usual."""

    asked = False

    def __enter__(self):
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def note(self, *_):
        """The signal handler."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        if self.main:
            signal.signal(signal.SIGINT, self.before)


class Run:
    """The loop and the folder it writes."""

    def __init__(self, out: Path, accelerator: Accelerator, config, progress: bool):
        self.out, self.accelerator, self.config = out, accelerator, config
        self.progress = progress and accelerator.is_main_process
        self.history, self.window, self.pending = [], [], []  # rows kept; rows since the last one; losses still on the device
        self.seconds = 0.0
        out.mkdir(parents=True, exist_ok=True)

    def check(self, identity: dict):
        """Refuse to go on with what was begun otherwise."""
        found = state.difference(identity, self.identity)
        if found:
            raise ValueError(f"{self.out} holds another run: {found}. Use another folder, or resume=False to start anew")

    def forget(self):
        """Delete the run that was here before."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
            for name in ("report.json", "weights.safetensors", "history.json"):
                (self.out / name).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def finished(self, model) -> Report | None:
        """Load the result of a run that is done already, if it is."""
        path, weights = self.out / "report.json", self.out / "weights.safetensors"
        if not path.exists():
            return None
        saved = read_json(path)
        self.check(saved["identity"])
        if not weights.exists() or state.file_hash(weights) != saved["weights"]:
            return None  # the last checkpoint makes them again
        set_weights(model.to(self.accelerator.device), state.read_tensors(weights))
        return Report(**saved["report"] | {"path": str(self.out)})

    def checkpoint(self) -> tuple[dict, dict] | None:
        """The newest good checkpoint as `state.load_checkpoint` gives it."""
        found = state.load_checkpoint(self.out / "checkpoints")
        if found:
            self.check(found[0]["identity"])
        return found

    def restore(self, job, checkpoint: tuple[dict, dict]) -> int:
        """Take up a checkpoint. Returns the number of steps already done."""
        saved, files = checkpoint
        for name, learner in job.learners.items():
            learner.load({kind: files[name + kind] for kind in learner.tensors()})
        rank = self.accelerator.process_index % len(files["random"]["cpu"])
        torch.set_rng_state(files["random"]["cpu"][rank].clone())  # of a view torch 2.11 reads memory that is not its own
        if "cuda" in files["random"] and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(files["random"]["cuda"][rank].clone(), self.accelerator.device)
        self.history, self.window, self.seconds = saved["history"], saved["window"], saved["seconds"]
        return saved["step"]

    def save(self, job, step: int, seconds: float):
        """Write a checkpoint and history.json."""
        device = self.accelerator.device
        states = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})
        random = {name: self.accelerator.gather(value[None].to(device)) for name, value in states.items()}  # [processes, bytes]
        if self.accelerator.is_main_process:
            files = {name + kind: tensors for name, learner in job.learners.items() for kind, tensors in learner.tensors().items()}
            saved = {"identity": self.identity, "history": self.history, "window": self.window, "seconds": seconds}
            state.save_checkpoint(self.out / "checkpoints", step, files | {"random": random}, saved)
            write_json(self.out / "history.json", self.history)
        self.accelerator.wait_for_everyone()

    def collect(self, *asked: bool) -> list[bool]:
        """Bring the losses of the last steps from the device, summed over processes. Returns what any process asked for."""
        values = [value.float() for _, row in self.pending for value in row.values()]
        values += torch.tensor(asked, dtype=torch.float32, device=self.accelerator.device)
        values = self.accelerator.reduce(torch.stack(values), "sum").tolist()
        asked = [value > 0 for value in values[-len(asked) :]]
        values = iter(values)
        for step, row in self.pending:
            row = {name: next(values) for name in row}
            for name, value in row.items():
                if not math.isfinite(value):
                    kept = (state.checkpoints(self.out / "checkpoints") or ["none"])[-1]
                    raise FloatingPointError(
                        f"{name} became {value} in step {step + 1}: nothing of it was saved; the last good state: {kept}."
                        " Start anew with a lower lr or precision 'fp32' (resume=False, or another folder)"
                    )
            self.window.append(row)
        self.pending = []
        return asked

    def log(self, step: int) -> dict:
        """Close a row of history: the means of the steps since the last one."""
        names = dict.fromkeys(name for row in self.window for name in row)
        columns = {name: [row[name] for row in self.window if name in row] for name in names}
        row = {"step": step + 1} | {name: sum(column) / len(column) for name, column in columns.items()} | {"lr": lr_at(step, self.config)}
        self.history.append(row)
        self.window = []
        return row

    def train(self, job, checkpoint: tuple[dict, dict] | None, until: int | None, seconds: float) -> Report:
        """The loop, from a checkpoint or the start to the end of the run or of this leg."""
        config, steps = self.config, self.config.steps
        done = start = self.restore(job, checkpoint) if checkpoint else 0
        every, alone, last = max(1, steps // ROWS), self.accelerator.num_processes == 1, min(steps if until is None else until, steps)
        began, deadline = time.perf_counter() - self.seconds, time.perf_counter() + seconds
        bar = tqdm(total=steps, initial=start, desc="train", unit="step", disable=not self.progress)
        with CtrlC() as ctrl_c, bar:
            for step in range(start, last):
                self.pending.append((step, job.step(step)))
                done = step + 1
                log, save = done % every == 0 or done == steps, done % config.checkpoint == 0 or done == last
                asked, stop = (ctrl_c.asked, time.perf_counter() >= deadline), (False, False)
                if log or save or any(asked) and alone:  # several processes agree in `collect`
                    stop = self.collect(*asked)
                if log:
                    shown = self.log(step)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items() if name != "step"}, refresh=False)
                bar.update()
                if save or any(stop):
                    self.save(job, done, time.perf_counter() - began)
                if stop[0]:
                    raise KeyboardInterrupt(f"stopped after step {done}; `fit` with the same arguments goes on from there")
                if stop[1]:
                    break
        return self.finish(job, done, time.perf_counter() - began)

    def finish(self, job, done: int, seconds: float) -> Report:
        """Write the final weights, then the report that says they are there; or end a leg."""
        if done < self.config.steps:
            if self.window:
                self.log(done - 1)  # for the reader only: the checkpoint keeps the open row
            job.learner.use_averages()
            return Report(self.history, done, seconds, str(self.out), job.dropped, finished=False)
        report = Report(self.history, self.config.steps, seconds, str(self.out), job.dropped, **job.finish())
        if self.accelerator.is_main_process:
            state.write_tensors(self.out / "weights.safetensors", job.learner.weights())
            weights = state.file_hash(self.out / "weights.safetensors")
            write_json(self.out / "report.json", {"identity": self.identity, "weights": weights, "report": asdict(report)})
        self.accelerator.wait_for_everyone()
        return report
