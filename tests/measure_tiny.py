"""What the shipped model can do: every figure with its 95 % interval, beside the same judge's on the true recordings.

    PYTHONPATH=. python tests/measure_tiny.py [PART...] [--model F] [--out F] [--float32 F] [--legs F...]
    PYTHONPATH=. python tests/measure_tiny.py log --first RUN --vae RUN --decoder RUN --decoder-on RUN --words RUN --lm RUN
        --own RUN --joined RUN --joined-on RUN --slow RUN --rounds RUN --threads N
    PYTHONPATH=. python tests/measure_tiny.py card                                    MODEL_CARD.md from all of these

The same of an AudioVAE alone, with a card of its own:
    PYTHONPATH=. python tests/measure_tiny.py log --mel-vae RUN --threads N
    PYTHONPATH=. python tests/measure_tiny.py vae card --model data/checkpoints/mel_vae --out data/results/mel_vae.json

Parts: tts, clone, vae, sphinx; sixteen (with --float32), drift (with --before) and legs (with --legs, folders named after their
steps). Those named are measured; without a name, those missing from the results or made of other weights. Each is written as soon as it
is done, so a run that is cut goes on at the next part. Not a test.
"""

import argparse
import hashlib
import random
import resource
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from card_tiny import write_card
from opus import opus
from tqdm import tqdm

import vox
from vox import audio, corpus, feed, flow, hub_judges, intervals, judge, metrics
from vox.batch import Item, pack
from vox.files import HOME, read_json, write_json
from vox.generate import CONTEXT
from vox.provenance import machine
from vox.text import join_texts

LANGUAGES = corpus.LANGUAGES
SEEDS = (0, 1, 2)
CHUNK = 50  # texts spoken together; more is not faster
POOL = 1.5  # hours of held-out speech that rows and prompts are picked from
MOST = 100  # rows of a training log
LOGS = {  # argument: (file in data/results, which run)
    "first": ("tiny_vae_first", "the AudioVAE, its first run"),
    "vae": ("tiny_vae", "the AudioVAE, from there"),
    "decoder": ("tiny_decoder", "the decoder of the AudioVAE alone, from there"),
    "decoder-on": ("tiny_decoder_on", "the decoder still, from there"),
    "words": ("tiny_words", "VoxCPM on words"),
    "lm": ("tiny_lm", "VoxCPM on voices, after it"),
    "own": ("tiny_own", "VoxCPM with a past of its own, after it"),
    "joined": ("tiny_joined", "VoxCPM on joined utterances, after it"),
    "joined-on": ("tiny_joined_on", "the same again, after it"),
    "slow": ("tiny_slow", "the same at half the learning rate, after it"),
    "rounds": ("tiny_rounds_log", "VoxCPM with a past several draws deep, after that, which does not ship"),
    "mel-vae": ("mel_vae_log", "the AudioVAE without the waveform term"),
}


# ---- what is spoken ----------------------------------------------------------------------------------------------------


def pick(split: str, count: int, hours: float = POOL) -> tuple[list[dict], list[dict]]:
    """Rows of `count` different texts per language, English first, and for each a prompt of 1 to 3 s by the same speaker.

    A voice's first fitting recording in a language is its prompt, and the rest are to be spoken. Raises ValueError if there
    are not as many.
    """
    prompts, rows = {}, {language: {} for language in LANGUAGES}
    for row in corpus.load("numbers", split, hours=hours):
        voice = row["speaker"], row["language"]
        if voice not in prompts:
            if 1 <= row["seconds"] <= 3:
                prompts[voice] = row
        elif row["text"] != prompts[voice]["text"] and len(rows[row["language"]]) < count:
            rows[row["language"]].setdefault(row["text"], row)
    for language, chosen in rows.items():
        if len(chosen) < count:
            raise ValueError(f"{hours} h of {split} hold {len(chosen)} texts in {language} whose voice has a prompt, not {count}")
    picked = [row for language in LANGUAGES for row in rows[language].values()]
    return picked, [prompts[row["speaker"], row["language"]] for row in picked]


class Remembers:
    """A model that keeps what it spoke last."""

    def __init__(self, model):
        self.model, self.config, self.speeches = model, model.config, []

    def generate(self, *arguments, **options):
        """`generate` of the model."""
        self.speeches = self.model.generate(*arguments, progress=False, **options)
        return self.speeches

    def wavs(self) -> list[torch.Tensor]:
        """What it spoke last, [N] each at 16 kHz."""
        return [audio.resample(speech.wav, speech.sample_rate, metrics.SAMPLE_RATE) for speech in self.speeches]


