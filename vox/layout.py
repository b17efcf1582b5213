"""The released folder: file names, weight names, and the config in the official package's words.

    config.json                                the official fields, and ours under "vox"
    model.safetensors   (or pytorch_model.bin) all weights but the VAE's
    audiovae.safetensors (or audiovae.pth)     the VAE's, always float32
    tokenizer.json, tokenizer_config.json

One layout serves both: a model saved here can be spoken by the official package (it ignores "vox"), and a folder from
the official package, v1 or v1.5, can be read here. Loading never runs code from a file: safetensors holds data only,
and the older torch files are read with `weights_only=True`.
"""

import dataclasses
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vox.config import Config, RopeConfig, TransformerConfig, VAEConfig, from_dict, to_dict
from vox.files import replacing, write_json

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
VAE_FILES = ("audiovae.safetensors", "audiovae.pth")
DTYPES = {
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16,
    "float32": torch.float32, "fp32": torch.float32,
}  # fmt: skip
PREFIXES = {
    "tslm.": "base_lm.",
    "ralm.": "residual_lm.",
    "locenc.": "feat_encoder.",
    "locdit.": "feat_decoder.estimator.",
    "fsq.": "fsq_layer.",
}


def released_name(name: str) -> str:
    """Our weight name → the released one."""
    return next((theirs + name.removeprefix(ours) for ours, theirs in PREFIXES.items() if name.startswith(ours)), name)


def our_name(name: str) -> str:
    """The released weight name → ours."""
    return next((ours + name.removeprefix(theirs) for ours, theirs in PREFIXES.items() if name.startswith(theirs)), name)


# ---- config ------------------------------------------------------------------------------------------------------


def released_config(config: Config, dtype: torch.dtype) -> dict:
    """A config in the official package's words, with ours whole under "vox"."""
    lm, rope = config.tslm, config.tslm.rope or RopeConfig()
    ones = (1.0,) * (lm.width // 2)

    def stack(c: TransformerConfig) -> dict:
        width = {} if c.head_dim is None else {"kv_channels": c.head_dim}  # the official reader refuses an explicit null
        return {"hidden_dim": c.hidden, "ffn_dim": c.ffn, "num_heads": c.heads, "num_layers": c.layers, **width}

    return {
        "architecture": "voxcpm",
        "lm_config": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": lm.hidden,
            "intermediate_size": lm.ffn,
            "max_position_embeddings": rope.max_position,
            "num_attention_heads": lm.heads,
            "num_hidden_layers": lm.layers,
            "num_key_value_heads": lm.kv_heads,
            "rms_norm_eps": lm.norm_eps,
            "rope_theta": rope.theta,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": rope.long_factor or ones,
                "short_factor": rope.short_factor or ones,
                "original_max_position_embeddings": rope.original_max_position,
            },
            "vocab_size": config.vocab,
            "use_mup": lm.mup,
            "scale_emb": lm.scale_emb,
            "dim_model_base": 256,
            "scale_depth": lm.scale_depth,
            "no_rope": lm.rope is None,
            **({} if lm.head_dim is None else {"kv_channels": lm.head_dim}),
        },
        "patch_size": config.patch,
        "feat_dim": config.vae.latent_dim,
        "residual_lm_num_layers": config.ralm_layers,
        "scalar_quantization_latent_dim": config.fsq.dim,
        "scalar_quantization_scale": config.fsq.scale,
        "encoder_config": stack(config.locenc),
        "dit_config": {**stack(config.locdit), "cfm_config": {"training_cfg_rate": config.flow.cfg_drop, "inference_cfg_rate": 2.0}},
        "audio_vae_config": to_dict(config.vae),
        "max_length": config.max_length,
        "device": "cuda",
        "dtype": str(dtype).removeprefix("torch."),
        "vox": to_dict(config),
    }


