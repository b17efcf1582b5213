"""The weights that ship, spoken by the official package: the same waveform from the same text and noise."""

import contextlib
import io
import os
import sys
from unittest import mock

import pytest
import torch
from reference import close
from test_parity_layout import official_load

import vox
from vox.files import HOME

SHIPPED = HOME / "data/checkpoints/tiny"


@contextlib.contextmanager
def in_float64(model):
    """Inside, the official model computes in float64 what leads to latents, from the noise of float32."""
    randn = torch.randn
    model.double()
    model.audio_vae.float()
    with (
        mock.patch.object(sys.modules[type(model).__module__], "get_dtype", lambda name: torch.float64),
        mock.patch.object(torch, "randn", lambda *size, dtype=torch.float32, **options: randn(*size, **options).to(dtype)),
    ):
        for lm in (model.base_lm, model.residual_lm):
            lm.setup_cache(1, model.config.max_length, model.device, torch.float64)
        yield model


@pytest.mark.skipif(not SHIPPED.is_dir() and not os.environ.get("CI"), reason="no weights of tiny are shipped yet")
def test_the_official_package_speaks_what_ships():
    """In float64: through trained weights a rounding of float32 grows from patch to patch, to 2e-5 in either of the two."""
    ours = vox.load("tiny", device="cpu").double()
    ours.vae.float()
    with in_float64(official_load(SHIPPED)) as official:
        for seed, text in enumerate(("nine", "seven", "ten to four", "three hundred and six", "八点三刻"), 5):
            torch.manual_seed(seed)
            with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
                expected = official.generate(text, inference_timesteps=10, cfg_value=2.0, retry_badcase=False)[0]
            speech = ours.generate(text, seed=seed, attempts=1)
            assert speech.wav.abs().max() > 0.01
            close(speech.wav, expected, what=f"shipped tiny, {text}")
