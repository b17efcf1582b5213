"""The reference side of the parity tests: classes of the official package `voxcpm` (2.0.3), and small random models made of them.

The official package's top-level modules import audio and training extras that nothing here needs. Bare stand-ins with the right
`__path__` take their place in `sys.modules`, so that its submodules import alone.

The metric everywhere is max|a − b| / max|b| per tensor, b the official one. In float32 it must be ≤ 1e-5.
"""

import contextlib
import copy
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

BOUND = 1e-5  # float32
MARGIN = 5e-5  # of a quantiser step: how far from a rounding boundary every value must lie
FIGURES = {}  # test name → largest figure measured there; printed after the run


def _import_official():
    spec = importlib.util.find_spec("voxcpm")
    if spec is None:
        pytest.skip("the official package is missing: pip install --no-deps voxcpm==2.0.3", allow_module_level=True)
    root = Path(spec.origin).parent
    for name in ("voxcpm", "voxcpm.model", "voxcpm.training"):
        stand_in = types.ModuleType(name)
        stand_in.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = stand_in


_import_official()

from voxcpm.model.utils import mask_multichar_chinese_tokens  # noqa: E402, F401
from voxcpm.model.voxcpm import VoxCPMConfig, VoxCPMModel  # noqa: E402
from voxcpm.modules.audiovae import AudioVAE, AudioVAEConfig  # noqa: E402
from voxcpm.training.packers import AudioFeatureProcessingPacker  # noqa: E402, F401

# ---------------------------------------------------------------------------------------------------------- the metric


def figure(a, b) -> float:
    """max|a − b| / max|b|, in float64."""
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    a, b = a.detach().double(), b.detach().double()
    assert torch.isfinite(b).all() and torch.isfinite(a).all(), "a value is not finite"
    scale = b.abs().max().item()
    assert scale > 0, "the reference is all zeros: the comparison would mean nothing"
    return (a - b).abs().max().item() / scale


def close(a, b, bound: float = BOUND, what: str = "") -> float:
    """Assert that a agrees with the official b within bound, and note the figure under `what`."""
    value = figure(a, b)
    FIGURES[what] = max(FIGURES.get(what, 0.0), value)
    assert value <= bound, f"{what}: max|a-b|/max|b| = {value:.2e} > {bound:.0e}"
    return value


def same(a, b, what: str):
    """Assert equality to the last bit."""
    assert a.shape == b.shape, f"{what}: shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.equal(a, b.to(a.dtype)), f"{what}: {(a != b).sum().item()} of {b.numel()} values differ"


def boundary_distance(fsq, hidden) -> torch.Tensor:
    """How far, in steps, each value before rounding lies from the nearest rounding boundary: hidden [..., H] → [..., dim]."""
    z = torch.tanh(fsq.in_proj(hidden)) * fsq.scale
    return (z - torch.floor(z) - 0.5).abs()


class WatchFSQ:
    """Inside this context, every official FSQ call is recorded; `check` asserts that no value lay near a rounding boundary."""

    def __init__(self, fsq):
        self.fsq, self.inputs = fsq, []

    def __enter__(self):
        self.hook = self.fsq.register_forward_pre_hook(lambda module, args: self.inputs.append(args[0].detach().clone()))
        return self

    def __exit__(self, *error):
        self.hook.remove()

    def check(self, mask=None):
        """mask [B, T] bool, where the codes are used (all, if None)."""
        assert self.inputs, "FSQ was never called"
        with torch.no_grad():
            for hidden in self.inputs:
                distance = boundary_distance(self.fsq, hidden if mask is None else hidden[mask])
                nearest = distance.min().item()
                assert nearest >= MARGIN, f"a value lies {nearest:.1e} of a step from a rounding boundary: choose another seed"


# ------------------------------------------------------------------------------------------------- small official configs


