"""The task that the ablations of notebook 10 are compared on: what a variant learns, and what is measured of it.

    task()      Mandarin numbers of four voices, and held-out sentences: short, long, and of voices to clone
    losses()    of a trained variant, under fixed noise, and what a wrong text costs
    speak()     what a judge hears in its speech, the voice, the endings
    recordings(), rebuilt(), difficulty()    the same for an AudioVAE: what it is measured on, what it loses, what it leaves to draw
    gather()    the finished runs of sweep files → data/results/ablations.json and ablations_vae.json: `python -m vox.ablations`

Notable choices, made before any variant was measured
- a model that does not speak has nothing to lose, and the differences should show within a minute or two of one core. So the
  task is small: 17 syllables, four voices, half numbers from 100 to 999 and half the same syllables in random order, where
  nothing but the text tells what comes (see notebook 12);
- where errors would show first: numbers that were held out, dates about twice as long as anything trained on, four voices
  never heard, from one prompt each, and the loss on two utterances joined;
- texts, recordings, noise of the losses and seeds of the speech are the same for every variant, so differences can be paired;
- English is left out: in a trial with both languages a third of the Mandarin syllables and four fifths of the English words were
  wrong after 240 steps;
- an AudioVAE is measured on what it returns without noise, as a language model meets it, in voices that nothing was trained on.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock

from vox import audio, corpus, espeak, feed, flow, metrics, phrases, state, vae_loss
from vox import sweep as sweeps
from vox.batch import Item, pack
from vox.files import HOME, cache_folder, read_json, replacing
from vox.text import cardinal

LANGUAGE = "cmn"
SEEN, UNSEEN = ("f2", "m1", "f4", "m5"), ("f1", "m2", "m4", "m7")  # variants of espeak-ng, half of them women's
ROWS = 1200  # utterances to train on, about 20 minutes
SYLLABLES = sorted({syllable for n in range(10000) for syllable in cardinal(n, "zh")} | set("年月日"))
SETS = {"short": 24, "long": 16, "cloned": 16, "prompts": 16}  # held-out sentences: how many
TIMES = (0.3, 0.7, 0.95)  # flow times of the losses: 1 is noise
COLUMNS = ("heard", "errors", "stop", "seconds", "sim")  # of what is kept per sentence
SENTENCE = ("text", "speaker", "units", "errors on the true recording", "seconds", "sim of the true recording")
SAMPLES = 1  # sentences of each set that are kept as sound
RECORDINGS = 32  # of unseen voices, that an AudioVAE is measured on
HEARD = {"English": 30, "Mandarin": 8}  # those of them that are kept as sound: short ones
REBUILT = ("mel", "stoi", "heard", "errors", "pitch")  # of what is kept per recording
RECORDING = ("text", "language", "units", "errors on the true recording", "seconds")
ABOUT = {"columns": COLUMNS, "sentence_columns": SENTENCE, "times": TIMES}
ABOUT_VAE = {"columns": REBUILT, "sentence_columns": RECORDING, "heard": HEARD}
RESULTS = {  # a file of data/results → its sweep files, and what its columns mean
    "ablations": (("ablations.yaml", "ablations_sampling.yaml", "ablations_more.yaml"), ABOUT),
    "ablations_vae": (("vae.yaml",), ABOUT_VAE),
}


# ---- the task --------------------------------------------------------------------------------------------------------


def text(kind: str, split: str, draw: random.Random) -> str:
    """A text of a kind ("words", "number", "date") that belongs to a split."""
    while True:
        if kind == "words":
            drawn = "".join(draw.choice(SYLLABLES) for _ in range(draw.choice((1, 1, 2, 3))))
        elif kind == "number":
            drawn = cardinal(draw.randrange(100, 1000), "zh")
        else:
            year = "".join(cardinal(int(digit), "zh") for digit in str(draw.randrange(1900, 2100)))
            drawn = f"{year}年{cardinal(draw.randrange(1, 13), 'zh')}月{cardinal(draw.randrange(1, 29), 'zh')}日"
        if phrases.split_of(drawn) == split:
            return drawn


def task() -> dict:
    """{"train": dataset of `fit`, and for each of SETS a list of rows as those of a corpus}. Rendered once, then read from the cache."""
    folder = cache_folder() / "ablations"
    with FileLock(f"{folder}.lock"):
        return {name: _rows(folder, name, count) for name, count in ({"train": ROWS} | SETS).items()}


def _rows(folder: Path, name: str, count: int):
    import datasets

    path = folder / f"{name}-{count}.parquet"
    if not path.exists():
        crowd = [espeak.settings(variant, 1)[0] for variant in (UNSEEN if name in ("cloned", "prompts") else SEEN)]
        draw, jobs, taken = random.Random(name), [], set()
        while len(jobs) < count:
            kind = draw.choice(("words", "number")) if name == "train" else "date" if name == "long" else "number"
            drawn = text(kind, "train" if name == "train" else "test" if name == "prompts" else "validation", draw)
            if name == "train" or drawn not in taken:
                jobs.append((drawn, LANGUAGE, crowd[len(jobs) % len(crowd)]))
                taken.add(drawn)
        columns = ("text", "language", "speaker", "audio", "seconds")
        rows = [dict(zip(columns, row, strict=True)) for row in espeak.render_rows(jobs, metrics.SAMPLE_RATE)]
        rows = [row | {"audio": {"bytes": row["audio"], "path": f"{name}-{k:04d}.flac"}} for k, row in enumerate(rows)]
        with replacing(path) as aside:
            datasets.Dataset.from_list(rows).to_parquet(aside)
    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "arrow"))
    return data if name == "train" else list(data)


# ---- what is measured ------------------------------------------------------------------------------------------------


def items(model, rows) -> list[Item]:
    """Rows of a corpus as the model packs them. What its AudioVAE makes of them is kept in the cache."""
    wavs = [corpus.wav(row, model.config.vae.sample_rate) for row in rows]
    key = f"{state.tensor_hash(model.vae.state_dict())} {feed.data_hash(wavs)} {model.config.patch}"
    folder = cache_folder() / "latents" / hashlib.sha256(key.encode()).hexdigest()[:16]
    waves = feed.Waves(wavs, model.config.vae.sample_rate)
    latents = feed.encoded(model.vae, waves, model.config.patch, 0, folder, Accelerator(), progress=False)
    return [Item(torch.tensor(model.tokenizer.encode(row["text"])), z) for row, (z, _) in zip(rows, latents, strict=True)]


def swapped(held: list[Item]) -> list[Item]:
    """Each recording with the text of the next one, the last with that of the first."""
    return [Item(other.text, item.latents) for item, other in zip(held, held[1:] + held[:1], strict=True)]


def joined(one: Item, other: Item) -> Item:
    """Two utterances, the second right after the first."""
    return Item(torch.cat((one.text, other.text)), torch.cat((one.latents, other.latents)))


@torch.inference_mode()
def loss(model, held: list[Item], time: float, noise: str = "ablations") -> float:
    """The flow-matching loss at one time, nothing dropped. `noise` names a draw of it: the same at every call."""
    batch = pack(held, model.config.patch, model.config.max_length)
    drawn = flow.draw(batch.patches, model.config.patch, model.config.vae.latent_dim, model.config.flow, feed.generator(noise))
    draw = flow.Draw(torch.full_like(drawn.t, time), drawn.noise, torch.ones_like(drawn.keep))
    return model(batch.to(model.device), draw).diffusion.item()


def losses(model, held: dict) -> dict:
    """{set: {time: loss}} on held-out sentences, long ones, unseen voices and two of an unseen voice joined; and the text gap.

    The gap is what the text of another sentence costs near noise: 0 for a model that does not read.
    """
    packed = {name: items(model, held[name]) for name in SETS}
    sets = {name: packed[name] for name in ("short", "long", "cloned")}
    sets["joined"] = [joined(*pair) for pair in zip(packed["prompts"], packed["cloned"], strict=True)]
    found = {name: {str(time): round(loss(model, rows, time), 5) for time in TIMES} for name, rows in sets.items()}
    return {"loss": found, "gap": round(loss(model, swapped(sets["short"]), TIMES[-1]) - found["short"][str(TIMES[-1])], 5)}


def speak(model, held: dict, judges, seed: int = 0, out=None, sets=("short", "long", "cloned"), **options) -> dict:
    """{set: a line per sentence, its values those of COLUMNS}: each sentence spoken once, at most twice as long as the longest true one.

    out: a folder for the first SAMPLES sentences of each set, as MP3.
    """
    found = {}
    for name in sets:
        rows = held[name]
        prompts = held["prompts"] if name == "cloned" else None
        voice = {}
        if prompts:
            wavs = [corpus.wav(row, model.config.vae.sample_rate) for row in prompts]
            voice = {"prompt_wav": wavs, "prompt_text": [row["text"] for row in prompts]}
        longest = 2 * max(row["seconds"] for row in rows)
        speeches = model.generate(
            [row["text"] for row in rows], seed=seed, attempts=1, max_seconds=longest, progress=False, **voice, **options
        )
        wavs = [audio.resample(speech.wav, speech.sample_rate, metrics.SAMPLE_RATE) for speech in speeches]
        sims = [None] * len(rows)
        if prompts:
            sims = (judges.embed(wavs) * judges.embed([corpus.wav(row) for row in prompts])).sum(1).tolist()
        found[name] = []
        for row, wav, speech, heard, sim in zip(rows, wavs, speeches, judges.transcribe(wavs), sims, strict=True):
            stop = metrics.stop_failure(wav, speech.stats["ended_by"], row["text"], heard)
            wrong = metrics.errors(row["text"], heard)[0]
            found[name].append([heard, wrong, stop, round(speech.seconds, 2), None if sim is None else round(sim, 3)])
        for k in range(SAMPLES if out else 0):
            audio.save(Path(out) / f"{name}-{k}.mp3", wavs[k], metrics.SAMPLE_RATE)
    return found


def sentences(held: dict, judges) -> dict:
    """{set: a line per sentence: text, speaker, units, errors of the judge on the true recording, seconds, true similarity}."""
    found = {}
    for name in ("short", "long", "cloned"):
        truths = [corpus.wav(row) for row in held[name]]
        sims = [None] * len(truths)
        if name == "cloned":
            sims = (judges.embed(truths) * judges.embed([corpus.wav(row) for row in held["prompts"]])).sum(1).tolist()
        lines = zip(held[name], judges.transcribe(truths), sims, strict=True)
        found[name] = [
            [row["text"], row["speaker"], metrics.errors(row["text"], heard)[1], metrics.errors(row["text"], heard)[0],
             round(row["seconds"], 2), None if sim is None else round(sim, 3)]
            for row, heard, sim in lines
        ]  # fmt: skip
    return found


# ---- the AudioVAE ----------------------------------------------------------------------------------------------------


def recordings() -> list[dict]:
    """The rows of the corpus "numbers" that an AudioVAE is measured on: both languages, texts and voices that nothing was trained on."""
    return list(corpus.load("numbers", split="test", hours=0.1).select(range(RECORDINGS)))


@torch.inference_mode()
def rebuilt(vae, rows, judges, out=None) -> dict:
    """What is left of recordings that went through an AudioVAE without noise: a line per row, its values those of REBUILT.

    They are the mel distance, STOI (None for less than 0.4 s of speech), what a judge hears, its errors, and the share of voiced
    frames whose pitch stays within half a semitone (None if no frame is voiced). out: a folder for those of HEARD as MP3.
    Returns {"lines": the lines, "true": a line per row for the recording itself, its values those of RECORDING}.
    Raises ModuleNotFoundError without the extra "metrics".
    """
    truths, device = [corpus.wav(row, vae.config.sample_rate) for row in rows], next(vae.parameters()).device
    wavs = [vae.decode(vae.encode(wav[None, None].to(device)))[0, 0, : len(wav)].cpu() for wav in truths]
    found = {"lines": [], "true": []}
    heard, true_heard = judges.transcribe(wavs), judges.transcribe(truths)
    for row, wav, truth, ours, theirs in zip(rows, wavs, truths, heard, true_heard, strict=True):
        lost, (wrong, units) = metrics.reconstruction(wav, truth), metrics.errors(row["text"], ours)
        mel, stoi, pitch = (None if lost[name] is None else round(lost[name], 4) for name in ("mel", "stoi", "pitch"))
        found["lines"].append([mel, stoi, ours, wrong, pitch])
        found["true"].append([row["text"], row["language"], units, metrics.errors(row["text"], theirs)[0], round(row["seconds"], 2)])
    for name, k in HEARD.items() if out else ():
        if k < len(wavs):
            audio.save(Path(out) / f"{name}.mp3", wavs[k], vae.config.sample_rate)
    return found


@torch.inference_mode()
def difficulty(vae, wavs: list, scale: list[float]) -> dict:
    """How much latents say of recordings [N], and how much of it a language model has to draw.

    scale: the deviations [D] that the latents had before `fit` made them unit, by which the KL of training is found again.
    Returns kl (nats per frame, as in the loss; a second has 25 frames), channels (that speak: μ moves more than σ) and
    surprise: the nats per frame that remain when the frame before is known, ½ log det(1 + R/σ²) with R the covariance of what a linear
    prediction leaves of μ, counted down to the encoder's own noise. It does not depend on their scale.
    """
    mu, logvar = (x.cpu() for x in feed.statistics(vae, feed.Waves(wavs, vae.config.sample_rate), 0, len(wavs)))  # [D, L]
    raw = torch.tensor(scale)[:, None]
    noise = logvar.exp().mean(1)  # [D]
    z = ((mu - mu.mean(1, keepdim=True)) / noise.sqrt()[:, None]).double().T  # [L, D], in units of the noise
    past, now = torch.nn.functional.pad(z[:-1], (0, 1), value=1.0), z[1:]
    left = now - past @ torch.linalg.lstsq(past, now).solution  # [L - 1, D]
    surprise = 0.5 * torch.logdet(torch.eye(z.shape[1], dtype=z.dtype) + left.T @ left / len(left))
    return {
        "kl": round(vae_loss.kl((mu * raw)[None], (logvar + 2 * raw.log())[None]).item(), 3),
        "channels": int((mu.var(1) > noise).sum()),
        "surprise": round(surprise.item(), 3),
    }


# ---- results ---------------------------------------------------------------------------------------------------------


def name_of(changes: dict) -> str:
    """A variant's name: what it changes, "default" if nothing."""
    return ", ".join(f"{field} {str(value).lower() if value is False else value}" for field, value in changes.items()) or "default"


