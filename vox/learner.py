"""One network in training: schedule, AdamW, and the running average of its weights (paper §4.1 and appendix).

Notable choices
- warmup-stable-decay: the rate rises, stays, and falls in the last steps, where most of the gain is made;
- decay is for matrices and filters: none on biases, norms, gains and embeddings;
- the weights used in the end are an average of those walked through (EMA), warmed up so that short runs forget their start;
- autocast is opened here, not in `Accelerator`, whose precision is one per Python process: a notebook trains a VAE in float32
  and then a model in bfloat16;
- on a processor bfloat16 pays with AMX only: AVX-512 trains in it, but nano takes 1.7 times as long as in float32, and older ones
  imitate it, several times slower still. There "bf16" trains in float32.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vox.config import TrainConfig, VAETrainConfig


def phases(config: TrainConfig | VAETrainConfig) -> tuple[float, float]:
    """Steps of the rise at the start and of the fall at the end. Where they do not fit into `steps` both shrink in proportion."""
    shrink = min(1.0, config.steps / max(1, config.warmup + config.decay))
    return config.warmup * shrink, config.decay * shrink


def lr_at(step: int, config: TrainConfig | VAETrainConfig) -> float:
    """Learning rate of a step (counted from 0): linear rise over `warmup` steps, `lr`, linear fall to `lr_end` over the last `decay`.

    How long these are says `phases`.
    """
    warmup, decay = phases(config)
    if step + 1 < warmup:
        return config.lr * (step + 1) / warmup
    left = config.steps - 1 - step
    return config.lr_end + (config.lr - config.lr_end) * min(1.0, left / decay) if decay else config.lr


def fast_bf16(device: torch.device) -> bool:
    """Whether a device trains faster in bfloat16 than in float32: a GPU, or a processor with AMX."""
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported()


class Pass(nn.Module):
    """One forward pass under autocast: the module that `accelerate` wraps, so that the network itself is left as it was."""

    def __init__(self, network: nn.Module, forward, precision: str, device: torch.device):
        super().__init__()
        self.network, self.function = network, forward
        self.autocast = dict(device_type=device.type, dtype=torch.bfloat16, enabled=precision == "bf16" and fast_bf16(device))

    def forward(self, *inputs):
        with torch.autocast(**self.autocast):
            return self.function(self.network, *inputs)


class Learner:
    """A network, its AdamW and, if `average`, the running average of its weights. `learner(*inputs)` is the forward pass.

    Args: network; forward(network, *inputs); config; clip, largest gradient norm; accelerator; average.
    Only parameters that require gradients are trained, saved and averaged.
    """

    def __init__(self, network: nn.Module, forward, config, clip: float, accelerator: Accelerator, average: bool = True):
        self.network, self.config, self.clip, self.accelerator = network, config, clip, accelerator
        self.plain = Pass(network, forward, config.precision, accelerator.device)  # without what several processes need
        self.forward = accelerator.prepare(self.plain)
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has nothing to train: every parameter is frozen (requires_grad=False)")
        self.optimizer = torch.optim.AdamW(decay_groups(network, config.weight_decay), lr=config.lr, betas=config.betas, fused=True)
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if average else {}

    def __call__(self, *inputs):
        return self.forward(*inputs)

    def step(self, loss: Tensor, step: int) -> Tensor:
        """Backward, clip, AdamW, average. Returns the norm of the gradient before clipping (0-d)."""
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averages:
            keep = min(self.config.ema, (1 + step) / (10 + step))  # a young average forgets the initial weights fast
            torch._foreach_lerp_(list(self.averages.values()), [p.detach() for p in self.parameters.values()], 1 - keep)
        return norm

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs, by file."""
        moments = {f"{key}/{name}": value for name, p in self.parameters.items() for key, value in self.optimizer.state[p].items()}
        return {"weights": self.weights(), "moments": moments, "averages": self.averages}

    def weights(self) -> dict[str, Tensor]:
        """The network's weights and buffers without what is frozen."""
        return {name: value for name, value in self.network.state_dict().items() if name not in self.frozen}

    @torch.no_grad()
    def load(self, files: dict[str, dict[str, Tensor]]):
        """Take up what `tensors` gave."""
        set_weights(self.network, files["weights"])
        for key, value in files["moments"].items():
            kind, name = key.split("/", 1)
            p = self.parameters[name]
            self.optimizer.state[p][kind] = value.to(p.device)
        for name, average in self.averages.items():
            average.copy_(files["averages"][name])

    def use_averages(self):
        """Put the averaged weights into the network."""
        set_weights(self.network, self.weights() | self.averages)


def set_weights(network: nn.Module, weights: dict[str, Tensor]):
    """Load weights into a network. ValueError if one is unknown, or one that is not frozen is missing."""
    problems = network.load_state_dict(weights, strict=False)
    wanted = {name for name, p in network.named_parameters() if p.requires_grad}
    wrong = sorted(wanted.intersection(problems.missing_keys)) + problems.unexpected_keys
    if wrong:
        raise ValueError(f"the saved weights are those of another model: {', '.join(wrong[:3])} …")


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices and filters decay; biases, norms, gains and embeddings do not."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    groups = {True: [], False: []}
    for p in network.parameters():
        if p.requires_grad:
            groups[p.squeeze().ndim > 1 and id(p) not in embeddings].append(p)  # a gain [C, 1, 1] is a vector
    return [{"params": groups[decays], "weight_decay": weight_decay * decays} for decays in (True, False)]
