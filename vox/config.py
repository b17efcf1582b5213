"""Every size in one place: frozen dataclasses, JSON in and out, presets.

The paper's Table of sizes (arXiv 2509.24650, §3 and appendix) is preset "voxcpm-0.5b"; `nano`, `tiny` and
`small` are the same model with fewer and narrower layers. The ablation switches of the paper live here too
(`FSQConfig.kind`, `FSQConfig.dim`, `FSQConfig.scale`, `Config.ralm`, `Config.previous_patch`); `vox/voxcpm.py`
is the one place that reads them.

Notable choices
- a config says everything needed to build the model, and nothing about the machine it runs on;
- `from_dict` refuses unknown keys and values of another type, so a mistyped field cannot pass silently;
- an illegal value is refused when the config is made, not when a tensor shape breaks later.
"""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field

FSQ_KINDS = ("fsq", "none", "noise", "identity")
RALM_KINDS = ("full", "no_history", "no_residual", "none")
PRECISIONS = ("fp32", "bf16")


def _require(ok, message):
    if not ok:
        raise ValueError(message)


def _positive(config, *names):
    """Refuse sizes below 1; None is one that was left out."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, list | tuple) else (value,)
        message = f"{type(config).__name__} field {name!r} must be positive, not {value}"
        _require(all(size is None or size > 0 for size in sizes), message)


@dataclass(frozen=True)
class VAEConfig:
    """Causal AudioVAE (paper §3.4). Field names are those of the released `audio_vae_config`."""

    encoder_dim: int = 128  # channels after the first convolution; doubled by every stride
    encoder_rates: tuple[int, ...] = (2, 5, 8, 8)  # strides; their product is the hop, 640 samples
    latent_dim: int = 64  # D
    decoder_dim: int = 1536  # channels before the first upsampling; halved by every stride
    decoder_rates: tuple[int, ...] = (8, 8, 5, 2)
    depthwise: bool = True  # one filter per channel in the residual units
    sample_rate: int = 16000  # Hz
    use_noise_block: bool = False

    def __post_init__(self):
        _positive(self, "encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "decoder_rates", "sample_rate")
        _require(
            math.prod(self.encoder_rates) == math.prod(self.decoder_rates),
            f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates} must have the same product",
        )
        halvings = 2 ** len(self.decoder_rates)
        _require(self.decoder_dim % halvings == 0, f"decoder_dim {self.decoder_dim} is halved by every rate: use a multiple of {halvings}")

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return math.prod(self.encoder_rates)

    @property
    def frame_rate(self) -> float:
        """Latents per second (25 Hz in the paper)."""
        return self.sample_rate / self.hop


@dataclass(frozen=True)
class RopeConfig:
    """LongRoPE: one frequency divisor per pair of dimensions (empty tuple: all ones, plain RoPE)."""

    theta: float = 10000.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    original_max_position: int = 32768
    max_position: int = 32768  # above original_max_position the long factors are used


@dataclass(frozen=True)
class TransformerConfig:
    """One MiniCPM-4 stack. VoxCPM uses four of them: TSLM, RALM, LocEnc, LocDiT."""

    layers: int
    hidden: int  # H
    ffn: int
    heads: int
    kv_heads: int  # grouped-query attention: heads / kv_heads queries share one key
    head_dim: int | None = None  # None: hidden / heads
    norm_eps: float = 1e-5
    rope: RopeConfig | None = field(default_factory=RopeConfig)  # None: no position information
    mup: bool = False  # muP: residual branches × scale_depth / √layers, text embeddings × scale_emb
    scale_depth: float = 1.4
    scale_emb: float = 12.0

    def __post_init__(self):
        _positive(self, "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim")
        _require(self.heads % self.kv_heads == 0, f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        _require(
            self.head_dim is not None or self.hidden % self.heads == 0,
            f"hidden {self.hidden} must be a multiple of heads {self.heads}, or head_dim must be set",
        )
        width = self.head_dim or self.hidden // self.heads
        _require(width % 2 == 0, f"head width {width} must be even: RoPE rotates pairs")
        if self.rope:
            for name in ("short_factor", "long_factor"):
                factors = getattr(self.rope, name)
                _require(len(factors) in (0, width // 2), f"rope.{name} has {len(factors)} values; a head of {width} needs {width // 2}")

    @property
    def width(self) -> int:
        """Dimensions of one attention head."""
        return self.head_dim or self.hidden // self.heads


@dataclass(frozen=True)
class FSQConfig:
    """The semi-discrete bottleneck (paper §3.2). `scale` s gives 2·s + 1 levels per dimension."""

    kind: str = "fsq"  # "none": without rounding (the paper's s∞); "noise": as a VAE's, noise for it; "identity": no bottleneck
    dim: int = 256
    scale: int = 9

    def __post_init__(self):
        _require(self.kind in FSQ_KINDS, f"fsq.kind must be one of {FSQ_KINDS}, not {self.kind!r}")
        _positive(self, "dim", "scale")


@dataclass(frozen=True)
class FlowConfig:
    """Conditional flow matching (paper §3.3): how training draws times and drops the condition."""

    t_mean: float = -0.4  # t = sigmoid(N(t_mean, t_std)): 1 is noise, 0 is data
    t_std: float = 1.0
    cfg_drop: float = 0.1  # share of patches trained without the LM condition


@dataclass(frozen=True)
class TrainConfig:
    """VoxCPM training (paper §4.1 and appendix: AdamW, warmup-stable-decay)."""

    steps: int = 1000
    batch: int = 16  # sequences per step, over all processes
    lr: float = 1e-4
    lr_end: float = 5e-6
    warmup: int = 100  # steps of linear rise
    decay: int = 200  # final steps of linear fall from lr to lr_end
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    stop_weight: float = 1.0  # λ of L = L_FM + λ·L_stop
    join: float = 0.3  # share of sequences made of two or three utterances of one voice
    own: float = 0.0  # share of sequences that from some patch on go on from the model's own patches (`VoxCPM.drawn`); not in the paper
    own_rounds: int = 1  # how often these are drawn: from the second time on after what was drawn the time before
    max_seconds: float = 20.0  # longest sequence kept, in seconds of audio
    ema: float = 0.999  # decay of the averaged weights that `fit` leaves in the model
    precision: str = "bf16"  # autocast where the device has it; weights and optimiser stay float32
    checkpoint: int = 200  # steps between checkpoints
    seed: int = 0

    def __post_init__(self):
        _require(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        _positive(self, "steps", "batch", "checkpoint", "own_rounds")
        _require(0 <= self.ema < 1, f"ema must lie in [0, 1), not {self.ema}")
        for name in ("join", "own"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is a share in [0, 1], not {getattr(self, name)}")


@dataclass(frozen=True)
class VAETrainConfig:
    """AudioVAE training: the terms of descript-audio-codec, scaled down by the presets."""

    steps: int = 1000
    batch: int = 8  # clips per step, over all processes
    clip_seconds: float = 0.64
    lr: float = 1e-3
    lr_end: float = 1e-4
    warmup: int = 50
    decay: int = 300
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 0.01
    clip: float = 1000.0
    disc_clip: float = 10.0
    mel: float = 15.0  # weights of the loss terms
    feature: float = 2.0
    adversarial: float = 1.0
    kl: float = 5e-5
    waveform: float = 0.0  # of the lowest harmonics, phase included; not in the paper
    encoder: bool = True  # False: the decoder alone is trained, and latents stay what they are: those that a VoxCPM was trained on
    adversarial_from: int | None = None  # first step with discriminators; None: never
    ema: float = 0.99
    precision: str = "fp32"
    checkpoint: int = 200
    seed: int = 0

    def __post_init__(self):
        _require(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        _positive(self, "steps", "batch", "checkpoint")
        _require(0 <= self.ema < 1, f"ema must lie in [0, 1), not {self.ema}")


@dataclass(frozen=True)
class Config:
    """The whole model. Defaults of the boxes follow the released VoxCPM-0.5B."""

    tslm: TransformerConfig
    ralm_layers: int  # RALM is the TSLM's stack with this many layers and no vocabulary
    locenc: TransformerConfig
    locdit: TransformerConfig
    vae: VAEConfig = field(default_factory=VAEConfig)
    vocab: int = 73448
    patch: int = 2  # P, latents per patch
    fsq: FSQConfig = field(default_factory=FSQConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    ralm: str = "full"  # "no_history": without E_<i; "no_residual": TSLM → FSQ → LocDiT; "none": TSLM → LocDiT
    previous_patch: bool = True  # LocDiT sees z_{i−1}
    max_length: int = 4096  # longest sequence, in positions
    train: TrainConfig = field(default_factory=TrainConfig)
    vae_train: VAETrainConfig = field(default_factory=VAETrainConfig)

    def __post_init__(self):
        _require(self.ralm in RALM_KINDS, f"ralm must be one of {RALM_KINDS}, not {self.ralm!r}")
        _positive(self, "ralm_layers", "vocab", "patch", "max_length")
        _require(
            self.fsq.kind != "none" or self.fsq.dim == self.tslm.hidden,
            f"fsq.kind 'none' keeps the width: set fsq.dim to tslm.hidden ({self.tslm.hidden}), not {self.fsq.dim}",
        )

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed; dotted names reach inside: `config.replace(**{"fsq.dim": 16, "ralm": "none"})`.

        Raises ValueError for a name that does not exist, a value of another type, and one that no model could have.
        """
        return from_dict(Config, _updated(to_dict(self), changes))

    @property
    def patch_samples(self) -> int:
        """Samples of speech in one patch."""
        return self.patch * self.vae.hop

    def patch_seconds(self) -> float:
        """Seconds of speech in one patch."""
        return self.patch_samples / self.vae.sample_rate


