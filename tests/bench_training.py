"""How long a training step takes on this CPU, next to the official code on the same weights and the same batch in one process.

    PYTHONPATH=. python tests/bench_training.py [rounds]      (5 by default)

TSLM 12, RALM 3, LocEnc 4 and LocDiT 4 layers, all 512 wide; 8 sequences of 256 positions, of which a quarter holds text and 15 %
padding; float32, forward, backward and AdamW. The two sides take turns, so that a busy machine slows both. Not a test.
"""

import json
import statistics
import sys
import time

import bench_generate as bench
import torch

from vox.batch import Item, pack
from vox.config import Config, TransformerConfig
from vox.layout import released_name
from vox.provenance import machine

STACK = dict(hidden=512, ffn=2048, heads=8, kv_heads=2, mup=True)
CONFIG = Config(
    tslm=TransformerConfig(layers=12, **STACK),
    ralm_layers=3,
    locenc=TransformerConfig(layers=4, **STACK),
    locdit=TransformerConfig(layers=4, **STACK),
    vocab=4096,
    max_length=256,
)
LENGTHS = [256 - 11 * row for row in range(8)]  # 85 % of 8 · 256
TEXT = 64  # positions, with start and end


def a_batch():
    """The batch, and the arguments of the official forward pass for it."""
    torch.manual_seed(0)
    items = [Item(torch.randint(105, 4096, (TEXT - 2,)), torch.randn(CONFIG.patch * (n - TEXT), CONFIG.vae.latent_dim)) for n in LENGTHS]
    batch = pack(items, CONFIG.patch)
    assert batch.text.shape == (8, 256) and 0.84 < (batch.text_mask | batch.audio_mask).float().mean() < 0.86
    positions = torch.zeros_like(batch.text)
    return batch, (batch.text, batch.text_mask, batch.latents, batch.audio_mask, batch.loss_mask, positions, batch.stop)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    official = bench.official_model(bench.a_tokenizer(), torch.float32, CONFIG).train()
    ours = bench.our_model(official, CONFIG, share=False).train()
    batch, arguments = a_batch()

    def official_loss():
        losses = official(*arguments)
        return losses["loss/diff"] + losses["loss/stop"]

    def step(loss, optimizer):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    sides, names = {"official": (official, official_loss), "ours": (ours, lambda: ours(batch).total)}, {}
    for side, (model, loss) in sides.items():
        learned = {name: weight for name, weight in model.named_parameters() if "vae." not in name}
        names[side] = {released_name(name) for name in learned}
        sides[side] = loss, torch.optim.AdamW(learned.values(), lr=1e-4)
    assert names["official"] == names["ours"], "both sides must learn the same weights"

    times = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, (loss, optimizer) in sides.items():
            began = time.perf_counter()
            step(loss, optimizer)
            if turn:  # the first warms up
                times[side].append(time.perf_counter() - began)
    result = {side: dict(median=statistics.median(t), least=min(t), most=max(t)) for side, t in times.items()}
    ratios = [a / b for a, b in zip(times["ours"], times["official"], strict=True)]
    for side, r in result.items():
        print(f"{side:10}{r['median']:8.2f} s   ({r['least']:.2f} … {r['most']:.2f})")
    print(f"{'ratio':10}{statistics.median(ratios):8.2f}     ({min(ratios):.2f} … {max(ratios):.2f})")
    print(json.dumps(result | dict(ratio=statistics.median(ratios), ratio_range=(min(ratios), max(ratios))) | machine()))


if __name__ == "__main__":
    main()
