"""Packing: text and audio patches become one sequence per utterance (paper §3.1).

    position   0 … n−1      n          n+1 … n+m         n+m+1
    holds      text tokens  101 start  m audio patches   102 end
    loss                               flow and stop
    stop label                         1 at the last patch, else 0

Sequences are padded on the right; with causal attention the padding changes nothing to its left.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vox.text import AUDIO_END, AUDIO_START


@dataclass
class Item:
    """One utterance: text token ids [n] and latents [L, D]."""

    text: Tensor
    latents: Tensor


@dataclass
class Batch:
    """B packed sequences of T positions. Masks are boolean."""

    text: Tensor  # [B, T] token ids, 0 at audio and padding
    latents: Tensor  # [B, T, P, D], 0 at text and padding
    text_mask: Tensor  # [B, T] text tokens, start and end
    audio_mask: Tensor  # [B, T] audio patches
    loss_mask: Tensor  # [B, T] patches to learn
    stop: Tensor  # [B, T] 1 at the last patch

    @property
    def patches(self) -> int:
        """Number of patches that carry loss."""
        return int(self.loss_mask.sum())

    def to(self, device) -> "Batch":
        """The same batch on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def rows(self, part: slice | Tensor) -> "Batch":
        """Some of the sequences, a slice or a mask [B] of them, equally padded."""
        return Batch(**{name: value[part] for name, value in vars(self).items()})


def to_patches(latents: Tensor, patch: int) -> Tensor:
    """latents [L, D] → patches [⌈L/P⌉, P, D], zeros filling the last one."""
    return rearrange(F.pad(latents, (0, 0, 0, -len(latents) % patch)), "(t p) d -> t p d", p=patch)


def pack(items: list[Item], patch: int, max_length: int | None = None) -> Batch:
    """Pack utterances into one batch, each [text, 101, patches, 102], padded on the right.

    Args: items, each text [n] and latents [L, D]; patch P; max_length, positions a sequence may have.
    Raises ValueError for an empty list, an item without audio, or one that is too long (longer sequences are never cut:
    a cut one would teach the model not to stop).
    """
    if not items:
        raise ValueError("pack needs at least one item")
    patches = [to_patches(item.latents, patch) for item in items]
    lengths = [len(item.text) + len(audio) + 2 for item, audio in zip(items, patches, strict=True)]
    if max_length is not None and max(lengths) > max_length:
        raise ValueError(f"a sequence of {max(lengths)} positions does not fit max_length {max_length}: drop or split that utterance")
    shape = len(items), max(lengths)
    text, stop = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    text_mask, audio_mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    latents = torch.zeros(*shape, patch, items[0].latents.shape[1])
    for b, (item, audio) in enumerate(zip(items, patches, strict=True)):
        if not len(audio):
            raise ValueError(f"item {b} has no audio")
        start = len(item.text) + 1  # the first patch
        end = start + len(audio)
        text[b, :start] = torch.cat((item.text, torch.tensor([AUDIO_START])))
        text[b, end] = AUDIO_END
        text_mask[b, :start] = text_mask[b, end] = True
        latents[b, start:end], audio_mask[b, start:end] = audio, True
        stop[b, end - 1] = 1
    return Batch(text, latents, text_mask, audio_mask, audio_mask.clone(), stop)