def speak(model, rows, judges, prompts=None, seeds=SEEDS, title="", each=lambda table, wavs, start: None, **options) -> list[dict]:
    """The tables of `metrics.evaluate` for all seeds, joined, in chunks. `each` sees the table and the sound [N] of every chunk."""
    table, model = [], Remembers(model)
    with tqdm(total=len(seeds) * len(rows), desc=title, unit="text", file=sys.stderr) as bar:
        for seed in seeds:
            for start in range(0, len(rows), CHUNK):
                part, voices = rows[start : start + CHUNK], prompts and prompts[start : start + CHUNK]
                lines = metrics.evaluate(model, part, judges, voices, seed=10000 * seed + start, **options)  # text k takes seed + k
                each(lines, model.wavs(), start)
                table += lines
                bar.update(len(part))
    return table


def paired(table) -> dict:
    """`metrics.summarise` of a table: by name {"speech": figure, "true": the same judge's on the true recordings}."""
    figures, pairs = metrics.summarise(table), {}
    for name, figure in figures.items():
        if name.startswith("true_"):
            pairs[name.removeprefix("true_")]["true"] = list(figure)
        else:
            pairs.setdefault(name, {})["speech" if name != "identified_by_chance" else "chance"] = list(figure)
    return pairs


def difference(pairs) -> list:
    """How much higher the error of the first is than that of the second: texts are drawn as pairs. pairs: (errors, errors, units)."""
    counts = [[a - b, units] for a, b, units in pairs]
    total, units = (sum(column) for column in zip(*counts, strict=True))
    return [total / units, *intervals.bootstrap(counts, "ratio"), len(counts)]


# ---- the parts ---------------------------------------------------------------------------------------------------------


def tts(model, judges, count=200, seeds=SEEDS, hours=POOL, **_):
    """Seen voices, held-out texts: any voice the model likes, and prompted by one of the voices."""
    rows, prompts = pick("validation", count, hours)
    return {
        "no prompt": paired(speak(model, rows, judges, seeds=seeds, title="tts, no prompt")),
        "prompted": paired(speak(model, rows, judges, prompts, seeds, title="tts, prompted")),
    }


def clone(model, judges, count=200, seeds=SEEDS, hours=POOL, **_):
    """Unseen voices from one prompt each. Candidates are the prompt's voice and one of every other variant, in its language."""
    rows, prompts = pick("test", count, hours)
    embedded = judges.embed([corpus.wav(row) for row in prompts])
    truths = judges.embed([corpus.wav(row) for row in rows])
    candidates = [line_up(k, prompts, embedded) for k in range(len(rows))]

    def name(table, wavs, start):
        for k, (line, voice) in enumerate(zip(table, judges.embed(wavs), strict=True), start):
            line["named"], line["true_named"] = (metrics.identify(each[None], candidates[k])[0] for each in (voice, truths[k]))
            line["candidates"] = len(candidates[k])

    table = speak(model, rows, judges, prompts, seeds, title="clone", each=name)
    figures, lost = paired(table), defaultdict(list)
    for line in table:  # an interval draws whole texts, with all their seeds
        right, true_right = line["named"] == line["speaker"], line["true_named"] == line["speaker"]
        lost[line["language"], line["text"]].append(int(true_right) - int(right))
    figures["identified"]["below"] = list(intervals.mean([sum(each) / len(each) for each in lost.values()]))
    counts = {len(line) for line in candidates}
    return {"candidates": sorted(counts), "chance": max(1 / n for n in counts), "cloned": figures}


def variant(row) -> str:
    """The espeak variant of a row's speaker, without its settings."""
    return row["speaker"].rsplit("-", 3)[0]


def line_up(k: int, prompts, voices) -> dict[str, torch.Tensor]:
    """Whom the voice of row k may be taken for: {speaker: vector [E]} of prompt k, and of one prompt of every other variant."""
    others = defaultdict(list)
    for j, prompt in enumerate(prompts):
        if prompt["language"] == prompts[k]["language"] and variant(prompt) != variant(prompts[k]):
            others[variant(prompt)].append(j)
    draw = random.Random(k)
    picked = [draw.choice(others[name]) for name in sorted(others)]
    return {prompts[j]["speaker"]: voices[j] for j in (k, *picked)}