def _updated(tree, changes):
    for name, value in changes.items():
        node, *path = tree, *name.split(".")
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or path[-1] not in node:
            raise ValueError(f"unknown config field {name!r}")
        node[path[-1]] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return tree


def to_dict(config) -> dict:
    """A config as plain dictionaries, lists and numbers, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls, tree: dict):
    """The inverse of `to_dict`. Raises ValueError naming a key that is unknown, missing, or holds a value of another type."""
    hints = typing.get_type_hints(cls)
    unknown = set(tree) - set(hints)
    if unknown:
        raise ValueError(f"unknown {cls.__name__} field {sorted(unknown)[0]!r}; known: {', '.join(hints)}")
    values = {}
    for name, value in tree.items():
        kinds = [kind for kind in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(kind)]
        if kinds and value is not None:
            _require(isinstance(value, dict), f"{cls.__name__} field {name!r} holds an object, not {value!r}")
            value = from_dict(kinds[0], value)
        wanted = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
        _require(_fits(value, hints[name]), f"{cls.__name__} field {name!r} must be of type {wanted}, not {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from None


def _fits(value, hint) -> bool:
    """Whether a value is what an annotation says: whole numbers do for a float, lists for a tuple, True and False for no number."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _nano() -> Config:
    return Config(
        vae=VAEConfig(encoder_dim=8, latent_dim=16, decoder_dim=128),
        tslm=TransformerConfig(layers=4, hidden=192, ffn=512, heads=6, kv_heads=2),
        ralm_layers=1,
        locenc=TransformerConfig(layers=1, hidden=128, ffn=384, heads=4, kv_heads=2),
        locdit=TransformerConfig(layers=2, hidden=192, ffn=512, heads=6, kv_heads=2),
        vocab=512,
        patch=4,
        fsq=FSQConfig(dim=32),
        max_length=512,
        train=TrainConfig(steps=520, batch=16, lr=1e-3, lr_end=1e-4, warmup=50, decay=190, ema=0.99, checkpoint=50, max_seconds=12.0),
        vae_train=VAETrainConfig(steps=280, batch=8, lr=4e-3, lr_end=2e-4, decay=110, betas=(0.8, 0.95), clip=10.0, checkpoint=50),
    )