def config(lm=(), encoder=(), dit=(), vae=(), rope=(), **changes) -> dict:
    """A `config.json` of the released layout for a model of about 60 k parameters; each argument changes one block of it."""
    lm = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 420,
        "use_mup": False,
        "scale_emb": 12,
        "dim_model_base": 256,
        "scale_depth": 1.4,
        "rope_theta": 10000.0,
    } | dict(lm)
    width = lm.get("kv_channels") or lm["hidden_size"] // lm["num_attention_heads"]
    lm["rope_scaling"] = {
        "type": "longrope",
        "short_factor": [1.0] * (width // 2),
        "long_factor": [1.0] * (width // 2),
        "original_max_position_embeddings": 512,
    } | dict(rope)
    cfm = {"sigma_min": 1e-6, "solver": "euler", "t_scheduler": "log-norm", "training_cfg_rate": 0.1, "inference_cfg_rate": 2.0}
    tree = {
        "architecture": "voxcpm",
        "lm_config": lm,
        "patch_size": 2,
        "feat_dim": 8,
        "residual_lm_num_layers": 2,
        "scalar_quantization_latent_dim": 16,
        "scalar_quantization_scale": 9,
        "encoder_config": {"hidden_dim": 16, "ffn_dim": 40, "num_heads": 2, "num_layers": 2} | dict(encoder),
        "dit_config": {"hidden_dim": 48, "ffn_dim": 56, "num_heads": 6, "num_layers": 2, "cfm_config": cfm} | dict(dit),
        "audio_vae_config": {
            "encoder_dim": 4,
            "encoder_rates": [2, 5, 8, 8],
            "latent_dim": 8,
            "decoder_dim": 32,
            "decoder_rates": [8, 8, 5, 2],
            "depthwise": True,
            "sample_rate": 16000,
            "use_noise_block": False,
        }
        | dict(vae),
        "max_length": 256,
        "device": "cpu",
        "dtype": "float32",
    }
    return tree | changes


_STEPS = [1.0, 1.3, 2.1, 3.7]  # RoPE frequency divisors of a head of 8: far enough from 1 that a mix-up shows
_V15_VAE = {"encoder_rates": [2, 3, 6, 7, 7], "decoder_rates": [7, 7, 6, 3, 2], "decoder_dim": 64, "sample_rate": 44100}

CONFIGS = {
    "v1": config(),
    "v1.5": config(
        lm={"num_hidden_layers": 4}, encoder={"num_layers": 4}, dit={"num_layers": 4}, vae=_V15_VAE, patch_size=4, residual_lm_num_layers=3
    ),
    "mup": config(lm={"use_mup": True}),
    "kv_channels": config(lm={"kv_channels": 12}, encoder={"kv_channels": 12}, dit={"kv_channels": 12}),
    "no_rope": config(lm={"no_rope": True}),
    "short_rope": config(rope={"short_factor": _STEPS, "long_factor": [9.0] * 4}),
    "long_rope": config(rope={"short_factor": [9.0] * 4, "long_factor": _STEPS, "original_max_position_embeddings": 64}),
    "gqa1": config(lm={"num_key_value_heads": 4}, encoder={"num_heads": 4, "hidden_dim": 32}, dit={"num_heads": 4, "hidden_dim": 32}),
    "gqa8": config(
        lm={"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 64},
        encoder={"num_heads": 8, "hidden_dim": 64},
        dit={"num_heads": 8, "hidden_dim": 64},
    ),
}

VAES = {  # name → audio_vae_config
    "depthwise": {},
    "dense": {"depthwise": False},
    "noise": {"use_noise_block": True},
    "v1.5": _V15_VAE,
    "odd": {"encoder_rates": [3, 4], "decoder_rates": [2, 6], "decoder_dim": 48, "latent_dim": 5, "depthwise": False, "sample_rate": 8000},
}


# ------------------------------------------------------------------------------------------------ random official weights


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a value of its own kind but off its initial one: a norm left at 1 would hide a forgotten norm."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.rand(parameter.shape, generator=generator)
        if name.endswith(("norm.weight", "alpha", "weight_g")):
            parameter.mul_(0.6 + 0.8 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.4 * (noise - 0.5))
        else:
            parameter.add_(0.2 * parameter.std() * (noise - 0.5))
    return module


def vae(changes: dict, seed: int = 0) -> AudioVAE:
    """A random official AudioVAE of `config()["audio_vae_config"] | changes`, in eval mode."""
    with torch.random.fork_rng(devices=[]):  # the inputs a test draws must not depend on which models were made before
        torch.manual_seed(seed)
        return randomise(AudioVAE(AudioVAEConfig(**config(vae=changes)["audio_vae_config"])), seed).eval()


def model(tree: dict, tokenizer, seed: int = 0) -> VoxCPMModel:
    """A random official VoxCPM on the CPU in float32, in eval mode."""
    parsed = VoxCPMConfig.model_validate(copy.deepcopy(tree))
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):  # it talks
        torch.manual_seed(seed)
        return randomise(VoxCPMModel(parsed, tokenizer, AudioVAE(parsed.audio_vae_config), device="cpu"), seed).eval()


# --------------------------------------------------------------------------------------------------- the released layout


def main_weights(official: VoxCPMModel) -> dict:
    """The official state without the VAE, as the released main file holds it."""
    return {name: tensor.contiguous() for name, tensor in official.state_dict().items() if not name.startswith("audio_vae.")}


def save(official: VoxCPMModel, tree: dict, tokenizer, folder, main="model.safetensors", audio="audiovae.pth", dtype=torch.float32):
    """Write an official model as its authors publish it; `main` and `audio` choose among the released file names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.json").write_text(json.dumps(tree, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.to(dtype) for name, tensor in main_weights(official).items()}
    vae_weights = {name: tensor.contiguous() for name, tensor in official.audio_vae.state_dict().items()}
    for path, state in ((folder / main, weights), (folder / audio, vae_weights)):
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state}, path)
    return folder


def save_tokenizer(folder):
    """A byte-pair tokenizer of the released kind (Metaspace marks, byte fallback, Chinese words of several characters)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    merges = "▁ t|h e|▁t he|o n|on e|▁ one|e n|▁ t|t en|你 好|世 界|▁ 你好|世界 你好|二 十".split("|")
    merges = list(dict.fromkeys(tuple(merge.split()) for merge in merges))
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHI", *"0123456789.,!?'", *"零一二三四五六七八九十百千你好世界点半"]
    tokens = ["<unk>", "<s>", "</s>", *letters, *("".join(merge) for merge in merges)]
    tokens += [f"<unused_{i}>" for i in range(101 - len(tokens))]
    tokens += ["<|audio_start|>", "<|audio_end|>", "<|audio_prompt_start|>", "<|audio_prompt_end|>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokens.index("<|audio_start|>") == 101, "the audio tokens must have the released ids"
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", *tokens[101:105])])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
