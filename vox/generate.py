"""Speaking: from a text and perhaps a voice to sound, whole or patch by patch, one sentence or many (paper §3.1, §3.3).

    text   → pieces that are not too long → `vox.loop` draws patches → the causal decoder turns each into samples, once

Cloning is continuation: the prompt's text stands before the text to speak and the prompt's patches stand before the
patches to draw, so the model goes on in the voice it believes it has been using.

Notable choices
- `stream` and `generate` are one computation: both decode with a decoder that keeps its state, one patch or many at a time;
- the decoder starts from the last two prompt patches, whose sound is cut off: no click where the prompt ends;
- a text longer than half of what training showed is spoken in pieces; without a prompt the first is the prompt of the others, unless it
  was cut off or leaves too little room: a piece spoken freely is better than one that breaks off;
- silence is given out only once sound follows it: what ends a speech is cut, what runs on ends it.
"""

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vox.audio import Speech
from vox.loop import Line, draw_patches
from vox.prompts import SILENT, Prompt, read_prompt
from vox.text import join_texts, split_text
from vox.vae_stream import DecoderStream

CONTEXT = 2  # prompt patches the decoder warms up on
PATCHES_PER_TOKEN, SPARE_PATCHES = 6, 10  # a text of n tokens may last 6·n + 10 patches; from 6·n on it is a bad case
ROWS = 16  # sentences in the loop at once, at most
CHUNK = 16  # patches decoded at once where nobody waits for the first
QUIET = 0.01  # a patch is silent 40 dB below the loudest one so far, and below SILENT in any case
TAIL, RUNAWAY = 0.5, 2.0  # seconds of silence that may end a speech, and that do end it


class Sound:
    """The samples of one line, decoded as they are asked for; silence is held back until sound follows it."""

    def __init__(self, model, line: Line):
        self.line, self.decoder = line, DecoderStream(model.vae)
        self.samples, self.seconds = model.config.patch_samples, model.config.patch_seconds()
        self.loudest, self.decoded, self.held = SILENT / QUIET, 0, []
        if line.prompt is not None:
            self.decode(line.prompt[-CONTEXT:])

    @torch.no_grad()
    def decode(self, patches: Tensor) -> Tensor:
        """patches [m, P, D] → wav [m, P · hop]. Raises FloatingPointError where it is not finite."""
        wav = self.decoder(patches.flatten(0, 1).mT[None].float())[0, 0]
        if not wav.isfinite().all():
            raise FloatingPointError("the speech is not finite: the weights are damaged, or too large for their number format")
        return wav.view(-1, self.samples)

    def __call__(self) -> Tensor:
        """Decode what has been drawn since the last call → wav [N], as far as it may be given out."""
        out = []
        for wav in self.decode(torch.stack(self.line.patches[self.decoded :])):
            self.decoded += 1
            level = wav.square().mean().sqrt().item()
            self.loudest = max(self.loudest, level)
            self.held.append(wav)
            if level > QUIET * self.loudest:
                out, self.held = out + self.held, []
            elif len(self.held) * self.seconds > RUNAWAY:
                self.line.ended_by = "silence"
                break
        if self.line.ended_by:
            kept = min(len(self.held), math.ceil(TAIL / self.seconds))
            out, self.decoded, self.held = out + self.held[:kept], self.decoded - len(self.held) + kept, []
        return torch.cat(out).cpu() if out else torch.zeros(0)


class Clock:
    """Where the time of a call goes. Use as `with clock("vae"): …`."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.began = device, {"lm_dit": 0.0, "vae": 0.0}, time.perf_counter()

    def now(self) -> float:
        """Seconds since the call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.began

    @contextlib.contextmanager
    def __call__(self, part: str):
        start = self.now()
        yield
        self.seconds[part] += self.now() - start


