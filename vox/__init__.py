"""VoxCPM (arXiv 2509.24650) rebuilt in the open: one short module per box of the paper."""

from vox import audio, corpus, train
from vox.audio import Speech
from vox.config import Config, preset
from vox.official import load
from vox.vae import AudioVAE
from vox.voxcpm import VoxCPM

__version__ = "0.1.0"
__all__ = ["AudioVAE", "Config", "Speech", "VoxCPM", "audio", "corpus", "load", "preset", "train"]
