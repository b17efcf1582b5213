"""The weights that ship, spoken by the official package: the same waveform from the same text and noise."""

import contextlib
import io
import os

import pytest
import torch
from reference import BOUND, close, figure
from test_parity_layout import official_load

import vox
from vox.files import HOME

SHIPPED = HOME / "data/checkpoints/tiny"


@pytest.mark.skipif(not SHIPPED.is_dir() and not os.environ.get("CI"), reason="no weights of tiny are shipped yet")
def test_the_official_package_speaks_what_ships():
    """As far as float32 can tell: through trained weights a rounding grows from patch to patch, and how far, the same in float64 says."""
    official, ours = official_load(SHIPPED), vox.load("tiny", device="cpu")
    exact = vox.load("tiny", device="cpu").double()
    exact.vae.float()  # it rounds by 5e-7, and keeps what it decodes with in float32
    apart, rounding = [], []
    for seed, text in enumerate(("nine", "seven", "ten to four", "three hundred and six", "八点三刻"), 5):
        torch.manual_seed(seed)
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            expected = official.generate(text, inference_timesteps=10, cfg_value=2.0, retry_badcase=False)[0]
        speech, true = (model.generate(text, seed=seed, attempts=1).wav for model in (ours, exact))
        assert speech.abs().max() > 0.01
        apart.append(close(speech, expected, bound=10 * BOUND, what=f"shipped tiny, {text}"))
        rounding.append(figure(speech, true))
    assert min(apart) <= BOUND and max(apart) <= 3 * max(BOUND, *rounding), (apart, rounding)
