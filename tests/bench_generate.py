"""How fast speech is made on this CPU, at voxcpm-0.5b sizes with random weights, next to the official code in the same process.

    PYTHONPATH=. python tests/bench_generate.py [fp32] [fp32-packed] [bf16] [bf16-packed] [int8]      (all by default)

One text without a prompt, 10 steps of the flow, the VAE's decoder included; the two sides take turns, so that a busy machine
slows both. "packed" is after `fast.pack_`, "int8" after `fast.quantise_`, which stands against the official bf16. Batches are
ours alone. Not a test.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "parity"))
import reference
from transformers import LlamaTokenizerFast

from vox import fast, layout
from vox.config import preset
from vox.provenance import machine
from vox.voxcpm import VoxCPM

PATCHES, ROUNDS, BATCH = 8, 3, 8
TEXT = "five hundred and nine"
CONFIG = preset("voxcpm-0.5b")


def a_tokenizer():
    """The small tokenizer of the parity tests."""
    with tempfile.TemporaryDirectory() as folder:
        return LlamaTokenizerFast.from_pretrained(reference.save_tokenizer(folder))


def official_model(tokenizer, dtype, config=CONFIG):
    """The official model with random weights of `dtype`, its VAE in float32, that never stops by itself."""
    tree = layout.released_config(config, dtype) | {"device": "cpu"}
    del tree["vox"]
    parsed = reference.VoxCPMConfig.model_validate(tree)
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):
        model = reference.VoxCPMModel(parsed, tokenizer, reference.AudioVAE(parsed.audio_vae_config), device="cpu").eval()
    assert model._dtype() == dtype
    model.stop_head.weight.data.zero_()
    model.to(dtype).audio_vae.float()
    return model


def our_model(official, config=CONFIG, share=True) -> VoxCPM:
    """Ours, on the very weights of the official model, or on a copy."""
    weights = {layout.our_name(name): tensor for name, tensor in reference.main_weights(official).items()}
    weights |= {f"vae.{name}": tensor for name, tensor in official.audio_vae.state_dict().items()}
    with torch.device("meta"):
        model = VoxCPM(config)
    model.load_state_dict(weights if share else {name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    return model.eval()


def seconds(speak) -> float:
    """Wall seconds of one call, what it prints thrown away."""
    with contextlib.redirect_stderr(io.StringIO()):
        began = time.perf_counter()
        speak()
        return time.perf_counter() - began


def compare(name, tokenizer):
    """Median, least and most seconds per patch of both sides, their ratio, our real-time factor, and patches per second in a batch."""
    official = official_model(tokenizer, torch.float32 if name.startswith("fp32") else torch.bfloat16)
    ours = our_model(official)
    if name.endswith("packed"):
        fast.pack_(ours)
    elif name == "int8":
        fast.quantise_(ours)
    options = dict(steps=10, seed=0, max_seconds=PATCHES * CONFIG.patch_seconds())
    sides = {
        "official": lambda: official.generate_with_prompt_cache(TEXT, None, max_len=PATCHES, inference_timesteps=10),
        "ours": lambda: ours.generate(TEXT, **options),
    }
    times = {side: [] for side in sides}
    for turn in range(ROUNDS + 1):
        for side, speak in sides.items():
            taken = seconds(speak) / PATCHES
            if turn:  # the first warms up
                times[side].append(taken)
    result = {side: dict(median=statistics.median(t), least=min(t), most=max(t)) for side, t in times.items()}
    ratios = [a / b for a, b in zip(times["ours"], times["official"], strict=True)]
    parts = ours.generate(TEXT, **options).stats
    batch = statistics.median(seconds(lambda: ours.generate([TEXT] * BATCH, **options)) for _ in range(3)) / (BATCH * PATCHES)
    return result | dict(
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        rtf=result["ours"]["median"] / CONFIG.patch_seconds(),
        vae_share=parts["seconds_vae"] / (parts["seconds_vae"] + parts["seconds_lm_dit"]),
        batch_seconds_per_patch=batch,
        batch_gain=result["ours"]["median"] / batch,
    )


def main():
    results, tokenizer = {}, a_tokenizer()
    print(f"{'':12}{'official':>10}{'ours':>10}{'ratio':>8}{'RTF':>8}{'VAE':>8}{f'batch {BATCH}':>10}{'gain':>8}   ms per patch")
    for name in sys.argv[1:] or ("fp32", "fp32-packed", "bf16", "bf16-packed", "int8"):
        r = results[name] = compare(name, tokenizer)
        milliseconds = [1e3 * value for value in (r["official"]["median"], r["ours"]["median"], r["batch_seconds_per_patch"])]
        print(
            f"{name:12}{milliseconds[0]:10.1f}{milliseconds[1]:10.1f}{r['ratio']:8.2f}{r['rtf']:8.2f}{r['vae_share']:8.0%}"
            f"{milliseconds[2]:10.1f}{r['batch_gain']:8.2f}",
            flush=True,
        )
    print(json.dumps(results | machine()))


if __name__ == "__main__":
    main()
