"""VoxCPM: how the boxes of the paper's Figure 1 are wired, its loss, its stop head and its ablation switches (paper §3).

    E_i   = LocEnc(z_i)                              a patch as one embedding
    h     = TSLM(text, E_<i)                         the plan for patch i
    h_FSQ = FSQ(h)                                   … squeezed at audio positions
    r     = RALM(h_FSQ, E_<i)                        … and what the squeeze dropped
    z_i   ~ LocDiT(W h_FSQ + W' r, z_{i−1})          the next patch, by flow matching
    stop  = MLP(h_FSQ)                               is patch i the last one?

Notable choices (where the released code says more than the paper, we follow the code)
- everything about patch i is read at position i−1, so one pass over a sequence trains all its patches;
- the bottleneck sits on TSLM's output only: its KV cache, E_<i and z_{i−1} stay continuous, and the first patch
  without a prompt is planned by the raw state at token 101;
- LocEnc, LocDiT and the stop head are computed only where there is audio to read or to learn.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vox import flow, layout
from vox.batch import Batch
from vox.config import Config
from vox.fsq import FSQ
from vox.generate import generate, stream
from vox.locdit import LocDiT
from vox.locenc import LocEnc
from vox.ralm import RALM
from vox.text import CharTokenizer, known_characters
from vox.transformer import KVCache
from vox.tslm import TSLM
from vox.vae import AudioVAE

OWN_STEPS = 5  # of the flow, where training draws the model's own patches


class Losses(NamedTuple):
    """Means over the patches of a batch, each a tensor without axes."""

    diffusion: Tensor  # flow matching, mean squared error of the velocity
    stop: Tensor  # cross-entropy of the stop head
    total: Tensor  # diffusion + λ · stop


class VoxCPM(nn.Module):
    """The whole model.

    Args:
        config: sizes and switches.
        vae: a trained AudioVAE (frozen here); a fresh one of config.vae if None.
        tokenizer: turns text into ids; the character tokenizer that config.vocab has room for if None.
    Raises ValueError for a tokenizer with more ids than config.vocab.
    """

    def __init__(self, config: Config, vae: AudioVAE | None = None, tokenizer=None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer or CharTokenizer(known_characters(config.vocab))
        if (ids := self.tokenizer.vocab_size) > config.vocab:
            raise ValueError(f"the tokenizer has {ids} ids and config.vocab is {config.vocab}: set vocab to {ids}, or take a smaller one")
        hidden, dim = config.tslm.hidden, config.vae.latent_dim
        self.tslm = TSLM(config.tslm, config.vocab)
        self.fsq = FSQ(hidden, config.fsq) if config.ralm != "none" else None
        self.ralm = RALM(config.tslm, config.ralm_layers) if config.ralm in ("full", "no_history") else None
        self.locenc = LocEnc(config.locenc, dim)
        self.locdit = LocDiT(config.locdit, dim)
        self.locdit.cond_proj.requires_grad_(config.previous_patch)  # training with several processes waits for every gradient
        self.enc_to_lm_proj = nn.Linear(config.locenc.hidden, hidden)
        self.lm_to_dit_proj = nn.Linear(hidden, config.locdit.hidden)
        self.res_to_dit_proj = nn.Linear(hidden, config.locdit.hidden) if self.ralm else None
        self.stop_proj = nn.Linear(hidden, hidden)
        self.stop_head = nn.Linear(hidden, 2, bias=False)
        self.vae = (vae or AudioVAE(config.vae)).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.stop_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the LMs' weights. The VAE speaks in float32 only: `vox.load` keeps it so, `model.bfloat16()` converts it too."""
        return self.stop_head.weight.dtype

    # ---- the boxes, wired ----------------------------------------------------------------------------------------

    def embed(self, patches: Tensor) -> Tensor:
        """patches [..., P, D] → E [..., H], one embedding each."""
        return self.enc_to_lm_proj(self.locenc(patches))

    def caches(self, batch: int, capacity: int, pad: Tensor | None = None) -> tuple[KVCache | None, KVCache | None]:
        """Empty KV caches of TSLM and RALM; pad [B] int, how many positions in front of each row are empty."""
        stacks = (self.tslm, self.ralm)
        return tuple(stack and KVCache(stack.config, batch, capacity, self.device, self.dtype, pad) for stack in stacks)

    def plan(self, x: Tensor, past: Tensor, audio: Tensor, caches=(None, None)) -> tuple[Tensor, Tensor | None]:
        """Both LMs over T positions: a training pass, a prefill or one step. The ablations of the paper live here.

        Args: x [B, T, H] embeddings of text and audio; past [B, T, H] E at audio positions, zero elsewhere;
            audio [B, T] bool; caches of TSLM and RALM, which x continues.
        Returns: the plan [B, T, H] (h_FSQ at audio, raw states at text) and the residual [B, T, H], None if ablated.
        """
        states = self.tslm(x, caches[0])
        if self.config.ralm == "none":  # TSLM → LocDiT: neither bottleneck nor residual
            return states, None
        plan = torch.where(audio[..., None], self.fsq(states).to(states.dtype), states)
        if self.config.ralm == "no_residual":  # TSLM → FSQ → LocDiT
            return plan, None
        if self.config.ralm == "no_history":  # RALM without E_<i
            past = torch.zeros_like(past)
        return plan, self.ralm(plan, past, caches[1])

    def condition(self, plan: Tensor, residual: Tensor | None) -> Tensor:
        """plan and residual [..., H] → μ [..., H_dit], what LocDiT is told about the next patch."""
        mu = self.lm_to_dit_proj(plan)
        return mu if residual is None else mu + self.res_to_dit_proj(residual)

    def velocity(self, y: Tensor, mu: Tensor, t: Tensor, previous: Tensor) -> Tensor:
        """LocDiT, the previous patch shown or, ablated, hidden: y, previous [N, P, D], mu [N, H_dit], t [N] or [N, H_dit] → [N, P, D]"""
        return self.locdit(y, mu, t, previous if self.config.previous_patch else None)

    def stop_logits(self, plan: Tensor) -> Tensor:
        """plan [..., H] → logits [..., 2]: go on, or stop after the patch this plan is for."""
        return self.stop_head(F.silu(self.stop_proj(plan)))

    # ---- training ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, draw: flow.Draw | None = None) -> Losses:
        """Losses of a packed batch.

        Args: batch; draw, the N times, noises and dropped conditions for its N = batch.patches loss positions in
            row-major order (drawn from the global generator if None), and where the past is the model's own.
        """
        latents = batch.latents.to(self.dtype)
        row, i = batch.loss_mask.nonzero(as_tuple=True)  # N patches
        x = latents[row, i]  # [N, P, D]
        if draw is None:
            draw = flow.draw(len(x), *x.shape[1:], self.config.flow, device=x.device)
        draw = draw.to(x.device, x.dtype)
        past = latents if draw.own is None or not draw.own.any() else self.drawn(batch, latents, draw)
        plan, mu = self.read(batch, past)
        previous = past[row, i - 1]  # [N, P, D]
        y, v = flow.path(x, draw.noise, draw.t)
        predicted = self.velocity(y, mu * draw.keep[:, None], draw.t, previous)

        diffusion = F.mse_loss(predicted.float(), v.float())
        stop = F.cross_entropy(self.stop_logits(plan).float(), batch.stop[row, i])
        return Losses(diffusion, stop, diffusion + self.config.train.stop_weight * stop)

    def read(self, batch: Batch, past: Tensor) -> tuple[Tensor, Tensor]:
        """Both LMs over a batch whose patches are taken to be `past` [B, T, P, D] → plan [N, H], μ [N, H_dit] of its N loss positions."""
        embedded = torch.zeros(*batch.text.shape, self.config.tslm.hidden, device=past.device, dtype=self.dtype)
        embedded[batch.audio_mask] = self.embed(past[batch.audio_mask]).to(self.dtype)  # [B, T, H]
        x = self.tslm.embed(batch.text) * batch.text_mask[..., None] + embedded
        plan, residual = self.plan(x, embedded, batch.audio_mask)
        row, i = batch.loss_mask.nonzero(as_tuple=True)  # each patch is planned one position earlier
        plan = plan[row, i - 1]
        return plan, self.condition(plan, None if residual is None else residual[row, i - 1])

    @torch.no_grad()
    def drawn(self, batch: Batch, latents: Tensor, draw: flow.Draw) -> Tensor:
        """latents [B, T, P, D], where draw.own says so replaced by what the model draws there, all patches at once: after a true past,
        and with train.own_rounds above 1 again, after the past of the round before. After k rounds a sequence's first k own patches
        are what speaking would have drawn one by one (Jacobi's iteration), and the later ones are k draws deep.

        Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099; not in VoxCPM's paper). A model that was only ever shown true patches
        believes its own, and a voice of which each patch loses a little is soon lost; one that was shown its own holds on to the prompt.
        """
        own = batch.loss_mask.clone()  # [B, T]
        own[batch.loss_mask] = draw.own
        some = own.any(1)  # the others need no pass
        chosen, past = batch.rows(some), latents.clone()
        for _ in range(self.config.train.own_rounds):
            _, mu = self.read(chosen, past[some])
            mu, previous = mu[own[some][chosen.loss_mask]], past[:, :-1][own[:, 1:]]
            past[own] = flow.sample(self.velocity, mu, previous, draw.noise[draw.own], OWN_STEPS, cfg=1.0).to(past.dtype)
        return past

    # ---- use -----------------------------------------------------------------------------------------------------

    def generate(self, text, prompt_wav=None, prompt_text=None, **options):
        """Speak `text`, in the voice of `prompt_wav` if given. See `vox.generate.generate` for all options."""
        return generate(self, text, prompt_wav, prompt_text, **options)

    def stream(self, text, prompt_wav=None, prompt_text=None, **options):
        """Speak `text` patch by patch, each as soon as it is drawn. See `vox.generate.stream` for all options."""
        return stream(self, text, prompt_wav, prompt_text, **options)

    def save(self, folder, half: bool = False):
        """Write a folder that `vox.load`, and for models without ablations the official package, can read; half: as float16.

        Raises ValueError if the weights hold values that are not finite.
        """
        layout.write(folder, self.config, self.state_dict(), self.tokenizer, half)