def _tiny() -> Config:
    return Config(
        vae=VAEConfig(encoder_dim=16, latent_dim=32, decoder_dim=256),
        tslm=TransformerConfig(layers=4, hidden=192, ffn=512, heads=6, kv_heads=2, mup=True),  # without muP the text is hardly read
        ralm_layers=2,
        locenc=TransformerConfig(layers=1, hidden=128, ffn=384, heads=4, kv_heads=2, mup=True),
        locdit=TransformerConfig(layers=3, hidden=192, ffn=512, heads=6, kv_heads=2, mup=True),
        vocab=1024,
        patch=4,
        fsq=FSQConfig(dim=64),
        flow=FlowConfig(t_mean=0.5),  # more draws near noise, where only the text says what is to come
        max_length=1024,
        train=TrainConfig(steps=8000, batch=16, lr=1e-3, lr_end=5e-5, warmup=100, decay=2700, join=0.5, checkpoint=250),
        vae_train=VAETrainConfig(
            steps=8000, lr=2e-3, warmup=200, decay=3000, betas=(0.8, 0.95), clip=10.0, ema=0.999, kl=5e-3, checkpoint=250
        ),  # at twice this rate the first hundred steps jump; kl, 100 times the paper's, leaves 14 channels that speak
    )


def _small() -> Config:
    return Config(
        vae=VAEConfig(encoder_dim=64, latent_dim=64, decoder_dim=768),
        tslm=TransformerConfig(layers=10, hidden=512, ffn=1536, heads=8, kv_heads=2),
        ralm_layers=2,
        locenc=TransformerConfig(layers=3, hidden=384, ffn=1152, heads=6, kv_heads=2),
        locdit=TransformerConfig(layers=4, hidden=512, ffn=1536, heads=8, kv_heads=2),
        vocab=4096,
        fsq=FSQConfig(dim=128),
        max_length=2048,
        train=TrainConfig(steps=100000, batch=128, lr=5e-4, lr_end=2.5e-5, warmup=1000, decay=20000, checkpoint=1000),
        vae_train=VAETrainConfig(steps=100000, batch=64, clip_seconds=1.0, lr=3e-4, adversarial_from=20000, ema=0.999, checkpoint=1000),
    )


def _voxcpm() -> Config:
    stack = dict(hidden=1024, ffn=4096, heads=16, kv_heads=2, mup=True)
    return Config(
        tslm=TransformerConfig(layers=24, **stack),
        ralm_layers=6,
        locenc=TransformerConfig(layers=4, **stack),
        locdit=TransformerConfig(layers=4, **stack),
        train=TrainConfig(steps=500000, batch=512, warmup=2000, decay=100000, checkpoint=1000, max_seconds=60.0),
        vae_train=VAETrainConfig(
            steps=1000000,
            batch=128,
            clip_seconds=2.0,
            lr=3e-5,
            lr_end=0.0,
            warmup=1000,
            decay=999000,
            adversarial_from=0,
            ema=0.999,
            checkpoint=1000,
        ),
    )


PRESETS = {"nano": _nano, "tiny": _tiny, "small": _small, "voxcpm-0.5b": _voxcpm}


def preset(name: str) -> Config:
    """The config of a named size: "nano", "tiny", "small" or "voxcpm-0.5b". Raises ValueError for another name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
