"""MODEL_CARD.md of the shipped model, filled from data/results/tiny*.json and the judges' own report: no figure is typed by hand."""

import shlex
from pathlib import Path

from vox.files import HOME, read_json, replacing
from vox.layout import read_config

NAMES = {"en-us": "English, WER", "cmn": "Mandarin, CER"}
PERCENT, PLAIN = "%", ""
MEASURES = {  # how a figure is called and written
    "error_rate en-us": ("English, WER", PERCENT),
    "error_rate cmn": ("Mandarin, CER", PERCENT),
    "stop_failures": ("stop failures", PERCENT),
    "identified": ("identified as the prompt's voice", PERCENT),
    "identified_by_chance": ("identified by chance", PERCENT),
    "sim": ("similarity to the prompt (cosine)", PLAIN),
    "mcd": ("mel-cepstral distortion, dB", PLAIN),
    "f0": ("pitch error, cents", PLAIN),
    "duration": ("duration, of the true one's", PLAIN),
    "stoi": ("STOI", PLAIN),
    "pesq": ("PESQ-WB", PLAIN),
    "si_sdr": ("SI-SDR, dB", PLAIN),
    "mel": ("multi-scale mel distance", PLAIN),
    "pitch": ("voiced frames that keep their pitch", PERCENT),
    "kbit_per_second": ("kbit/s, without the container", PLAIN),
}
TITLES = {
    "tts": "Held-out texts in seen voices",
    "clone": "Held-out texts in unseen voices, each cloned from one prompt of 1 to 3 s",
    "vae": "Recordings of unseen voices through the AudioVAE and through Opus",
    "sphinx": "pocketsphinx, which knows the corpus's words, on the same texts and voices",
    "sixteen": "Weights in 16 bits and in float32",
    "sixteen_before": "The same, with VoxCPM too in float32, before the decoder's last run",
    "drift": "How much of an unseen voice is left",
    "legs": "What more training buys",
    "legs_before": "The same, with the AudioVAE as it was before its decoder was trained on",
    "vae_before": "Recordings of unseen voices through that AudioVAE",
}
# what was aimed for: part, entry, figure, side, most (or least) it may be
BARS = [
    *(("tts", entry, f"error_rate {language}", "speech", "≤", 0.05) for entry in ("no prompt", "prompted") for language in NAMES),
    *(("tts", entry, "stop_failures", "speech", "≤", 0.01) for entry in ("no prompt", "prompted")),
    *(("clone", "cloned", f"error_rate {language}", "speech", "≤", 0.08) for language in NAMES),
    ("clone", "cloned", "identified", "speech", "≥", 0.8),
    ("clone", "cloned", "identified", "below", "≤", 0.1),
    ("clone", "cloned", "stop_failures", "speech", "≤", 0.01),
    *(("vae", "AudioVAE", f"error_rate {language}", "above", "≤", 0.02) for language in NAMES),
    ("vae", "AudioVAE", "stoi", "speech", "≥", 0.9),
    ("sphinx", "cloned", "error_rate en-us", "above", "≤", 0.1),
]
JUDGE_BARS = [
    *(("recogniser", voices, language, most) for voices, most in (("seen", 0.02), ("unseen", 0.04)) for language in NAMES),
    ("speaker", "unseen", "eer", 0.05),
]


class MissingPart(ValueError):
    """A part that the card needs was not measured."""


def number(value: float, unit: str = PLAIN) -> str:
    """A value as the card writes it."""
    return f"{100 * value:.2f} %" if unit == PERCENT else f"{value:.3g}"


def figure(values, unit: str = PLAIN) -> str:
    """[value, low, high, n] as the card writes it."""
    value, low, high, n = values
    ends = [number(each, unit).removesuffix(" %") for each in (low, high)]
    return f"{number(value, unit)} ({ends[0]} … {ends[1]}, n = {n})"