def gather(paths, root, about: dict = ABOUT) -> dict:
    """What the finished runs of sweep files left, with the runs that are missing; and their sounds copied to root/samples.

    Args: paths of sweep files of the notebooks variant and sampling, or vae; root, a folder for the sounds; about, what the columns mean.
    Returns a tree ready for JSON: about (columns, recipe of the default), sentences, variants and ways (a row per run), missing.
    Raises ValueError if runs were measured on different sentences.
    """
    tree = {"about": dict(about), "sentences": None, "variants": [], "ways": [], "missing": []}
    for path in paths:
        plan = sweeps.read(path)
        for run in plan.runs:
            one, found = run.parameters, run.metrics() if run.done() else None
            subject = {"name": name_of(one["changes"])} if "changes" in one else {"model": _model(one["model"])}
            head = {"sweep": plan.name} | subject | {"seed": one["seed"]}
            if found is None:
                tree["missing"].append(head)
                continue
            tree["sentences"] = tree["sentences"] or found["sentences"]
            if found["sentences"] != tree["sentences"]:
                raise ValueError(f"{run.folder} was measured on other sentences than the runs before it: measure it again")
            kept = {name: value for name, value in found.items() if name not in ("sentences", "model")}
            if "ways" in found:
                tree["ways"].append(head | kept)
                continue
            learnt = [name for name in ("diffusion", "stop", "mel", "kl") if name in found["history"][0]]
            kept["history"] = [[row["step"], *(round(row[name], 4) for name in learnt)] for row in found["history"]]
            tree["variants"].append(head | kept | {"samples": _samples(Path(run.folder), Path(root), head)})
            if not one["changes"] and "recipe" not in tree["about"]:
                identity = read_json(Path(run.folder) / "fit/report.json")["identity"]
                tree["about"]["recipe"] = {name: identity[name] for name in ("config", "model")}
    return tree


