"""Solutions of 05_ralm: what is added to what, what is read where, and what a cut does."""

import torch


def exercise_1():
    """FSQ's output where there is audio, the raw state elsewhere; and E only where there is a patch that it stands for."""

    def ralm_input(h, h_fsq, E, audio):
        audio = audio[..., None]  # [B, T, 1]
        return torch.where(audio, h_fsq + E, h)

    return ralm_input


def check_1(answer):
    h, h_fsq, E = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    audio = torch.tensor([[False, False, True, True, True, False], [False, True, True, False, False, False]])
    yours = answer(h, h_fsq, E, audio)
    assert yours.shape == h.shape, f"[B, T, H] = {list(h.shape)} is wanted, not {list(yours.shape)}"
    assert not torch.allclose(yours[audio], (h + E)[audio], atol=1e-5), "at audio positions RALM reads h after FSQ, not the raw state"
    assert torch.allclose(yours[audio], (h_fsq + E)[audio], atol=1e-5), "at audio positions it is h_FSQ + E"
    assert torch.allclose(yours[~audio], h[~audio], atol=1e-5), "at text positions it is h alone: no FSQ, and nothing for E"


def exercise_2():
    """25 / P patches a second. LocEnc: 1 + P positions each; TSLM: one; LocDiT: 1 + P + P."""

    def positions_per_second(P):
        patches = 25 / P
        return patches * (1 + P), patches, patches * (1 + 2 * P)

    return positions_per_second


def check_2(answer):
    for P in (2, 4, 1):
        yours, true = tuple(map(float, answer(P))), exercise_2()(P)
        for name, a, b in zip(("LocEnc", "TSLM", "LocDiT"), yours, true, strict=True):
            assert abs(a - b) < 1e-6, f"with P = {P}, {name} gets {b * P / 25:g} positions for each of {25 / P:g} patches a second"


def exercise_3():
    """Patch 0 is planned at token 101, a text position; patch i > 0 at the position of patch i − 1."""

    def quantised(n, m):
        return [i > 0 for i in range(m)]

    return quantised


def check_3(answer):
    for n, m in ((5, 4), (1, 1), (0, 3)):
        yours = list(answer(n, m))
        assert len(yours) == m, f"there are {m} patches, and your list has {len(yours)} entries"
        assert not yours[0], "the first patch is planned at token 101, and FSQ does not act there"
        assert all(yours[1:]), "all others are planned where a patch stands, and FSQ acts there; the text does not matter"


def exercise_4():
    """The mean is the one constant vector with the smallest mean squared distance; zero is another constant."""

    def cut_error(X, kind):
        instead = X.mean(0) if kind == "mean" else torch.zeros(X.shape[1])
        return (X - instead).square().sum(1).mean().item()

    return cut_error


def check_4(answer):
    X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 2
    mean, zero = float(answer(X, "mean")), float(answer(X, "zero"))
    assert mean < zero, f"no constant is nearer than the mean, and yours gives {mean:.2f} for it, {zero:.2f} for zero"
    per_number = abs(zero * 3 - X.square().sum(1).mean().item()) < 1e-3
    assert not per_number, "the squared distance of two vectors is a sum over their numbers; yours is divided by H"
    for yours, kind in ((mean, "mean"), (zero, "zero")):
        true = exercise_4()(X, kind)
        assert abs(yours - true) < 1e-3 * true, f"for {kind} it is {true:.3f}, yours {yours:.3f}"


ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "Without positions its attention is blind to the order of the latents in a patch. Other patches are the language models' work, and"
    " an embedding that saw them could not be made as soon as its own patch is there, nor kept (section 1).",
    "At a text position and at 101 TSLM's raw state, plus nothing; at a patch the plan on the grid plus the patch's embedding E"
    " (section 2).",
    "The first one, planned by the raw state at 101, if there is no prompt. With a prompt it is planned at the last patch of the prompt,"
    " which is an audio position and goes through FSQ (section 3).",
    "z₍ᵢ₋₁₎ itself into LocDiT; its embedding E into RALM; and TSLM's states at the text into RALM. TSLM's cache is unrounded, too, but"
    " what is made of it at an audio position must pass the grid: FSQ blocks the way from there to RALM and to μ (section 4).",
    "The whole model was trained with both, and may have put into RALM what the plan could have said. What a model can do that never had"
    " a plan is asked by training one without it (section 7).",
)
