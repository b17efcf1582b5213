"""How far bfloat16 and 8-bit weights move what a trained model draws, as latent signal-to-noise ratio against its float32.

    PYTHONPATH=. python tests/bench_deviation.py FOLDER      a trained model, for instance runs/first_words/model

Every patch of 16 held-out recordings is drawn once more, given the true patches before it and fixed noise; all boxes take part.
The last column says how often the FSQ codes behind it differ. Not a test.
"""

import copy
import json
import sys

import torch

import vox
from vox import fast, flow
from vox.prompts import prompt_patches
from vox.provenance import machine

RECORDINGS = 16


@torch.no_grad()
def draw(model, patches, text):
    """Patches [m, P, D] of a recording and its words → (the same patches drawn anew [m, P, D], FSQ codes [m, dim])."""
    x = model.tslm.embed(torch.tensor([*model.tokenizer.encode(text), vox.text.AUDIO_START])[None])
    embedded = model.embed(patches[:-1].to(model.dtype))[None]
    past = torch.cat((torch.zeros_like(x), embedded), 1)
    audio = torch.arange(past.shape[1])[None] >= x.shape[1]
    x = torch.cat((x, embedded), 1)
    codes = model.fsq.codes(model.tslm(x))[0, -len(patches) :]
    plan, residual = model.plan(x, past, audio)
    mu = model.condition(plan, residual)[0, -len(patches) :]
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0)).to(mu)
    previous = torch.cat((torch.zeros_like(patches[:1]), patches[:-1])).to(mu)
    return flow.sample(model.velocity, mu, previous, noise).float(), codes.float()


def main():
    model = vox.load(sys.argv[1], device="cpu", dtype=torch.float32)
    rows = vox.corpus.load("numbers", split="test", hours=0.05)
    recordings = [(prompt_patches(model, vox.corpus.wav(row)), row["text"]) for row in list(rows)[:RECORDINGS]]
    bf16 = copy.deepcopy(model).to(torch.bfloat16)
    kinds = {"bf16": bf16, "bf16-packed": fast.pack_(copy.deepcopy(bf16)), "int8": fast.quantise_(copy.deepcopy(model))}
    exact = [draw(model, *recording) for recording in recordings]
    result = {}
    for name, other in kinds.items():
        found = [draw(other, *recording) for recording in recordings]
        signal = sum(a.square().sum() for a, _ in exact)
        error = sum((a - b).square().sum() for (a, _), (b, _) in zip(exact, found, strict=True))
        flipped = torch.cat([(a - b).abs().flatten() > 0.02 for (_, a), (_, b) in zip(exact, found, strict=True)]).float().mean()
        result[name] = dict(latent_snr_db=10 * (signal / error).log10().item(), codes_changed=flipped.item())
        print(f"{name:12}{result[name]['latent_snr_db']:8.1f} dB{result[name]['codes_changed']:8.2%} of the codes", flush=True)
    print(json.dumps(result | dict(model=sys.argv[1], patches=sum(len(a) for a, _ in exact)) | machine()))


if __name__ == "__main__":
    main()