def _model(folder: str) -> str:
    return "default" if "/" in folder else folder


def _samples(folder: Path, root: Path, head: dict) -> dict:
    """Copy the sounds of a run and say under which names."""
    word = re.sub(r"[^\w.]+", "-", f"{head['name']}-{head['seed']}")
    names = {}
    for sound in sorted((folder / "samples").glob("*.mp3")):
        names[sound.stem.split("-")[0]] = f"{word}-{sound.name}"
        with replacing(root / "samples" / f"{word}-{sound.name}") as aside:
            shutil.copyfile(sound, aside)
    return names


def write(path, tree: dict):
    """Write a tree of `gather` with one line per run, so that its file stays short and a change shows."""
    line = lambda value: json.dumps(value, ensure_ascii=False, allow_nan=False)  # noqa: E731
    lists = {name: ",\n  ".join(map(line, tree[name])) for name in ("variants", "ways", "missing")}
    parts = [f' "{name}": {line(tree[name])}' for name in ("about", "sentences")]
    parts += [f' "{name}": [\n  {rows}\n ]' for name, rows in lists.items()]
    with replacing(path) as aside:
        aside.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """`python -m vox.ablations [NAME …]`: finished runs → data/results/NAME.json and data/results/NAME/samples, for each of RESULTS.

    Where none of a sweep's runs is done on this machine, its stored results are left alone.
    """
    parser = argparse.ArgumentParser(prog="python -m vox.ablations", description="Gather the finished ablation runs for notebook 10.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to gather, all by default: {', '.join(RESULTS)}")
    names = parser.parse_args(arguments).names or list(RESULTS)
    if unknown := sorted(set(names) - set(RESULTS)):
        parser.error(f"there are no results named {unknown[0]!r}: choose from {', '.join(RESULTS)}")
    for name in names:
        files, about = RESULTS[name]
        tree = gather([HOME / "notebooks/sweeps" / file for file in files], HOME / "data/results" / name, about)
        if not tree["variants"] and not tree["ways"]:
            print(f"{name}: none of the {len(tree['missing'])} runs is done here; what is stored stays", file=sys.stderr)
            continue
        write(HOME / f"data/results/{name}.json", tree)
        counts = f"{len(tree['variants'])} variants, {len(tree['ways'])} sets of ways to sample, {len(tree['missing'])} runs missing"
        print(f"{name}: {counts}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