def vae(codec, judges, count=100, hours=POOL, **_):
    """Recordings of unseen voices through the AudioVAE, and through Opus at about 6 and 12 kbit/s. Candidates are those of `clone`."""
    rows, prompts = pick("test", count, hours)
    embedded = judges.embed([corpus.wav(row) for row in prompts])
    candidates = [line_up(k, prompts, embedded) for k in range(len(rows))]
    truths, result = [corpus.wav(row) for row in rows], {}
    true_voices = judges.embed(truths)
    heard = judges.transcribe(truths)
    true_errors = [metrics.errors(row["text"], text)[0] for row, text in zip(rows, heard, strict=True)]
    rate, device = codec.config.sample_rate, next(codec.parameters()).device

    def vocode(row, truth):
        wav = corpus.wav(row, rate)
        with torch.inference_mode():
            decoded = codec.decode(codec.encode(wav[None, None].to(device)))[0, 0, : len(wav)].cpu()
        return audio.resample(decoded, rate, metrics.SAMPLE_RATE)[: len(truth)], None

    codecs = {"AudioVAE": vocode} | {f"Opus {n}": lambda row, truth, n=n: opus(truth, n) for n in (6, 12)}
    for name, through in codecs.items():
        wavs, rates, measures = [], [], []
        for row, truth in tqdm(list(zip(rows, truths, strict=True)), desc=name, unit="recording", file=sys.stderr):
            wav, kbit = through(row, truth)
            wavs.append(wav)
            rates += [kbit] if kbit else []
            measures.append(metrics.reconstruction(wav, truth[: len(wav)]))
        result[name] = _lost(rows, judges.transcribe(wavs), true_errors)
        result[name]["identified"] = {}
        for kind, voices in (("speech", judges.embed(wavs)), ("true", true_voices)):
            named = [metrics.identify(voice[None], line)[0] for voice, line in zip(voices, candidates, strict=True)]
            right = [guess == row["speaker"] for guess, row in zip(named, rows, strict=True)]
            result[name]["identified"][kind] = list(intervals.share(right))
        for measure in measures[0]:
            values = [line[measure] for line in measures if line[measure] is not None]
            if values:
                result[name][measure] = {"speech": list(intervals.mean(values))}
        if rates:
            result[name]["kbit_per_second"] = {"speech": list(intervals.mean(rates))}
    return result


def _lost(rows, heard, true_errors):
    """Error rates of each language on other versions of recordings, on these, and how much higher the first is."""
    figures = {}
    for language in LANGUAGES:
        some = [k for k, row in enumerate(rows) if row["language"] == language]
        counts = [(*metrics.errors(rows[k]["text"], heard[k]), true_errors[k]) for k in some]
        if counts:
            figures[f"error_rate {language}"] = {
                "speech": _ratio([(wrong, units) for wrong, units, _ in counts]),
                "true": _ratio([(true, units) for _, units, true in counts]),
                "above": difference([(wrong, true, units) for wrong, units, true in counts]),
            }
    return figures


def _ratio(counts):
    wrong, units = (sum(column) for column in zip(*counts, strict=True))
    return [wrong / units, *intervals.bootstrap(counts, "ratio"), len(counts)]


def sphinx(model, judges, count=200, hours=POOL, **_):
    """pocketsphinx, which knows the corpus's words and what may follow what, on true and cloned English: same texts, same voices."""
    rows, prompts = pick("test", count, hours)
    rows, prompts = rows[:count], prompts[:count]  # English comes first
    listener = hub_judges.Sphinx([text for split in ("train", "validation", "test") for text in corpus.texts("en-us", split)])
    heard = []
    speak(model, rows, judges, prompts, SEEDS[:1], "sphinx", each=lambda table, wavs, start: heard.extend(listener(wavs)))
    true = listener([corpus.wav(row) for row in rows])
    return {"cloned": _lost(rows, heard, [metrics.errors(row["text"], text)[0] for row, text in zip(rows, true, strict=True)])}


def sixteen(model, judges, count=200, hours=POOL, float32=None, **_):
    """The weights before they were stored in 16 bits against the shipped ones: same texts, same noise."""
    rows, _ = pick("validation", count, hours)
    tables = {
        name: speak(each, rows, judges, seeds=SEEDS[:1], title=name)
        for name, each in (("16 bits", model), ("float32", vox.load(float32, dtype="float32")))
    }
    result = {name: paired(table) for name, table in tables.items()}
    for language in LANGUAGES:
        lines = [pair for pair in zip(*tables.values(), strict=True) if pair[0]["language"] == language]
        counts = [(short["errors"], full["errors"], full["units"]) for short, full in lines]
        result["16 bits"][f"error_rate {language}"]["above"] = difference(counts)
    return result


