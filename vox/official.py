"""From a name or a folder to a model that speaks."""

from pathlib import Path

import torch

from vox import layout
from vox.config import PRESETS
from vox.files import HOME
from vox.text import load_tokenizer
from vox.vae import AudioVAE
from vox.voxcpm import VoxCPM

SHIPPED = HOME / "data" / "checkpoints"


def find(name) -> Path:
    """A folder, the name of a shipped preset, or a hub name like "openbmb/VoxCPM-0.5B" → a folder.

    Only a hub name that is no local folder goes to the network. Raises FileNotFoundError that says what to do instead.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name) in PRESETS:
        if (SHIPPED / str(name)).is_dir():
            return SHIPPED / str(name)
        raise FileNotFoundError(
            f"no weights of preset {name!r} in {SHIPPED}: restore that folder if it is in the repository, give another model folder,"
            " or train one (`make tiny` trains tiny, notebook 12 any preset)"
        )
    if str(name).count("/") == 1 and not folder.is_absolute() and not str(name).startswith("."):
        from huggingface_hub import snapshot_download  # only on this path: everything else works offline

        try:
            return Path(snapshot_download(str(name)))
        except Exception as error:
            raise FileNotFoundError(
                f"{name} is no local folder and could not be fetched from the hub ({type(error).__name__}): check the name and the"
                " connection, or download the folder elsewhere and give its path"
            ) from error
    raise FileNotFoundError(f"there is no model folder {name}: give a folder, a preset ({', '.join(PRESETS)}) or a hub name owner/model")


def load(name, device=None, dtype=None) -> VoxCPM:
    """Load a model for use.

    Args: name, a model folder, a shipped preset or a hub name; device, "cuda" if there is one, else "cpu"; dtype of the
        LMs ("float32", "bfloat16" or a torch dtype), what config.json says if None. The VAE is float32 always.
    Returns: VoxCPM in eval mode.
    Raises FileNotFoundError if files are missing, ValueError that names the file if one is broken, is of another
        architecture, or does not fit the config.
    """
    folder = find(name)
    config, configured = layout.read_config(folder)
    dtype = configured if dtype is None else layout.DTYPES.get(dtype, dtype)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be one of {', '.join(layout.DTYPES)}, not {dtype!r}")
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # its library raises bare Exception
        files = "tokenizer.json and tokenizer_config.json"
        raise ValueError(f"the tokenizer of {folder} ({files}) cannot be read: {error}. Fetch it again") from error
    with torch.device("meta"):  # no memory and no time for values that the files replace
        model = VoxCPM(config, tokenizer=tokenizer)
    weights = layout.read_weights(folder, model.state_dict())
    weights = {key: tensor.to(torch.float32 if key.startswith("vae.") else dtype) for key, tensor in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def load_vae(name, device=None) -> AudioVAE:
    """The AudioVAE of a model folder alone, in float32 and eval mode. The weights of the LMs need not be there.

    Args, and errors: as for `load`.
    """
    folder = find(name)
    config, _ = layout.read_config(folder)
    with torch.device("meta"):
        vae = AudioVAE(config.vae)
    weights = layout.read_vae(folder, vae.state_dict())
    vae.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, assign=True)
    return vae.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