def table(head, rows) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def verdict(values, sign: str, bar: float) -> str:
    """Whether a bar is reached, and whether the whole interval is on its good side."""
    value, low, high, _ = values
    good, all_good = (value <= bar, high <= bar) if sign == "≤" else (value >= bar, low >= bar)
    return ("reached" if all_good else "reached, the interval is not") if good else "missed"


def entries(name: str, part: dict) -> dict:
    """{entry: {figure: {side: values}}} of a part's figures."""
    return {entry: figures for entry, figures in part["figures"].items() if isinstance(figures, dict)}


def bars(results: dict, judges: dict):
    """Rows of the table of what was aimed for."""
    for kind, voices, name, most in JUDGE_BARS:
        values = judges["errors"][kind][voices][name]
        title = f"judges on true recordings, {voices} voices: {NAMES.get(name, 'equal error rate')}"
        yield [title, f"≤ {number(most, PERCENT)}", figure(values, PERCENT), verdict(values, "≤", most)]
    for part, entry, name, side, sign, bar in BARS:
        sides, (title, unit) = results[part]["figures"][entry][name], MEASURES[name]
        values = sides[side]
        what = {"above": ", above the true recordings", "below": ", below the true recordings"}.get(side, "")
        yield [f"{part}, {entry}: {title}{what}", f"{sign} {number(bar, unit)}", figure(values, unit), verdict(values, sign, bar)]


def all_figures(part: dict, name: str) -> str:
    """The table of one part: each figure beside the same judge's on the true recordings."""
    rows = []
    for entry, figures in entries(name, part).items():
        for key, sides in figures.items():
            title, unit = MEASURES[key]
            cells = [figure(sides[side], unit) if side in sides else "" for side in ("speech", "true", "above", "below")]
            cells[0] = cells[0] or figure(sides["chance"], unit)
            rows.append([entry, title, *cells])
    return table(["", "", "speech", "true recordings", "above these by", "below these by"], rows)