def our_config(tree: dict) -> Config:
    """The inverse of `released_config`, also for folders we did not write. Raises KeyError or ValueError if fields are missing or wrong."""
    if "vox" in tree:
        return from_dict(Config, tree["vox"])
    lm = tree["lm_config"]
    scaling = lm["rope_scaling"]
    rope = dict(
        theta=lm["rope_theta"],
        short_factor=scaling["short_factor"],
        long_factor=scaling["long_factor"],
        original_max_position=scaling["original_max_position_embeddings"],
        max_position=lm["max_position_embeddings"],
    )
    common = dict(
        kv_heads=lm["num_key_value_heads"],
        norm_eps=lm["rms_norm_eps"],
        rope=None if lm.get("no_rope") else rope,
        mup=lm.get("use_mup", True),
        scale_depth=lm["scale_depth"],
        scale_emb=lm["scale_emb"],
    )

    vae = tree.get("audio_vae_config") or {}
    known = {field.name for field in dataclasses.fields(VAEConfig)}  # the official reader skips other fields, too

    def stack(c: dict) -> dict:
        return dict(
            layers=c.get("num_layers", 4),
            hidden=c.get("hidden_dim", 1024),
            ffn=c.get("ffn_dim", 4096),
            heads=c.get("num_heads", 16),
            head_dim=c.get("kv_channels"),
            **common,
        )

    ours = dict(
        tslm=dict(
            layers=lm["num_hidden_layers"],
            hidden=lm["hidden_size"],
            ffn=lm["intermediate_size"],
            heads=lm["num_attention_heads"],
            head_dim=lm.get("kv_channels"),
            **common,
        ),
        ralm_layers=tree.get("residual_lm_num_layers", 6),
        locenc=stack(tree["encoder_config"]),
        locdit=stack(tree["dit_config"]),
        vae={name: value for name, value in vae.items() if name in known},
        vocab=lm["vocab_size"],
        patch=tree.get("patch_size", 2),
        fsq=dict(dim=tree.get("scalar_quantization_latent_dim", 256), scale=tree.get("scalar_quantization_scale", 9)),
        flow=dict(cfg_drop=tree["dit_config"].get("cfm_config", {}).get("training_cfg_rate", 0.1)),
        max_length=tree.get("max_length", 4096),
    )
    return from_dict(Config, ours)


def read_config(folder) -> tuple[Config, torch.dtype]:
    """config.json of a folder → our config and the number format its weights are meant for.

    Raises FileNotFoundError, or ValueError that names the file: not JSON, a field missing, an architecture not rebuilt here.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a model folder holds config.json, weights and a tokenizer")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        architecture = tree.get("architecture", "voxcpm").lower()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a model config: {error}") from error
    if architecture != "voxcpm":
        version = "VoxCPM2" if architecture == "voxcpm2" else f"{architecture!r}"
        raise ValueError(f"{folder} holds a {version} model; this suite rebuilds VoxCPM v1 and v1.5: use one of those")
    try:
        return our_config(tree), DTYPES[tree.get("dtype", "bfloat16")]
    except KeyError as error:
        raise ValueError(f"{file} has no usable field {error}: it is not a VoxCPM v1 or v1.5 config") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error


# ---- weights -----------------------------------------------------------------------------------------------------


def read_tensors(folder: Path, names: tuple[str, ...]) -> tuple[Path, dict[str, Tensor]]:
    """The first of the named weight files that exists → its path and its tensors, on the CPU.

    Raises FileNotFoundError if none does, ValueError that names the file if it is broken or holds anything but tensors.
    """
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(names)}")
    try:
        if file.suffix == ".safetensors":
            return file, load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        tensors = tensors.get("state_dict", tensors)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError("it holds more than tensors")
        return file, tensors
    except (SafetensorError, ValueError, RuntimeError, AttributeError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read as weights: {(str(error) or 'it is empty').splitlines()[0]}. Fetch it again") from error
    except Exception as error:  # torch names its refusal of code UnpicklingError
        raise ValueError(f"{file} holds code or objects, not only weights, and was not loaded. Ask its author for safetensors") from error


def read_weights(folder: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights of a folder under our names, the VAE's as "vae.…". `wanted` holds a tensor of the right shape for each name.

    Raises FileNotFoundError, or ValueError that names the file and a weight which it lacks, has too many, or has in another shape.
    """
    file, tensors = read_tensors(folder, MODEL_FILES)
    model = {our_name(name): tensor for name, tensor in tensors.items() if not name.startswith("audio_vae.")}
    _fit(file, model, {name: tensor for name, tensor in wanted.items() if not name.startswith("vae.")}, released_name)
    vae = read_vae(folder, {name.removeprefix("vae."): tensor for name, tensor in wanted.items() if name.startswith("vae.")})
    return model | {f"vae.{name}": tensor for name, tensor in vae.items()}


