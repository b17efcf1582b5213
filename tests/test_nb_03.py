"""Notebook 03: what it defines equals vox, its Explorer draws, and its solutions pass their own checks."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions

from vox.config import FSQConfig
from vox.exercises import Exercises
from vox.fsq import FSQ, quantise

PATH = Path(__file__).parent.parent / "notebooks" / "03_fsq.ipynb"
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [((9, 256 * 12.5 * 4.25), "below")],
    2: [(2.0, "8.5")],
    3: [(lambda z, s: z + (torch.rand_like(z) - 0.5) * 2 / s, "wide")],
    4: [(lambda number, s, d: torch.stack([number // (2 * s + 1) ** k % (2 * s + 1) for k in range(d)], -1), "begin")],
    5: [(lambda plans, s: torch.tensor([float(len(column.unique())) for column in plans.T]), "3 : 1")],
}


@pytest.fixture(scope="module")
def code():
    return definitions(PATH)


def test_the_function_and_the_class_are_voxs(code):
    torch.manual_seed(0)
    theirs = FSQ(48, FSQConfig(dim=12, scale=9))
    ours = code.FSQ(48, 12, 9)
    ours.load_state_dict(theirs.state_dict())
    h = torch.randn(2, 7, 48, requires_grad=True)
    by_hand = code.fsq(h, *theirs.in_proj.parameters(), *theirs.out_proj.parameters(), 9)
    wanted = torch.autograd.grad(theirs(h).square().sum(), [h, *theirs.parameters()])
    for out in (ours(h), by_hand):
        torch.testing.assert_close(out, theirs(h))
    for ours_too, theirs_too in zip(torch.autograd.grad(ours(h).square().sum(), [h, *ours.parameters()]), wanted, strict=True):
        torch.testing.assert_close(ours_too, theirs_too)
        assert theirs_too.any()
    torch.testing.assert_close(code.grid(h, 9), quantise(torch.tanh(h), 9))


def test_every_code_has_its_number(code):
    levels = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    numbers = code.index(levels, 1)
    assert sorted(numbers.tolist()) == list(range(27))
    assert torch.equal(Exercises("03_fsq").module.exercise_4()(numbers, 1, 3), levels)


def test_autoencoders_trained_together_are_those_trained_alone(code):
    settings = [(1, 1, True), (3, 2, True), (2, 4, False)]
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))

    def trained(settings):
        torch.manual_seed(1)  # all runs start from the same weights
        return code.train(code.Autoencoders(2, 16, settings), points, 20)

    together, alone = trained(settings), trained(settings[1:2])
    torch.testing.assert_close(together(points[None])[1], alone(points[None])[0])
    codes = together.codes(points[None])
    assert not codes[0, :, 1:].any() and len(codes[0].unique()) <= 3
    errors = code.left_over(together, points)
    assert errors.shape == (3,) and errors[1] < errors[0]


def test_plain_rounding_passes_no_gradient_to_the_encoder(code):
    runs = code.Autoencoders(2, 8, [(2, 4, True), (2, 4, False)])
    runs(torch.rand(1, 5, 2)).sum().backward()
    assert [gradient.any().item() for gradient in runs.W[0].grad] == [True, False]
    assert runs.W[3].grad[1].any()  # the decoder learns all the same


def test_only_chosen_rows_of_a_codebook_learn(code):
    vq = code.VQ(9, 2)
    _, number, loss = vq(torch.randn(4, 2))
    loss.backward()
    assert vq.codebook.grad.abs().sum(-1).nonzero()[:, 0].tolist() == number.unique().tolist()


@pytest.mark.parametrize("straight_through", [True, False])
def test_the_explorer_draws_what_it_is_given(code, straight_through):
    code.points, code.place = code.spiral(50, torch.Generator().manual_seed(0))
    code.back = {(dims, s, through): code.points for dims in (1, 2) for s in (1, 2, 4, 9) for through in (True, False)}
    code.errors = dict.fromkeys(code.back, 0.25) | {(2, 4, straight_through): 0.5}
    figure, told = code.survivors(9, 2, straight_through)
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    assert "81 codes, 6.3 bits; 50.0 %" in told
    marked = figure.axes[2].lines[-1]
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (9, 0.5)
    assert len(figure.axes[1].collections[0].get_offsets()) == 50


def test_the_listening_explorer_gives_picture_number_and_sound(code):
    code.rate, code.original = 16000, torch.randn(8000) * 0.1
    code.voices, code.lost = {(8, 4): code.original * 0.5, (8, 10000): code.original}, {(8, 4, True): 0.25, (8, 10000, True): 0.125}
    code.written = {(8, 4): "seven", (8, 10000): "eleven"}
    figure, told, (wav, rate) = code.heard(8, 9)
    assert isinstance(figure, Figure) and "25 %" in told and "“seven”" in told and rate == 16000 and torch.equal(wav, code.original * 0.5)
    assert torch.equal(code.heard(8, "no rounding")[2][0], code.original)


def test_plans_are_compared_without_their_last_two_patches(code):
    a, b = torch.zeros(6, 4), torch.zeros(5, 4)
    b[0], b[3:] = 3.0, 9.0
    assert code.moved(a, b) == code.moved(b, a) == 1.0  # three of five patches count, one of them is three levels apart
