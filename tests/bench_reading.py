"""How soon does a model read? Variants of preset tiny learn the corpus words for a few minutes each, from the same seed.

    PYTHONPATH=. python tests/bench_reading.py --vae FOLDER [--seconds 240] [VARIANT...]        writes data/results/tiny_recipe.json

FOLDER is one whose AudioVAE is used (data/checkpoints/mel_vae in the results). The text gap is what a wrong text costs: the flow-matching
loss near noise (t = 0.95, where the noisy patch shows next to nothing) on held-out utterances, each with the text of another one
of its language, less the loss with its own. A model that does not read has a gap of 0. Not a test.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import vox
from vox import ablations
from vox.batch import Item
from vox.files import HOME, write_json
from vox.provenance import machine
from vox.text import CharTokenizer

WIDE = {
    **{"tslm.layers": 6, "tslm.hidden": 256, "tslm.ffn": 1024, "tslm.heads": 8},
    **{"locenc.layers": 2, "locenc.hidden": 256, "locenc.ffn": 768, "locenc.heads": 8},
    **{"locdit.hidden": 256, "locdit.ffn": 768, "locdit.heads": 8},
}  # 12.2 M parameters without the AudioVAE; tiny has 4.3 M
VARIANTS = {
    "wide, t_mean -0.4": WIDE | {"flow.t_mean": -0.4},
    "wide, t_mean 1": WIDE | {"flow.t_mean": 1.0},
    "tiny, t_mean 1": {"flow.t_mean": 1.0},
    "tiny, t_mean 1, no muP": {"flow.t_mean": 1.0, "tslm.mup": False, "locenc.mup": False, "locdit.mup": False},
    "tiny, t_mean 2": {"flow.t_mean": 2.0},
    "tiny, t_mean 1, lr 2e-3": {"flow.t_mean": 1.0, "train.lr": 2e-3},
    "tiny, t_mean 1, lr 5e-4": {"flow.t_mean": 1.0, "train.lr": 5e-4},
}
BASE = {"train.steps": 4000, "train.decay": 1111, "train.join": 0.0, "train.precision": "fp32"}
EVERY = 200  # steps between two measurements
TIME = 0.95


def gap(model, held: dict[str, list[Item]]) -> dict:
    """{right, other, gap}, means over the languages."""
    losses = []
    for own in held.values():
        losses.append([ablations.loss(model, some, TIME, "reading") for some in (own, ablations.swapped(own))])
    right, other = (sum(values) / len(values) for values in zip(*losses, strict=True))
    return {"right": round(right, 4), "other": round(other, 4), "gap": round(other - right, 4)}


def learn(changes: dict, codec, seconds: float) -> list[dict]:
    """Train one variant for so many seconds; what was measured on the way."""
    data, rows = vox.corpus.load("words", hours=1.5), vox.corpus.load("words", "validation", hours=0.06)
    config = vox.preset("tiny").replace(vae=codec.config, **(BASE | changes))
    torch.manual_seed(0)
    model = vox.VoxCPM(config, vae=codec, tokenizer=CharTokenizer.learn(data["text"], config.vocab))
    held = {name: ablations.items(model, [row for row in rows if row["language"] == name]) for name in vox.corpus.LANGUAGES}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        while not measured or measured[-1]["seconds"] < seconds:
            spent = measured[-1]["seconds"] if measured else 0
            until = measured[-1]["step"] + EVERY if measured else EVERY
            report = vox.train.fit(model, data, config.train, Path(folder), progress=False, until=until, seconds=seconds - spent)
            measured.append({"step": report.steps, "seconds": round(report.seconds, 1), **gap(model, held)})
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--vae", required=True)
    parser.add_argument("--seconds", type=float, default=240)
    given = parser.parse_args()
    if unknown := set(given.variants) - set(VARIANTS):
        parser.error(f"unknown variant {', '.join(unknown)}: use {', '.join(VARIANTS)}")
    codec = vox.load_vae(given.vae, device="cpu")
    names = given.variants or VARIANTS
    rows = {name: {"changes": VARIANTS[name], "measured": learn(VARIANTS[name], codec, given.seconds)} for name in names}
    write_json(HOME / "data/results/tiny_recipe.json", {"base": BASE, "machine": machine(), "variants": rows})


if __name__ == "__main__":
    main()
