"""Solutions of notebook 03: what each exercise asks for, and how an answer is checked."""

import math

import torch


def exercise_1():
    """2s + 1 levels: which s makes 9? One dimension of 9 levels carries log₂ 9 bits."""
    scale = 4
    return scale, 256 * math.log2(2 * scale + 1) * 12.5


def check_1(answer):
    scale, bits = answer
    assert scale != 9, "a scale of 9 gives 9 levels above zero, 9 below, and zero itself"
    assert scale == 4, f"a scale of {scale} gives {2 * scale + 1} levels"
    assert abs(bits / 12.5 - 256 * math.log2(9)) < 1, "256 dimensions of log₂ 9 bits each, 12.5 times a second"


def exercise_2():
    """Where does 9 · tanh(h) round to 9? Halfway between 8 and 9 is the border."""
    return math.atanh(1 - 1 / 18)


def check_2(answer):
    h = float(answer)
    assert abs(h - math.atanh(8.5 / 9)) < 0.01, f"the border is where 9 · tanh(h) is 8.5; at {h:.3f} it is {9 * math.tanh(h):.3f}"


def exercise_3():
    """`torch.rand_like` is uniform in [0, 1): shift it to be centred on zero and scale it to the width of a step, 1 / s."""

    def noisy(z, s):
        return z + (torch.rand_like(z) - 0.5) / s

    return noisy


def check_3(noisy):
    z = torch.zeros(20000, requires_grad=True)
    for s in (1, 9):
        noise = noisy(z, s)
        assert noise.shape == z.shape, f"the shape changed from {list(z.shape)} to {list(noise.shape)}"
        assert noise.abs().max() <= 0.5 / s + 1e-6, f"a step of s = {s} is {1 / s:.3f} wide; your noise reaches {noise.abs().max():.3f}"
        assert noise.abs().max() > 0.49 / s, f"your noise reaches only {noise.abs().max():.3f}; half a step is {0.5 / s:.3f}"
        assert noise.mean().abs() < 0.02 / s, "the noise should be zero on average"
        assert abs(noise.std() * s - 12**-0.5) < 0.02, "uniform: every value of the step equally often"
    (slope,) = torch.autograd.grad(noisy(z, 9).sum(), z)
    assert torch.equal(slope, torch.ones_like(z)), "the gradient should be 1: noise is only added"


def exercise_4():
    """Dividing by the base gives the next digit, the remainder is this one. Levels begin at −s, digits at 0."""

    def levels(number, s, d):
        base = 2 * s + 1
        return torch.stack([number // base**k % base - s for k in range(d)], -1)

    return levels


def check_4(levels):
    for s, d in ((2, 2), (9, 3), (1, 5)):
        true = torch.randint(-s, s + 1, (4, 7, d), generator=torch.Generator().manual_seed(0))
        number = ((true + s) * (2 * s + 1) ** torch.arange(d)).sum(-1)
        found = levels(number, s, d)
        assert found.shape == true.shape, f"numbers [4, 7] should become levels [4, 7, {d}], not {list(found.shape)}"
        assert found.min() >= -s and found.max() <= s, f"levels begin at −{s}, yours reach from {found.min()} to {found.max()}"
        assert not torch.equal(found, true.flip(-1)), "the digits are in the wrong order: the first dimension is the smallest place"
        assert torch.equal(found, true), f"with s = {s}, number {number[0, 0]} stands for {true[0, 0].tolist()}, not {found[0, 0].tolist()}"


def exercise_5():
    """Share of each level in each dimension, then −Σ p log₂ p; an absent level adds nothing."""

    def effective(plans, s):
        share = torch.stack([(plans == level).float().mean(0) for level in range(-s, s + 1)])  # [2s + 1, d]
        return 2 ** -(share * share.clamp(min=1e-9).log2()).sum(0)

    return effective


def check_5(effective):
    n = torch.arange(600)
    plans = torch.stack((n * 0, n % 2 * 9, n % 3 - 1, (n % 4 == 0) * 1), -1)
    found, true = effective(plans, 9), torch.tensor([1.0, 2.0, 3.0, 2 ** (0.25 * 2 + 0.75 * math.log2(4 / 3))])
    assert found.shape == (4,), f"one number for each dimension: [4], not {list(found.shape)}"
    assert found.isfinite().all(), "a level that is never used adds 0 · log 0, which is not a number: it should add nothing"
    assert abs(found[0] - 1) < 1e-3, f"a dimension that never changes has 1 effective level, not {found[0]:.2f}"
    assert torch.allclose(found, true, atol=1e-3), f"columns of 1, 2, 3 and (3 : 1) levels: {true.tolist()}, not {found.tolist()}"


ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "19: nine above zero, nine below, and zero (section 1).",
    "A staircase has slope zero, so the encoder gets no gradient; the decoder lies behind it and learns what the codes of a random"
    " encoder mean (sections 2 and 6).",
    "A row of a learned table that is nobody's nearest, gets no gradient and never moves; FSQ's grid has no parameters (section 4).",
    "The text into RALM, E_<i into RALM, z_{i−1} into LocDiT, and the first patch without a prompt, planned at token 101 (section 9).",
    "For stability over many steps: in the ablation (§4.3) the row without rounding is worst on hard texts (section 7).",
)
