"""The presets have the sizes they claim, counted on the meta device: no memory, no values."""

import pytest
import torch

from vox.config import preset
from vox.voxcpm import VoxCPM

MILLION = {  # preset → (the model without its VAE, its VAE), each (least, most) in millions of parameters
    "nano": ((2.0, 3.5), (0.3, 0.5)),
    "tiny": ((4.0, 5.0), (1.5, 3.0)),
    "small": ((40.0, 60.0), (15.0, 25.0)),
    "voxcpm-0.5b": ((652.25, 652.35), (75.35, 75.45)),
}


def count(module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", list(MILLION))
def test_sizes(name, capsys):
    with torch.device("meta"):
        model = VoxCPM(preset(name))
    vae = count(model.vae)
    main = count(model) - vae
    with capsys.disabled():
        print(f"\n{name:>12}: {main / 1e6:.2f} M and a VAE of {vae / 1e6:.2f} M parameters")
    for size, (least, most) in zip((main, vae), MILLION[name], strict=True):
        assert least <= size / 1e6 <= most


def test_sizes_of_the_boxes():
    """The released model box by box, as its authors' papers and files count them (millions)."""
    with torch.device("meta"):
        model = VoxCPM(preset("voxcpm-0.5b"))
    boxes = {
        "TSLM": (model.tslm, 433.9),
        "RALM": (model.ralm, 89.7),
        "LocEnc": (model.locenc, 59.8),
        "LocDiT": (model.locdit, 64.2),
        "FSQ": (model.fsq, 0.5),
        "VAE encoder": (model.vae.encoder, 48.4),
        "VAE decoder": (model.vae.decoder, 26.9),
    }
    for name, (box, millions) in boxes.items():
        assert abs(count(box) / 1e6 - millions) < 0.06, f"{name}: {count(box) / 1e6:.2f} M, not {millions} M"


def test_every_preset_is_listed():
    from vox.config import PRESETS

    assert set(PRESETS) == set(MILLION)