def drift(model, judges, count=60, hours=POOL, before=None, **_):
    """How much of an unseen voice is left: by the AudioVAE; in patches each drawn after a true past; in clones, whose past is their own.

    Of the model and of the one before it trained on its own patches. Candidates are those of `clone`.
    """
    rows, prompts = pick("test", count, hours)
    embedded = judges.embed([corpus.wav(row) for row in prompts])
    candidates = [line_up(k, prompts, embedded) for k in range(len(rows))]
    result = {}
    for name, each in (("before", vox.load(before)), ("shipped", model)):
        rate, texts, words = each.config.vae.sample_rate, *([row["text"] for row in some] for some in (rows, prompts))
        clones = each.generate(texts, [corpus.wav(row, rate) for row in prompts], words, seed=0, attempts=1, progress=False)
        pairs = [one_by_one(each, row, prompt, k) for k, (row, prompt) in enumerate(zip(rows, prompts, strict=True))]
        true, drawn = zip(*pairs, strict=True)
        for kind, wavs in (("AudioVAE", true), ("after a true past", drawn), ("clone", [speech.wav for speech in clones])):
            voices = judges.embed([audio.resample(wav, rate, metrics.SAMPLE_RATE) for wav in wavs])
            named = [metrics.identify(voice[None], line)[0] for voice, line in zip(voices, candidates, strict=True)]
            result[f"{name}, {kind}"] = {
                "identified": {"speech": list(intervals.share([guess == row["speaker"] for guess, row in zip(named, rows, strict=True)]))},
                "sim": {"speech": list(intervals.mean((voices * embedded).sum(1).tolist()))},
            }
    return result


@torch.inference_mode()
def one_by_one(model, row, prompt, seed) -> tuple[torch.Tensor, torch.Tensor]:
    """The recording of `row` after that of `prompt`, decoded from its latents, and from patches each drawn after the true ones before it.

    Returns two waveforms [N] at the model's rate, without the prompt.
    """
    size, quiet, rate = model.config.patch, feed.longest_pause(model.config), model.config.vae.sample_rate
    wavs = [corpus.wav(each, rate) for each in (prompt, row)]
    (first, _), (_, later) = feed.encode(model.vae, wavs, size, quiet)
    latents = torch.cat((first[: len(first) - quiet + size], later[: len(later) - quiet]))  # one patch of pause
    ids = torch.tensor(model.tokenizer.encode(join_texts(prompt["text"], row["text"])))
    batch = pack([Item(ids, latents)], size, model.config.max_length).to(model.device)
    _, mu = model.read(batch, batch.latents)
    begin = len(first) // size - quiet // size + 1  # the first patch of `row`
    true = batch.latents[batch.loss_mask]  # [M, P, D]
    noise = torch.randn(true[begin:].shape, generator=torch.Generator().manual_seed(seed)).to(true)
    drawn = flow.sample(model.velocity, mu[begin:], true[begin - 1 : -1], noise)

    def decode(patches):
        wav = model.vae.decode(torch.cat((true[begin - CONTEXT : begin], patches)).flatten(0, 1).mT[None])[0, 0]
        return wav[CONTEXT * model.config.patch_samples :][: len(wavs[1])].cpu()

    return decode(true[begin:]), decode(drawn)


def legs(model, judges, count=60, hours=POOL, folders=(), **_):
    """What more training buys: each leg speaks without a prompt, once, with none of the retries of `generate`."""
    rows, _ = pick("validation", count, hours)
    longest = 2 * max(row["seconds"] for row in rows)
    result = {}
    for folder in sorted(map(Path, folders), key=lambda folder: int(folder.name)):
        options = dict(seeds=SEEDS[:1], title=f"{folder.name} steps", attempts=1, max_seconds=longest)
        result[folder.name] = paired(speak(vox.load(folder), rows, judges, **options))
    return result


PARTS = {"tts": tts, "clone": clone, "vae": vae, "sphinx": sphinx, "sixteen": sixteen, "drift": drift, "legs": legs}
NEEDS = {"sixteen": "float32", "drift": "before", "legs": "folders"}  # what has to be given


# ---- the results -------------------------------------------------------------------------------------------------------