def read_vae(folder: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The AudioVAE's weights of a folder; `wanted` and errors as for `read_weights`."""
    file, tensors = read_tensors(folder, VAE_FILES)
    _fit(file, tensors, wanted, str)
    return tensors


def _fit(file, weights, wanted, name_in_file):
    for problem, names in (("lacks", wanted.keys() - weights.keys()), ("has unknown", weights.keys() - wanted.keys())):
        if names:
            raise ValueError(f"{file} {problem} weights ({len(names)}), such as {name_in_file(min(names))}: it does not fit config.json")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"has shape {list(tensor.shape)}, config.json asks for {list(wanted[name].shape)}"
            raise ValueError(f"{file}: {name_in_file(name)} {shapes}")


SHARED = ("kv_heads", "norm_eps", "rope", "mup", "scale_depth", "scale_emb")  # what the released config.json says once, for all stacks


def write(folder, config: Config, weights: dict[str, Tensor], tokenizer, half: bool = False):
    """Write a model folder in the released layout.

    Args: folder, made if missing; config; weights under our names; tokenizer, with a `save(folder)` of its own; half, store
        them as float16 (config.json goes on saying what they are computed in, and `vox.load` brings them back to it).
    Raises ValueError if a weight is not finite: such a model is lost, and an older file should not go with it.
    """
    folder = Path(folder)
    dtype = next(tensor.dtype for name, tensor in weights.items() if not name.startswith("vae."))
    weights = _storable(folder, weights, half)
    vae = {name.removeprefix("vae."): tensor for name, tensor in weights.items() if name.startswith("vae.")}
    model = {released_name(name): tensor for name, tensor in weights.items() if not name.startswith("vae.")}
    for name, differing in (("locenc", config.locenc), ("locdit", config.locdit)):
        if alone := [field for field in SHARED if getattr(differing, field) != getattr(config.tslm, field)]:
            warnings.warn(
                f"{name}.{alone[0]} is not that of tslm: vox.load reads {folder} as it is, the official package, which knows one for"
                " all stacks, reads another model",
                stacklevel=3,
            )
    if config.fsq.kind == "noise":
        warnings.warn(
            f"fsq.kind 'noise' is no part of the released model: vox.load reads {folder} as it is, the official package rounds",
            stacklevel=3,
        )
    tree = released_config(config, dtype)
    tokenizer.save(folder)
    for name, tensors in ((VAE_FILES[0], vae), (MODEL_FILES[0], model)):
        with replacing(folder / name) as aside:
            save_file(tensors, aside)
    write_json(folder / "config.json", tree)


def write_vae(folder, config: Config, vae, half: bool = False):
    """Write the part of a model folder that `vox.load_vae` reads: config.json, and an AudioVAE of config.vae. Args, errors: see `write`."""
    folder = Path(folder)
    weights = _storable(folder, vae.state_dict(), half)
    with replacing(folder / VAE_FILES[0]) as aside:
        save_file(weights, aside)
    write_json(folder / "config.json", released_config(config, torch.float32))


def _storable(folder, weights, half):
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if half:
        weights = {name: tensor.half() for name, tensor in weights.items()}
    bad = next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise ValueError(f"weight {bad} holds values that are not finite; nothing was written to {folder}")
    return weights
