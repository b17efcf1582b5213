"""The weights that ship, spoken by the official package: the same waveform from the same text and noise."""

import contextlib
import io
import os

import pytest
import torch
from reference import close
from test_parity_layout import official_load

import vox
from vox.files import HOME

SHIPPED = HOME / "data/checkpoints/tiny"


@pytest.mark.skipif(not SHIPPED.is_dir() and not os.environ.get("CI"), reason="no weights of tiny are shipped yet")
def test_the_official_package_speaks_what_ships():
    official = official_load(SHIPPED)
    torch.manual_seed(5)
    with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
        expected = official.generate("nine", inference_timesteps=10, cfg_value=2.0, retry_badcase=False)[0]
    speech = vox.load("tiny", device="cpu").generate("nine", seed=5, attempts=1)
    assert speech.wav.abs().max() > 0.01
    close(speech.wav, expected, what="shipped tiny")
