"""What each box of a model carries, measured for notebook 11: data/results/inside.json, and the arrays behind it beside it.

    PYTHONPATH=. python tests/measure_inside.py [--model F] [--out F] [--size 1.0] [--seeds 0 1 2]

Minutes on one core; `vox.inside` says how. data/results/inside_before.json is a part of what it wrote of the model before it trained on its
own past. Not a test.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
from measure_tiny import weights

import vox
from vox import inside
from vox.files import HOME, read_json, write_json
from vox.official import find
from vox.provenance import machine
from vox.state import write_tensors

SETS = {  # who is heard, at size 1: settings of each voice and utterances of each, or singers and texts
    "known": {"split": "validation", "settings": 2, "each": 7},
    "fresh": {"split": "test", "settings": 2, "each": 8},
    "sung": {"speakers": 6, "texts": 40},
}


def sizes(size: float) -> dict:
    """The sets with `size` of the utterances of each speaker."""
    return {name: {k: max(2, round(size * v)) if k in ("each", "texts") else v for k, v in some.items()} for name, some in SETS.items()}


def main(arguments=None):
    """Measure and write; see the head of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", default=HOME / "data/results/inside.json", type=Path)
    parser.add_argument("--size", default=1.0, type=float)
    parser.add_argument("--seeds", default=[0, 1, 2], type=int, nargs="+")
    given = parser.parse_args(arguments)
    began, sets = time.perf_counter(), sizes(given.size)
    model = vox.load(given.model, device="cpu", dtype="float32")
    rows = [inside.spread(**sets["known"]), inside.spread(**sets["fresh"]), inside.choir(**sets["sung"])]
    heard = [inside.hear(each, model, quiet=False) for each in rows]
    heard_seconds = time.perf_counter() - began
    results, arrays = inside.measure(model, *heard, seeds=tuple(given.seeds), quiet=False)
    about = {
        "command": shlex.join(["python", "tests/measure_inside.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "model": given.model,
        "weights": weights(find(given.model)),
        "config": {"sets": sets, "seeds": given.seeds, "patch_seconds": model.config.patch_seconds(), "width": model.config.tslm.hidden},
        "utterances": {name: len(each) for name, each in zip(sets, heard, strict=True)},
        "count": {name: sum(len(one.phone) for one in each) for name, each in zip(sets, heard, strict=True)},
        "machine": machine(),
        "seconds": {"hearing": round(heard_seconds), "all": round(time.perf_counter() - began), "processor": round(time.process_time())},
    }
    write_tensors(given.out.with_suffix(".safetensors"), {name: torch.from_numpy(array) for name, array in arrays.items()})
    write_json(given.out, about | results)
    print(f"{given.out}: {read_json(given.out)['seconds']} s")


if __name__ == "__main__":
    main()
