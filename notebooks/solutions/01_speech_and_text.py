"""Solutions of notebook 01: what each exercise asks for, and how an answer is checked."""

import torch
from torch.nn import functional as F


def exercise_1():
    """What lies above half the rate folds down: R − f."""
    return 16000 - 9000


def check_1(answer):
    assert answer != 9000, "16,000 samples a second hold nothing above 8,000 Hz"
    assert answer != 1000, "it folds around half the rate: as far below 8,000 as it was above"
    assert answer == 7000, f"what lies above half the rate folds down to R − f, which is not {answer}"


def exercise_2():
    """A bin is R / n_fft wide: which power of two makes that 25 Hz or less?"""
    n_fft = 1024
    return n_fft, 1000 * n_fft / 16000


def check_2(answer):
    n_fft, milliseconds = answer
    assert 16000 / n_fft <= 25, f"n_fft {n_fft} has bins of {16000 / n_fft:.1f} Hz; a quarter of 100 Hz is 25"
    assert n_fft == 1024, f"{n_fft} is more than needed, or no power of two"
    assert abs(milliseconds - 64) < 0.1, f"{n_fft} samples at 16,000 a second are not {milliseconds} ms"


def exercise_3():
    """Samples to latents (640 each), latents to patches, both rounded up; then text, 101, patches, 102."""

    def positions(n, N, P):
        latents = -(-N // 640)
        return n + 1 + -(-latents // P) + 1

    return positions


def check_3(positions):
    for n, N, P, true in ((5, 640, 1, 8), (23, 48000, 2, 63), (23, 48001, 2, 63), (23, 48641, 4, 45), (1, 1, 4, 4)):
        found = positions(n, N, P)
        assert found != true - 2, "the marks 101 and 102 are positions, too"
        assert found == true, f"{n} tokens, {N} samples, P = {P}: {true} positions, not {found} (the last latent and patch are filled up)"


def exercise_4():
    """The last patch is audio, and what follows it is not."""

    def stop_labels(audio_mask):
        after = F.pad(audio_mask[:, 1:], (0, 1))  # what the next position holds
        return (audio_mask & ~after).long()

    return stop_labels


def check_4(stop_labels):
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]]).bool()
    true = torch.zeros(4, 7).long()
    true[torch.arange(4), torch.tensor([4, 1, 5, 6])] = 1
    found = stop_labels(mask)
    assert found.shape == mask.shape, f"one label for each position: {list(mask.shape)}, not {list(found.shape)}"
    assert not torch.equal(found.long()[:3], true[:3].roll(-1, 1)), "it sits at the last patch itself and is read one position earlier"
    assert not torch.equal(found.long()[:3], true[:3].roll(1, 1)), "that is the position after the last patch, the one of token 102"
    assert torch.equal(found.long()[:3], true[:3]), f"for the mask {mask[0].int().tolist()} the labels are {true[0].tolist()}"
    assert torch.equal(found.long(), true), "a row may also end with its last patch, with nothing behind it"


def exercise_5():
    """Each but the last is filled up to whole patches and followed by the pause."""

    def join_all(wavs, samples):
        pause = max(1, round(0.3 * 16000 / samples)) * samples
        parts = [F.pad(wav, (0, -len(wav) % samples + pause)) for wav in wavs[:-1]]
        return torch.cat([*parts, wavs[-1]])

    return join_all


def check_5(join_all):
    for samples, pause in ((2560, 5120), (1280, 5120), (640, 5120), (16000, 16000)):
        wavs = [torch.full((length,), float(k + 1)) for k, length in enumerate((3 * samples, samples + 1, 2 * samples - 1))]
        found = join_all(wavs, samples)
        starts = [int((found == k + 1).nonzero()[0]) if (found == k + 1).any() else None for k in range(3)]
        assert None not in starts, "an utterance is missing"
        assert not any(start % samples for start in starts), f"each begins at the start of a patch of {samples}; yours begin at {starts}"
        assert starts == [0, 3 * samples + pause, 5 * samples + 2 * pause], f"a pause of {pause} samples after whole patches: not {starts}"
        assert len(found) == starts[2] + len(wavs[2]), "nothing follows the last utterance: its filling is left to `pack`"
    one = torch.ones(1000)
    assert torch.equal(join_all([one], 640), one), "one utterance alone stays as it is"


ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "A bin of R / N Hz needs N / R seconds of sound: narrow bins look long (section 3).",
    "12.5: 640 samples make a latent and two latents a patch, and the cost of a language model grows with its positions (section 4).",
    "Texts and voices: validation (seen voices, new texts) asks whether it reads, test (new voices too) whether it clones (section 5).",
    "At the patch before it; at token 101 if there is only one (section 7).",
    "It has only seen speech end after a sentence, never go on with text that is still unspoken (section 8).",
)
