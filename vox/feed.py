"""What a training step sees: which utterances, which crops, which noise.

    order      one epoch is a permutation; within wide windows it is sorted by length and cut into batches, the batches shuffled
    join       a share of the sequences are two or three utterances of one voice with a short pause (cloning is continuation)
    encode     the frozen VAE turns every utterance into latents once; they are kept on disk
    draw       flow times, noises and dropped conditions of the global batch, and where a sequence goes on from the model's own patches

Notable choices
- everything random about a step is a function of (seed, step), drawn on the CPU for the global batch, of which each process
  takes its slice: two processes train on what one would, and a resumed run goes on where it was without replaying anything;
- a pause is encoded, not invented: every utterance is encoded twice, at the start of a recording and after `PAUSE` seconds of
  silence, both with a tail of silence. Joining takes a part of the tail of the first and the second version of the next, so no
  encoder state at a joint belongs to the start of a file;
- pauses last from nothing to `PAUSE`, drawn per joint: after a full one the patch before tells nothing of the voice, and a
  prompt cut off at its last sound must not be new to the model;
- utterances that are too long are left out, never cut: a cut one would teach the model not to stop.
"""

import hashlib
import warnings
from collections import defaultdict
from functools import reduce
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vox import audio, flow, state
from vox.batch import Batch, Item, pack
from vox.config import TrainConfig, VAETrainConfig, to_dict
from vox.files import cache_folder
from vox.text import join_texts

PAUSE = 0.3  # seconds between joined utterances at most, rounded to whole patches
WINDOW = 32  # batches sorted by length together
SHARD = 256  # utterances per file of latents
SCALE_ROWS = 64  # recordings the scale of the latents is measured on
TOGETHER = 8  # utterances encoded at once on an accelerator; on a CPU one by one is faster


def generator(*key) -> torch.Generator:
    """A CPU generator that depends on its key alone: `generator(seed, "flow", step)`."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def part(total: int, rank: int, world: int) -> slice:
    """The slice of `total` sequences that process `rank` of `world` takes; sizes differ by one at most."""
    return slice(rank * total // world, (rank + 1) * total // world)


class Order:
    """Which sequences each step trains on: `order[step]` → a global batch, a list of tuples of rows.

    Args: rows, how many there are; batch, sequences per step; seed; length(sequence), what to sort by;
        extend(row, rng), the sequence that begins with a row.
    An epoch has ⌊rows / batch⌋ full batches; the few rows left over wait for the next one. With fewer rows than `batch`
    an epoch is one batch in which rows repeat.
    """

    def __init__(self, rows: int, batch: int, seed: int, length=len, extend=lambda row, rng: (row,)):
        self.rows, self.batch, self.seed, self.length, self.extend = rows, batch, seed, length, extend
        self.per_epoch = max(1, rows // batch)
        self.epoch = None

    def __getitem__(self, step: int) -> list[tuple[int, ...]]:
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.batches, self.epoch = self.shuffled(generator(self.seed, "epoch", epoch)), epoch
        return self.batches[index]

    def shuffled(self, rng: torch.Generator) -> list[list[tuple[int, ...]]]:
        """The batches of one epoch."""
        rounds = -(-self.batch // self.rows)
        order = torch.cat([torch.randperm(self.rows, generator=rng) for _ in range(rounds)])[: self.per_epoch * self.batch]
        sequences = [self.extend(row, rng) for row in order.tolist()]
        batches = []
        for start in range(0, len(sequences), WINDOW * self.batch):
            near = sorted(sequences[start : start + WINDOW * self.batch], key=self.length)
            batches += [near[i : i + self.batch] for i in range(0, len(near), self.batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng).tolist()]


# ---- waveforms -------------------------------------------------------------------------------------------------------


class Waves:
    """The waveforms of a dataset (column audio) or of a list of tensors [N]: `waves[i]` → [N] float32 at sample_rate."""

    def __init__(self, data, sample_rate: int):
        self.plain = isinstance(data, list)
        self.data = data if self.plain else data.select_columns(["audio"])
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Tensor:
        if self.plain:
            return self.data[row].flatten().float()
        recording = self.data[row]["audio"]
        return audio.load(recording["bytes"] or recording["path"], self.sample_rate)


def data_hash(data) -> str:
    """SHA-256 of training data: equal hash, equal content. Takes a dataset, or a list of waveforms or of Items."""
    digest = hashlib.sha256()
    if isinstance(data, list):
        for row in data:
            digest.update(state.tensor_hash(vars(row) if isinstance(row, Item) else {"wav": row}).encode())
        return digest.hexdigest()
    columns = [name for name in ("audio", "text", "speaker") if name in data.column_names]
    for row in data.select_columns(columns):
        recording = row["audio"]
        digest.update(recording["bytes"] or Path(recording["path"]).read_bytes())
        digest.update(f"\0{row.get('text')}\0{row.get('speaker')}\0".encode())
    return digest.hexdigest()


class ClipFeed:
    """Random clips for the AudioVAE. `feed(step, rank, world)` → wav [b, 1, N], noise [b, D, L], share of the global batch."""

    def __init__(self, data, config: VAETrainConfig, vae_config):
        self.waves, self.config, self.dim, self.hop = Waves(data, vae_config.sample_rate), config, vae_config.latent_dim, vae_config.hop
        if not len(self.waves):
            raise ValueError("no training data: the list or dataset is empty")
        self.frames = max(1, round(config.clip_seconds * vae_config.frame_rate))
        self.order = Order(len(self.waves), config.batch, config.seed)

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, float]:
        rng, batch = generator(self.config.seed, "clips", step), self.config.batch
        starts = torch.rand(batch, generator=rng)
        noise = torch.randn(batch, self.dim, self.frames, generator=rng)
        mine = part(batch, rank, world)
        clips = [self.clip(row, start) for (row,), start in zip(self.order[step][mine], starts[mine].tolist(), strict=True)]
        return torch.stack(clips)[:, None], noise[mine], len(clips) / batch

    def clip(self, row: int, start: float) -> Tensor:
        """`frames` latents' worth of samples from a recording; start in [0, 1); short recordings are followed by silence."""
        wav, length = self.waves[row], self.frames * self.hop
        first = int(start * max(1, len(wav) - length + 1))
        wav = wav[first : first + length]
        return F.pad(wav, (0, length - len(wav)))


