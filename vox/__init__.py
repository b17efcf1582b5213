"""VoxCPM (arXiv 2509.24650) rebuilt in the open: one short module per box of the paper.

>>> model = vox.load("folder")
>>> model.generate("four hundred and twelve", prompt_wav="me.wav", prompt_text="nine").save("out.wav")

Names are imported when they are first used, so that `python -m vox.check` can tell what is missing on a bare machine.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "AudioVAE": "vae",
    "Config": "config",
    "Speech": "audio",
    "VoxCPM": "voxcpm",
    "load": "official",
    "load_vae": "official",
    "preset": "config",
}
_MODULES = ("audio", "config", "corpus", "fast", "files", "flow", "judge", "layout", "metrics", "plots", "train", "vae_loss")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"vox.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"vox.{name}")
    raise AttributeError(f"module 'vox' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return [*__all__, "__version__"]