def _speak(model, lines: list[Line], clock: Clock, chunk: int, **options) -> Iterator[tuple[Line, Tensor]]:
    """Draw and decode: yields a line and its next samples [N], whenever `chunk` patches have come or it ends."""
    sounds, loop = {line: Sound(model, line) for line in lines}, draw_patches(model, lines, **options)
    while True:
        with clock("lm_dit"):
            drawn = next(loop, None)
        if drawn is None:
            return
        for line in drawn:
            if line.ended_by or len(line.patches) % chunk == 0:
                with clock("vae"):
                    wav = sounds[line]()
                yield line, wav


class Piece:
    """A part of a text that is spoken in one go: its line, its sound, and how often it was tried."""

    def __init__(self, model, text: str, prompt: Prompt | None, seed: int | None, limit: int | None):
        """limit: patches at most, whatever the text."""
        self.model, self.text = model, text
        self.bad = PATCHES_PER_TOKEN * len(_tokens(model, text))  # patches
        self.most = self.bad + SPARE_PATCHES if limit is None else min(self.bad + SPARE_PATCHES, limit)
        self.place(prompt)
        self.generator, self.tries = torch.Generator(), 0
        self.generator.manual_seed(seed) if seed is not None else self.generator.seed()

    def place(self, prompt: Prompt | None, least: float = 1):
        """Put the text after a prompt, or after none. Raises ValueError, and changes nothing, if `least` patches have no room then."""
        tokens = _tokens(self.model, self.text if prompt is None else join_texts(prompt.text, self.text))
        positions = self.model.config.max_length
        room = positions - len(tokens) - 1 - (0 if prompt is None else len(prompt.patches))
        if room < least:
            raise ValueError(f"text and prompt fill the model's {positions} positions: shorten one of them")
        self.prompt, self.tokens, self.cap = prompt, tokens, min(self.most, room)

    def follow(self, first: "Piece"):
        """Go on from what another piece said, unless it failed (this one would fail too), was cut off (its text says more than its
        patches), or leaves too little room to speak this text at the same pace."""
        if not first.failed and first.line.ended_by != "cap":
            pace = len(first.patches) / first.bad
            with contextlib.suppress(ValueError):
                self.place(Prompt(first.text, first.patches), min(pace * self.bad + SPARE_PATCHES, self.most))

    def begin(self) -> Line:
        """A fresh line; further noise of the same generator."""
        self.line = Line(self.tokens, self.prompt and self.prompt.patches, self.cap, self.generator)
        self.wavs, self.tries = [], self.tries + 1
        return self.line

    @property
    def wav(self) -> Tensor:
        """[N]"""
        return torch.cat(self.wavs)

    @property
    def patches(self) -> Tensor:
        """What `wav` was decoded from [m, P, D]."""
        return torch.stack(self.line.patches)[: len(self.wav) // self.model.config.patch_samples]

    @property
    def failed(self) -> bool:
        """Too long for its text, or no sound at all."""
        return len(self.line.patches) >= self.bad or not (self.wav.abs() > SILENT).any()


def _run(pieces: list[Piece], clock: Clock, attempts: int, bar, **options):
    """Speak pieces, ROWS at a time and those of like length together; bad ones again, up to `attempts` times in all."""
    pieces = sorted(pieces, key=lambda piece: piece.cap)
    for first in range(0, len(pieces), ROWS):
        todo = group = pieces[first : first + ROWS]
        while todo:
            lines = {piece.begin(): piece for piece in todo}
            for line, wav in _speak(group[0].model, list(lines), clock, CHUNK, **options):
                lines[line].wavs.append(wav)
            todo = [piece for piece in todo if piece.failed and piece.tries < attempts]
        bar.update(len(group))


def _tokens(model, text: str) -> Tensor:
    return torch.tensor(model.tokenizer.encode(text), dtype=torch.long)


@contextlib.contextmanager
def _eval(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check(model, text, cfg, steps, temperature, sway, max_seconds, attempts=1):
    if not isinstance(text, str):
        raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}")
    if steps < 1 or attempts < 1:
        raise ValueError(f"steps and attempts must be at least 1, not {steps} and {attempts}")
    if not (math.isfinite(cfg) and math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"cfg must be a number and temperature one that is not negative, not {cfg} and {temperature}")
    if not -1 <= sway <= 1 / (math.pi / 2 - 1):  # beyond, the slope of `flow.sway_grid` changes sign at one of its ends
        raise ValueError(f"sway must lie between -1 and 1.75, or the walk turns back on its way, not {sway}")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, not {max_seconds}")
    if (dtype := next(model.vae.parameters()).dtype) != torch.float32:
        raise ValueError(f"the VAE works in float32 only, not in {dtype}: call model.vae.float(), or give vox.load the dtype")


def _limit(model, max_seconds: float | None) -> int | None:
    """max_seconds in patches."""
    return None if max_seconds is None else math.ceil(max_seconds / model.config.patch_seconds())


def _seed(seed: int | None, item: int, piece: int) -> int | None:
    return None if seed is None else seed + item + 1_000_003 * piece


def generate(
    model,
    text: str | list[str],
    prompt_wav=None,
    prompt_text: str | list[str] | None = None,
    *,
    cfg: float = 2.0,
    steps: int = 10,
    temperature: float = 1.0,
    sway: float = 1.0,
    zero_star: bool = True,
    seed: int | None = None,
    max_seconds: float | None = None,
    attempts: int = 3,
    progress: bool = True,
) -> Speech | list[Speech]:
    """Speak a text, or the texts of a list together.

    Args: text; prompt_wav, a voice to clone: file, waveform [N] at the model's rate, or Speech; prompt_text, its words (for a
        list of texts, one prompt for all or a list of as many, None where there is none);
        cfg guidance (1: none; paper: 2.0); steps of the flow (paper: 10); temperature of the noise; sway, how much smaller the
        steps are near noise (0: all even), and zero_star, CFG-Zero* or plain guidance, both as in `flow.sample`; seed, the same
        speech every time on one machine (text k of a list: seed + k); max_seconds, cut off there (default: 6 patches per token
        and 10 more), whatever the number of pieces; attempts, tries in all if a speech is 6 patches per token long or silent, as in
        the released code; progress, show a bar if there are several sentences.
    Returns: Speech with wav [N], latents [L, D] and stats: patches, ended_by ("stop", "cap", or "silence" after 2 s of it;
        silence at the end is cut to 0.5 s; of a text in pieces, how the first one ended that did not "stop"), stop (probability per
        patch), attempts; and of the whole call seconds_lm_dit, seconds_vae and rtf (seconds of work per second of speech); a list of
        them for a list.
    Raises ValueError for an empty or unreadable text, a prompt without its text (or the reverse), a silent or too short
        prompt, a sequence longer than the model's max_length, options out of range.
    """
    texts = text if isinstance(text, list) else [text]
    for each in texts:
        _check(model, each, cfg, steps, temperature, sway, max_seconds, attempts)
    clock = Clock(model.device)
    options = dict(cfg=cfg, steps=steps, temperature=temperature, sway=sway, zero_star=zero_star)
    with _eval(model):
        prompts = _prompts(model, prompt_wav, prompt_text, len(texts))
        limit, longest = _limit(model, max_seconds), model.config.train.max_seconds / 2
        spoken = [  # the pieces of each text
            [Piece(model, part, prompts[k], _seed(seed, k, j), limit) for j, part in enumerate(split_text(each, longest))]
            for k, each in enumerate(texts)
        ]
        total = sum(map(len, spoken))
        with tqdm(total=total, unit="sentence", disable=not progress or total < 2, leave=False) as bar:
            _run([piece for pieces in spoken for piece in (pieces if pieces[0].prompt else pieces[:1])], clock, attempts, bar, **options)
            waiting = []  # without a prompt, the first piece is the prompt of the others
            for first, *others in spoken:
                for piece in others:
                    if not piece.tries:
                        piece.follow(first)
                        waiting.append(piece)
            _run(waiting, clock, attempts, bar, **options)
    speeches = [_speech(each, pieces, limit) for each, pieces in zip(texts, spoken, strict=True)]
    seconds = sum(speech.seconds for speech in speeches)
    stats = {f"seconds_{part}": value for part, value in clock.seconds.items()}
    stats["rtf"] = sum(clock.seconds.values()) / seconds if seconds else math.inf
    for speech in speeches:
        speech.stats.update(stats)
    return speeches if isinstance(text, list) else speeches[0]


def _speech(text: str, pieces: list[Piece], limit: int | None) -> Speech:
    """What the pieces of a text said, up to `limit` patches."""
    config = pieces[0].model.config
    whole = torch.cat([piece.patches for piece in pieces])  # [m, P, D]
    patches = whole[:limit]
    endings = ["cap"] if len(patches) < len(whole) else [piece.line.ended_by for piece in pieces]
    stats = dict(
        patches=len(patches),
        ended_by=next((ending for ending in endings if ending != "stop"), "stop"),
        stop=[stop for piece in pieces for stop in piece.line.stop[: len(piece.patches)]][:limit],
        attempts=max(piece.tries for piece in pieces),
    )
    wav = torch.cat([piece.wav for piece in pieces])[: len(patches) * config.patch_samples]
    return Speech(wav.float(), config.vae.sample_rate, text, patches.flatten(0, 1).float().cpu(), stats)


def _prompts(model, wav, text, count: int) -> list[Prompt | None]:
    """One prompt for each of `count` texts."""
    if not isinstance(wav, list) and not isinstance(text, list):
        return [read_prompt(model, wav, text)] * count
    if not (isinstance(wav, list) and isinstance(text, list) and len(wav) == len(text) == count):
        raise ValueError(f"prompt_wav and prompt_text must be lists of {count}, one for each text, or one prompt for all")
    return [read_prompt(model, *each) for each in zip(wav, text, strict=True)]


def stream(
    model,
    text: str,
    prompt_wav=None,
    prompt_text: str | None = None,
    *,
    cfg: float = 2.0,
    steps: int = 10,
    temperature: float = 1.0,
    sway: float = 1.0,
    zero_star: bool = True,
    seed: int | None = None,
    max_seconds: float | None = None,
) -> Iterator[Speech]:
    """Speak a text and hand out each patch as soon as it is there. Arguments and errors (at once) as in `generate`.

    Yields: Speech of one patch, or of several after a pause (silence is held back until sound follows it), with stats: stop,
        the probability that it is the last, and seconds since the call. Together they are what `generate` gives in one attempt.
    """
    _check(model, text, cfg, steps, temperature, sway, max_seconds)
    clock, rate, samples = Clock(model.device), model.config.vae.sample_rate, model.config.patch_samples
    options = dict(cfg=cfg, steps=steps, temperature=temperature, sway=sway, zero_star=zero_star)
    with _eval(model):
        prompt, limit = read_prompt(model, prompt_wav, prompt_text), _limit(model, max_seconds)
        parts = split_text(text, model.config.train.max_seconds / 2)
        pieces = [Piece(model, part, prompt, _seed(seed, 0, j), limit) for j, part in enumerate(parts)]

    def speak() -> Iterator[Speech]:
        first, left = pieces[0], math.inf if limit is None else limit  # patches
        while pieces:
            piece = pieces.pop(0)
            if prompt is None and piece is not first:
                piece.follow(first)
            with _eval(model):
                for line, wav in _speak(model, [piece.begin()], clock, 1, **options):
                    done, fresh = sum(map(len, piece.wavs)) // samples, min(len(wav) // samples, left)  # patches
                    piece.wavs.append(wav)
                    if fresh:
                        latents = torch.stack(line.patches[done : done + fresh]).flatten(0, 1).float().cpu()  # [L, D]
                        stats = dict(stop=line.stop[-1], seconds=clock.now())
                        yield Speech(wav[: fresh * samples].float(), rate, piece.text, latents, stats)
                    left -= fresh
                    if not left:
                        return

    return speak()