def minutes(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def training(runs: dict) -> str:
    """The table of training logs, by name."""
    head = ["", "steps", "wall time", "threads", "seed", "processor", "torch"]
    facts = {name: [run["steps"], minutes(run["seconds"]), run["threads"], run["seed"]] for name, run in runs.items()}
    return table(head, [[name, *facts[name], run["logged"]["cpu"], run["logged"]["torch"]] for name, run in runs.items()])


def how(part: dict) -> str:
    """With which command, how long and on what a part was measured."""
    machine = part["machine"]
    where = f"{machine['threads']} thread(s), {machine['cpu']}, {machine['commit']}"
    return f"`{part['command']}`, {minutes(part['seconds'])} on {where}."


def card(results: dict, judges: dict, runs: dict[str, dict], bytes_shipped: int, rebuild: str) -> str:
    """The model card as Markdown, of the measurements, the judges' report, the training logs by title as LOGS has them, the size of all
    that ships and the commands that make it again.

    Raises MissingPart naming parts without which there is no card, or that were measured on other weights than the rest.
    """
    needed = ["tts", "clone", "vae", "sphinx"]
    if lacking := [part for part in needed if part not in results]:
        raise MissingPart(f"no card without {', '.join(lacking)}: python tests/measure_tiny.py {' '.join(lacking)}")
    if others := [part for part in results if not part.endswith("_before") and results[part]["weights"] != results["tts"]["weights"]]:
        raise MissingPart(f"{', '.join(others)} measured on other weights than tts: measure again")
    _, vae, decoder, decoder_on, words, *speaking = runs.values()
    true, own, joined, joined_on, last = speaking
    parts = [part for part in TITLES if part in results]
    absent = [TITLES[part] for part in TITLES if part not in results and not part.endswith("_before")]
    sections = []
    for each in parts:
        part = results[each]
        text = f"### {TITLES[each]}\n\n{all_figures(part, each)}\n"
        if each == "clone":
            candidates = " to ".join(map(str, part["figures"]["candidates"]))
            chance = number(part["figures"]["chance"], PERCENT)
            text += f"\nA voice is identified among {candidates}, one of each unseen variant; by chance {chance} are right.\n"
        if each == "drift":
            text += f"\n`before` is the model after {true['steps']} steps on `voices`, on the AudioVAE that ships.\n"
        if each == "sixteen" and "sixteen_before" in results:
            text += "\n`float32` is so for the AudioVAE alone: VoxCPM's weights are those of the run before, kept in 16 bits.\n"
        if each.startswith("legs"):
            hours = [[leg, minutes(seconds_until(int(leg), *speaking))] for leg in part["figures"]]
            with_shipped = "; all speak through the AudioVAE that ships" if each == "legs" else ""
            text += f"\nWithout the retries of `generate`{with_shipped}.\n\n{table(['steps', 'training time'], hours)}\n"
        sections.append(f"{text}\n{how(part)}\n")
    return TEMPLATE.format(
        layers=last["model"]["tslm"]["layers"],
        hidden=last["model"]["tslm"]["hidden"],
        patch=last["model"]["patch"],
        rate=vae["model"]["sample_rate"],
        channels=last["model"]["vae"]["latent_dim"],
        words_steps=words["steps"],
        true_steps=true["steps"],
        own_steps=own["steps"],
        joined_steps=joined["steps"],
        joined_on_steps=joined_on["steps"],
        decoder_steps=decoder["steps"],
        decoder_on_steps=decoder_on["steps"],
        last_steps=last["steps"],
        logs=" and ".join(", ".join(f"{log}.json" for log in LOGS.values()).rsplit(", ", 1)),
        **{f"own_{key}": f"{100 * own['config'][key]:g} %" for key in ("own", "join")},
        **{f"joined_{key}": f"{100 * joined['config'][key]:g} %" for key in ("own", "join")},
        vae_recipe=vae_recipe(*list(runs.values())[:2]),
        rebuild=rebuild,
        megabytes=f"{bytes_shipped / 1e6:.1f}",
        training=training(runs),
        bars=table(["", "aimed for", "measured", ""], list(bars(results, judges))),
        sections="\n".join(sections),
        absent=f"\nNot measured: {'; '.join(absent)}.\n" if absent else "",
        weights=results["tts"]["weights"],
        commits=", ".join(sorted({results[part]["machine"]["commit"] for part in parts})),
    )


def seconds_until(step: int, *runs: dict) -> float:
    """Training time up to a step, counted over several runs, of their logs."""
    seconds = 0.0
    for run in runs:
        part = min(step, run["steps"])
        seconds, step = seconds + run["seconds"] * part / run["steps"], step - part
    return seconds


def vae_recipe(first: dict, second: dict) -> str:
    """How the two runs of an AudioVAE weighed its losses, in words, of their logs."""

    def weights(log):
        return " : ".join(f"{log['config'][name]:g}" for name in ("mel", "waveform", "kl"))

    return (
        f"{weights(first)} for {first['steps']} steps, with a constant learning rate;\nthen, with a fresh optimiser, {weights(second)}"
        f" for {second['steps']} steps, the last {second['config']['decay']} of them with a falling one"
    )


LOGS = {  # title of a run: its file in data/results
    "AudioVAE": "tiny_vae_first",
    "AudioVAE, from there": "tiny_vae",
    "AudioVAE, its decoder alone, from there": "tiny_decoder",
    "AudioVAE, its decoder still, from there": "tiny_decoder_on",
    "VoxCPM on words": "tiny_words",
    "VoxCPM on voices, from there": "tiny_lm",
    "VoxCPM with a past of its own, from there": "tiny_own",
    "VoxCPM on joined utterances, from there": "tiny_joined",
    "the same again, from there": "tiny_joined_on",
    "the same at half the learning rate, from there": "tiny_slow",
}


TEMPLATE = """# tiny: a small VoxCPM that says numbers, times and dates in English and Mandarin

**What it is.** VoxCPM (arXiv 2509.24650) at preset `tiny`: a text-semantic LM of {layers} layers, {hidden} wide, patches of {patch}
latents, on an AudioVAE of its own with {channels} channels at {rate} Hz. Everything was trained from nothing by the code in this
repository. `vox.load("tiny")` loads it offline, and the official package `voxcpm` reads the same folder. All of data/checkpoints
takes {megabytes} MB.

**Data.** The synthetic corpora `words` and `voices` (see data/README.md): no recording of a person is in it. Every text
of the figures below was held out of training; unseen voices were too, seen ones were trained on.

**Recipe.** The AudioVAE was trained on a loss with a term that hears phase, `vox.vae_loss.WaveformDistance`: the weights of mel
distance, waveform and KL were {vae_recipe}.
No discriminators. Latent channels that say less than their own noise were dropped; {channels} stayed. Then its decoder alone took
{decoder_steps} and {decoder_on_steps} steps more, which change no latent: VoxCPM may be trained before, after or meanwhile. On these
latents VoxCPM took {words_steps} steps on words in random order, which it can only say by reading; from there, with a fresh optimiser,
{true_steps} steps on `voices`, half of whose sequences join two or three utterances of one voice; from there, with a fresh optimiser
again, {own_steps} steps in which {own_own} of the sequences go on, from some patch on, from what the model itself drew (`train.own`:
scheduled sampling, which is not in the paper) and {own_join} are joined; and from there {joined_steps} steps with {joined_own} and
{joined_join}, {joined_on_steps} more by the same recipe, with other draws, and {last_steps} at half the learning rate. Only in these
three runs did a full stop end each text before the next, as `vox.text.join_texts` puts it now: the runs before had nothing between the
two but a space, and in Mandarin nothing.
All runs of VoxCPM have warm-up, stable phase and decay. How many steps the runs on `voices` would take, and on how many threads, was
settled in their stable phases, which do not depend on it. All settings and losses are in data/results: {logs}.

{training}

Wall time is that of a machine that may have done other work beside it. **Not run on a GPU.**

## Made again

`make tiny` does it all:

```
{rebuild}
```

## Aimed for, and reached

A figure stands with its 95 % interval and the number of cases. "above" compares text by text; the judges are those of
data/checkpoints/judge, which have heard true recordings only.

{bars}

## All figures

{sections}{absent}
Measured on weights {weights}, with the code of {commits}.

## Limits

- A closed vocabulary: numbers, times and dates. Letters and characters outside the words it was trained on were never learnt.
- Aims that were missed stand as such in the table above. How many clones are taken for their prompt's voice stands there,
  too; the others say the text in another voice.
- A voice comes out of the AudioVAE rougher than it went in, and out of VoxCPM hoarser still: the pitch error stands above.
- Synthetic voices of espeak-ng: what it clones are other settings and variants of that synthesiser, not people.
- 16000 Hz; short sentences; English and Mandarin.
- The judges are small and know this corpus only. Their figures say nothing about other speech.

## Consent

Cloning a voice needs the consent of the person whose voice it is. This model was trained on no person's voice and clones people badly;
larger ones do not. Say of synthetic speech that it is synthetic, and use no one's voice to deceive.

## Licence

Apache 2.0, as the code.
"""


VAE_TEMPLATE = """# mel_vae: an AudioVAE of preset tiny, trained on mel distance alone

**What it is.** The AudioVAE of VoxCPM (arXiv 2509.24650, §3.4) at the sizes of preset `tiny`, {channels} latent channels at 25 Hz.
`vox.load_vae("data/checkpoints/mel_vae")` loads it, and `-p vae` of notebook 12 trains a VoxCPM on it. It keeps the words and loses the
melody, which [notebook 02](../../../notebooks/02_audio_vae.ipynb) takes apart; the model that speaks, [tiny](../tiny/MODEL_CARD.md), has
one that keeps it. The variants of notebook 10 were trained on its latents, of which there are few to draw.

**Data.** The synthetic corpus `numbers` (see data/README.md), {hours} hours: no recording of a person is in it. Voices and texts of
the figures below were held out.

**Recipe.** Trained from nothing in {steps} steps on mel distance and KL, weighed {mel:g} : {kl:g}. No discriminators. Of {before} latent
channels {channels} say more than their own noise; the others were dropped.

{training}

All settings and losses are in data/results/mel_vae_log.json. **Not run on a GPU.**

## Made again

`make mel_vae` does it:

```
{rebuild}
```

## Figures

Recordings of unseen voices through it, and through Opus. "above" compares text by text.

{figures}

{how}

Measured on weights {weights}.

## Limits

- Whoever speaks, the pitch stands at 100 or 200 Hz: much of a voice is gone before a VoxCPM sees it.
- Synthetic voices, one corpus; {rate} Hz.

## Consent, licence

As for [tiny](../tiny/MODEL_CARD.md); Apache 2.0.
"""


def vae_card(part: dict, log: dict, channels: int, rebuild: str) -> str:
    """The card of an AudioVAE alone, of its measurement, the log of its run, its channels and the commands that make it again."""
    return VAE_TEMPLATE.format(
        channels=channels,
        before=log["model"]["latent_dim"],
        rate=log["model"]["sample_rate"],
        hours=shlex.split(rebuild)[shlex.split(rebuild).index("hours") + 1],
        steps=log["steps"],
        mel=log["config"]["mel"],
        kl=log["config"]["kl"],
        training=training({"AudioVAE": log}),
        rebuild=rebuild,
        figures=all_figures(part, "vae"),
        how=how(part),
        weights=part["weights"],
    )


def rebuild(makefile: str, target: str = "tiny") -> str:
    """The commands of a target of a Makefile, as they would be typed. Raises MissingPart if there is none."""
    lines = makefile.splitlines()
    starts = [k for k, line in enumerate(lines) if line.startswith(f"{target}: .venv")]
    if not starts:
        raise MissingPart(f"no card without the target {target} in the Makefile: it says how the weights are made again")
    commands = []
    for line in lines[starts[0] + 1 :]:
        if not line.startswith("\t"):
            break
        commands.append(line.strip().removeprefix("@"))
    text = "\n".join(commands).replace("\\\n", "\\\n    ")
    for name, value in {"$(PAPERMILL)": "papermill --cwd notebooks", "$(BIN)/": "", "$(OUT)": f"runs/{target}", " $(ARGS)": ""}.items():
        text = text.replace(name, value)
    return text


def shipped() -> int:
    """Bytes of data/checkpoints."""
    return sum(path.stat().st_size for path in (HOME / "data/checkpoints").rglob("*") if path.is_file())


def write_card(folder, measured, results):
    """Write MODEL_CARD.md in the model's folder from the file `measured` and the logs in the folder `results`.

    Raises ValueError naming a file or a part that is not there.
    """
    alone = not (Path(folder) / "model.safetensors").is_file()  # an AudioVAE
    names = ["mel_vae_log"] if alone else list(LOGS.values())
    paths = [Path(measured), HOME / "data/checkpoints/judge/judge.json", *(Path(results) / f"{log}.json" for log in names)]
    for path in paths:
        if not path.is_file():
            raise MissingPart(f"no card without {path}: python tests/measure_tiny.py {'log' if path.stem in names else ''}")
    measurement, judges, *logs = map(read_json, paths)
    makefile = (HOME / "Makefile").read_text(encoding="utf-8")
    if alone:
        text = vae_card(measurement["vae"], *logs, read_config(folder)[0].vae.latent_dim, rebuild(makefile, "mel_vae"))
    else:
        text = card(measurement, judges, dict(zip(LOGS, logs, strict=True)), shipped(), rebuild(makefile))
    with replacing(Path(folder) / "MODEL_CARD.md") as aside:
        aside.write_text(text, encoding="utf-8")
