"""VoxCPM (arXiv 2509.24650) rebuilt in the open: one short module per box of the paper.

>>> model = vox.load("folder")
>>> model.generate("four hundred and twelve", prompt_wav="me.wav", prompt_text="nine").save("out.wav")
"""

__version__ = "0.1.0"  # first: the modules below may ask for it

from vox import audio, config, corpus, files, flow, layout, plots, train
from vox.audio import Speech
from vox.config import Config, preset
from vox.official import load
from vox.vae import AudioVAE
from vox.voxcpm import VoxCPM

__all__ = ["AudioVAE", "Config", "Speech", "VoxCPM", "load", "preset"]
__all__ += ["audio", "config", "corpus", "files", "flow", "layout", "plots", "train"]