@torch.inference_mode()
def latent_scale(vae, waves: Waves, seed: int, rows: int = SCALE_ROWS) -> Tensor:
    """Standard deviation [D] of a VAE's latents over some recordings.

    Channels that hardly move (below a tenth of the median) count as a tenth of it: the noise in them is not to be blown up.
    """
    deviation = statistics(vae, waves, seed, rows)[0].std(1)
    return deviation.clamp(min=0.1 * deviation.median()).clone()


@torch.no_grad()  # and not inference_mode: what comes back may be trained
def without_silence(vae, data, seed: int = 0):
    """The AudioVAE without the latent channels that say less than their own noise on a dataset of `vox.corpus`: μ moves less than σ.

    If none says more, it is hardly trained, and comes back as it is.
    """
    mu, logvar = statistics(vae, Waves(data, vae.config.sample_rate), seed, SCALE_ROWS)
    speaks = mu.var(1) > logvar.exp().mean(1)
    return vae.keep(speaks, mu.mean(1)) if speaks.any() else vae


def statistics(vae, waves: Waves, seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """μ and log σ² of some recordings, end to end, each [D, L] float32."""
    order = torch.randperm(len(waves), generator=generator(seed, "scale"))[:rows].tolist()
    device = next(vae.parameters()).device
    mu, logvar = torch.cat([torch.cat(vae.encode_stats(waves[row][None, None].to(device))) for row in order], 2).float()  # [2, D, L]
    return mu, logvar


# ---- utterances ------------------------------------------------------------------------------------------------------


class Items:
    """A plain list of packed items: nothing is encoded and, without speakers, nothing joined."""

    def __init__(self, items: list[Item], patch: int):
        self.items, self.patch = items, patch

    def __len__(self) -> int:
        return len(self.items)

    def companions(self, row: int) -> list[int]:
        """Rows of the same speaker."""
        return [row]

    def frames(self, sequence: tuple[int, ...]) -> int:
        """Latents of a sequence."""
        return len(self.items[sequence[0]].latents)

    def tokens(self, sequence: tuple[int, ...]) -> Tensor:
        """Token ids [n] of a sequence."""
        return self.items[sequence[0]].text

    def item(self, sequence: tuple[int, ...]) -> Item:
        """A sequence, ready to pack."""
        return self.items[sequence[0]]


def longest_pause(config) -> int:
    """Latents of `PAUSE`, in whole patches and at least one, of a model's config."""
    return config.patch * max(1, round(PAUSE / config.patch_seconds()))


class Utterances:
    """The rows of a dataset, encoded once by the model's VAE and kept on disk.

    Args: model (VoxCPM); data with columns audio, text and, for joining, speaker; config; accelerator, whose processes
        share the encoding; fingerprint, `data_hash(data)`. Rows without a speaker ("") are never joined.
    """

    def __init__(self, model, data, config: TrainConfig, accelerator, fingerprint: str, progress: bool = True):
        self.tokenizer, self.patch = model.tokenizer, model.config.patch
        self.quiet = longest_pause(model.config) if config.join else 0
        self.texts = list(data["text"])
        self.ids = [torch.tensor(self.tokenizer.encode(text), dtype=torch.long) for text in self.texts]
        named = list(data["speaker"]) if "speaker" in data.column_names else [""] * len(data)
        self.speakers = [speaker or row for row, speaker in enumerate(named)]
        self.by_speaker = defaultdict(list)
        for row, speaker in enumerate(self.speakers):
            self.by_speaker[speaker].append(row)
        vae = model.vae
        key = f"{state.tensor_hash(vae.state_dict())} {to_dict(vae.config)} {fingerprint} {self.patch} {self.quiet}"
        folder = cache_folder() / "latents" / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.latents = encoded(vae, Waves(data, vae.config.sample_rate), self.patch, self.quiet, folder, accelerator, progress)

    def __len__(self) -> int:
        return len(self.texts)

    def companions(self, row: int) -> list[int]:
        """Rows of the same speaker."""
        return self.by_speaker[self.speakers[row]]

    def pauses(self, sequence: tuple[int, ...]) -> list[int]:
        """Latents of silence after each utterance of a sequence: none to all of the tail in whole patches, none after the last."""
        rng = generator("pauses", *sequence)
        longest = self.quiet // self.patch
        drawn = torch.randint(longest + 1, (len(sequence) - 1,), generator=rng).tolist()
        return [self.patch * patches for patches in drawn] + [0]

    def frames(self, sequence: tuple[int, ...]) -> int:
        """Latents of a sequence, pauses included."""
        return sum(len(self.latents[row][0]) - self.quiet + pause for row, pause in zip(sequence, self.pauses(sequence), strict=True))

    def tokens(self, sequence: tuple[int, ...]) -> Tensor:
        """Token ids [n] of a sequence, its texts joined."""
        if len(sequence) == 1:
            return self.ids[sequence[0]]
        return torch.tensor(self.tokenizer.encode(reduce(join_texts, (self.texts[row] for row in sequence))), dtype=torch.long)

    def item(self, sequence: tuple[int, ...]) -> Item:
        """A sequence, ready to pack: utterance, pause, utterance …"""
        parts = []
        for place, (row, pause) in enumerate(zip(sequence, self.pauses(sequence), strict=True)):
            latents = self.latents[row][place > 0]  # [L + quiet, D]
            parts.append(latents[: len(latents) - self.quiet + pause])
        return Item(self.tokens(sequence), torch.cat(parts))


@torch.inference_mode()
def encode(vae, wavs: list[Tensor], patch: int, quiet: int) -> list[tuple[Tensor, Tensor]]:
    """Waveforms [N] → for each two versions of its latents [L + quiet, D]: as a recording begins, and after a pause.

    L is a whole number of patches (zeros fill the last one); the tail of `quiet` latents is the pause after it. With
    quiet = 0 both are the same.
    """
    hop, device = vae.config.hop, next(vae.parameters()).device
    wavs = [F.pad(wav, (0, -len(wav) % (patch * hop) + quiet * hop)) for wav in wavs]
    lengths = [len(wav) // hop for wav in wavs]

    def latents(wavs: list[Tensor]) -> Tensor:  # [n, L, D], L that of the longest: causal, so padding changes nothing before it
        longest = max(map(len, wavs))
        batch = torch.stack([F.pad(wav, (0, longest - len(wav))) for wav in wavs])  # [n, N]
        return rearrange(vae.encode(batch[:, None].to(device)).float().cpu(), "b d l -> b l d")

    first = [z[:length].clone() for z, length in zip(latents(wavs), lengths, strict=True)]
    if not quiet:
        return [(z, z) for z in first]
    reach = -(-vae.reach() // hop)  # later latents have forgotten what came before the recording
    begins = latents([F.pad(wav[: reach * hop], (quiet * hop, 0)) for wav in wavs])[:, quiet:]
    later = [torch.cat((begin[: min(reach, len(z))], z[reach:])) for begin, z in zip(begins, first, strict=True)]
    return list(zip(first, later, strict=True))


def encoded(vae, waves: Waves, patch: int, quiet: int, folder: Path, accelerator, progress: bool) -> list[tuple[Tensor, Tensor]]:
    """`encode` for every waveform, through files in `folder`; the processes share the work, and a killed run's files are used."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [range(start, min(start + SHARD, len(waves))) for start in range(0, len(waves), SHARD)]
    paths = [folder / f"{shard.start:08d}.safetensors" for shard in shards]
    mine = list(zip(shards, paths, strict=True))[accelerator.process_index :: accelerator.num_processes]  # whatever others have done
    todo = [(shard, path) for shard, path in mine if not path.exists()]
    together = 1 if accelerator.device.type == "cpu" else TOGETHER
    for shard, path in tqdm(todo, desc="encode", unit="shard", disable=not (progress and todo and accelerator.is_main_process)):
        wavs = {row: waves[row] for row in shard}
        order = sorted(shard, key=lambda row: len(wavs[row]))
        pairs = {}
        for start in range(0, len(order), together):
            rows = order[start : start + together]
            pairs |= zip(rows, encode(vae, [wavs[row] for row in rows], patch, quiet), strict=True)
        first, later = zip(*(pairs[row] for row in shard), strict=True)
        tensors = {"first": torch.cat(first), "lengths": torch.tensor([len(z) for z in first])}
        state.write_tensors(path, tensors | ({"later": torch.cat(later)} if quiet else {}))
    accelerator.wait_for_everyone()
    latents = []
    for path in paths:
        tensors = state.read_tensors(path)
        lengths = tensors["lengths"].tolist()
        latents += zip(tensors["first"].split(lengths), tensors.get("later", tensors["first"]).split(lengths), strict=True)
    return latents


class SpeechFeed:
    """Packed batches for VoxCPM. `feed(step, rank, world)` → Batch, its Draw, share of the global batch's patches.

    Args: source, Items or Utterances; config; model_config. Raises ValueError if no utterance is short enough.
    """

    def __init__(self, source, config: TrainConfig, model_config):
        self.source, self.config, self.model = source, config, model_config
        if not len(source):
            raise ValueError("no training data: the list or dataset is empty")
        highest = max(max(source.tokens((row,)).tolist(), default=0) for row in range(len(source)))
        if highest >= model_config.vocab:
            raise ValueError(f"the texts hold token id {highest} and config.vocab is {model_config.vocab}: use the model's own tokenizer")
        self.most_frames = config.max_seconds * model_config.vae.frame_rate
        self.rows = [row for row in range(len(source)) if self.fits((row,))]
        self.dropped = len(source) - len(self.rows)
        limits = f"max_seconds {config.max_seconds} or max_length {model_config.max_length}"
        if not self.rows:
            raise ValueError(f"each of the {len(source)} utterances is longer than {limits}: split them or raise the limit")
        if self.dropped:
            warnings.warn(f"{self.dropped} of {len(source)} utterances are longer than {limits} and are left out", stacklevel=4)
        self.order = Order(len(self.rows), config.batch, config.seed, self.positions, self.extend)

    def positions(self, sequence: tuple[int, ...]) -> int:
        """Length of a packed sequence."""
        return len(self.source.tokens(sequence)) + self.patches(sequence) + 2

    def patches(self, sequence: tuple[int, ...]) -> int:
        """Audio patches of a sequence."""
        return -(-self.source.frames(sequence) // self.model.patch)

    def fits(self, sequence: tuple[int, ...]) -> bool:
        """Whether a sequence is within max_seconds and max_length."""
        return self.source.frames(sequence) <= self.most_frames and self.positions(sequence) <= self.model.max_length

    def extend(self, index: int, rng: torch.Generator) -> tuple[int, ...]:
        """The sequence that begins with a row: alone or, for the share `join`, with one or two others of the same voice."""
        sequence = (self.rows[index],)
        joins, three, *others = torch.rand(4, generator=rng).tolist()
        if joins < self.config.join:
            rows = self.source.companions(sequence[0])
            for other in others[: 1 + (three < 0.5)]:
                longer = (*sequence, rows[int(other * len(rows))])
                if longer[-1] not in sequence and self.fits(longer):
                    sequence = longer
        return sequence

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> tuple[Batch, flow.Draw, float]:
        sequences = self.order[step]
        mine = part(len(sequences), rank, world)
        batch = pack([self.source.item(sequence) for sequence in sequences[mine]], self.model.patch, self.model.max_length)
        counts = [self.patches(sequence) for sequence in sequences]
        first, last, total = sum(counts[: mine.start]), sum(counts[: mine.stop]), sum(counts)
        rng = generator(self.config.seed, "flow", step)
        draw = flow.draw(total, self.model.patch, self.model.vae.latent_dim, self.model.flow, rng)
        draw = draw._replace(own=own_patches(counts, self.config.own, rng))
        return batch, flow.Draw(*(values[first:last] for values in draw)), (last - first) / total


def own_patches(counts: list[int], share: float, rng: torch.Generator) -> Tensor:
    """Sequences of so many patches → [sum of counts] bool: of `share` of them, those from a random patch on."""
    chosen, begin = torch.rand(2, len(counts), generator=rng)
    return torch.cat([torch.arange(n) >= (int(b * n) if c < share else n) for n, c, b in zip(counts, chosen, begin, strict=True)])