def weights(folder) -> str:
    """Which weights these are: a hash of the model's and the VAE's file."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def missing(results: dict, which: str, given: dict) -> list[str]:
    """Parts that the results lack or have of other weights, those that need a folder left out where none is given."""
    possible = [name for name in PARTS if name not in NEEDS or given.get(NEEDS[name])]
    return [name for name in possible if results.get(name, {}).get("weights") != which]


def measure(folder, out, parts=(), judges=None, command="", **given) -> dict:
    """Measure `parts` (none: what is missing) of the model in `folder`; `out` is written anew after each. Returns its content.

    Raises ValueError for a part without the folders that it needs.
    """
    out, which = Path(out), weights(folder)
    results = read_json(out) if out.exists() else {}
    judges = judges or judge.load()
    for name in parts or missing(results, which, given):
        if name in NEEDS and not given.get(NEEDS[name]):
            raise ValueError(f"part {name} needs --{NEEDS[name].replace('folders', 'legs')}")
        model = vox.load_vae(folder) if name == "vae" else vox.load(folder)
        began, used = time.perf_counter(), time.process_time()
        figures = PARTS[name](model, judges, **given)
        results[name] = {
            "figures": figures,
            "weights": which,
            "command": command,
            "machine": machine(),
            "seconds": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - used, 1),
            "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        write_json(out, results)
        print(f"{name}: {results[name]['seconds']} s, {results[name]['processor_seconds']} s of processor time", file=sys.stderr)
    return results


def log(run, threads: int) -> dict:
    """The training log of a finished run of `vox.train.fit` in the folder `run`: at most 100 rows, each the mean of those since the last.

    threads: how many it used, which it does not note itself. Processor, torch and commit are those that write the log: call it
    on the machine that trained. Raises ValueError if the run is not finished.
    """
    run = Path(run)
    if not (run / "report.json").is_file():
        raise ValueError(f"{run} holds no report.json: it is no run of vox.train.fit, or not finished")
    tree = read_json(run / "report.json")
    report, history = tree["report"], tree["report"]["history"]
    size = -(-len(history) // MOST)
    rows = []
    for start in range(0, len(history), size):
        group = history[start : start + size]
        means = {name: sum(row[name] for row in group) / len(group) for name in group[-1] if all(name in row for row in group)}
        rows.append({name: round(value, 6) for name, value in means.items()} | {"step": group[-1]["step"], "lr": group[-1]["lr"]})
    recipe = tree["identity"]["config"]
    facts = {name: report[name] for name in ("steps", "seconds", "dropped")} | {"threads": threads, "seed": recipe["seed"]}
    logged = {name: value for name, value in machine().items() if name != "threads"}
    return facts | {"config": recipe, "model": tree["identity"]["model"], "logged": logged, "history": rows}


def main(arguments=None):
    results = HOME / "data/results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + ", log, card")
    parser.add_argument("--model", type=Path, default=HOME / "data/checkpoints/tiny")
    parser.add_argument("--out", type=Path, default=results / "tiny.json")
    parser.add_argument("--float32", help="the model's folder before it was stored in 16 bits")
    parser.add_argument("--before", help="the model's folder before it trained on its own patches")
    parser.add_argument("--legs", nargs="+", dest="folders", default=(), help="model folders named after their steps")
    for name, (_, which) in LOGS.items():
        parser.add_argument(f"--{name}", dest=name, help=f"the finished run of {which} (log)")
    parser.add_argument("--threads", type=int, help="threads that the runs used (log)")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - {*PARTS, "log", "card"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}, log, card")
    for folder in [*filter(None, (given.float32, given.before)), *given.folders]:
        if not Path(folder).is_dir():
            parser.error(f"{folder} is no folder (parts come before --legs)")
    command = "python tests/measure_tiny.py " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    if "log" in given.parts:
        runs = {name: vars(given)[name] for name in LOGS if vars(given)[name]}
        if not (given.threads and runs):
            parser.error(f"log needs --threads and --{' or --'.join(LOGS)}")
        for name, run in runs.items():
            write_json(results / f"{LOGS[name][0]}.json", log(run, given.threads))
    parts = [part for part in given.parts if part in PARTS]
    if parts or not given.parts:
        measure(given.model, given.out, parts, command=command.strip(), float32=given.float32, before=given.before, folders=given.folders)
    if "card" in given.parts:
        write_card(given.model, given.out, results)


if __name__ == "__main__":
    main()
