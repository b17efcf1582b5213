"""Solutions of 02_audio_vae: what a latent sees, the KL, its weight, and a transposed convolution with a memory."""

import math

import torch
from torch.nn import functional as F


def exercise_1():
    """One sample to begin with. Frames are 1, 2, 10, 80 and 640 samples apart; the wide filters of a block are dilated 1, 3 and 9."""
    seen, apart = 1 + 6, 1  # the first convolution has seven taps
    for stride in (2, 5, 8, 8):
        seen += 6 * (1 + 3 + 9) * apart  # three residual units
        seen += (2 * stride - 1) * apart  # the strided convolution
        apart *= stride
    return seen + 2 * apart  # the head has three taps


def check_1(answer):
    true = exercise_1()
    assert int(answer) != true - 1, "almost: the sample that one starts from counts too"
    assert int(answer) != true - 1280, "the head that gives μ has three taps, 640 samples apart"
    assert int(answer) == true, f"not {answer}: go through a block layer by layer; each adds (K - 1) · d · j, and j grows with each stride"


def exercise_2():
    """Start at the top: latent 0 sees a frame of the layer below up to index 2s - 1 - padding, and from there on down."""

    def last_seen(rates):
        frame = 0
        for stride in reversed(rates):
            frame = frame * stride + 2 * stride - 1 - 2 * math.ceil(stride / 2)
        return frame

    return last_seen


def check_2(answer):
    for rates in ((8,), (5,), (2, 5, 8, 8), (3, 3), (2, 4), (5, 2)):
        true, yours = exercise_2()(rates), answer(rates)
        assert yours == true, f"at the rates {rates} it is {true}, yours says {yours}"


def exercise_3():
    """E log q - E log p under q: the squared distance of the means and the variance count in units of s², and log s comes in."""

    def kl_between(mu, logvar, m, s):
        return 0.5 * (((mu - m) ** 2 + logvar.exp()) / s**2 - 1 - logvar) + s.log()

    return kl_between


def check_3(answer):
    rng = torch.Generator().manual_seed(0)
    mu, logvar, m = (torch.randn(50, generator=rng) for _ in range(3))
    s = torch.rand(50, generator=rng) + 0.5
    true = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (0.5 * logvar).exp()),
        torch.distributions.Normal(m, s),
    )
    itself = answer(m, 2 * s.log(), m, s)
    assert itself.abs().max() < 1e-5, f"from a distribution to itself it is 0, yours is up to {itself.abs().max():.3f}"
    yours = answer(mu, logvar, m, s)
    assert yours.shape == mu.shape, f"elementwise: {list(mu.shape)} in, {list(mu.shape)} out, not {list(yours.shape)}"
    assert torch.allclose(yours, true, atol=1e-4), f"off by up to {(yours - true).abs().max():.3f}; mind the sign and log s"


def exercise_4():
    """A channel speaks if λ > β/2: put β/2 between the k-th variance and the next, or, if there is none, below the last."""

    def weight_for(variances, k):
        ordered = sorted(map(float, variances), reverse=True)
        below = ordered[k] if k < len(ordered) else 0.0
        return ordered[k - 1] + below  # twice the middle of the two

    return weight_for


def check_4(answer):
    for variances in ([1.0, 0.25, 0.0625, 0.01], [0.3, 2.0, 0.7], [1.0, 0.9, 0.8], [5.0]):
        for k in range(1, len(variances) + 1):
            beta = float(answer(torch.tensor(variances), k))
            assert beta > 0, f"a weight is positive, not {beta:g}"
            speak = sum(variance > beta / 2 for variance in variances)
            assert speak == k, f"variances {variances}, k = {k}: at β = {beta:.3g} {speak} speak"


def exercise_5():
    """The strokes that the last frame has painted over the next one are all that is needed; keep them, zeros at first."""

    def make_stream(w, b, stride):
        over = torch.zeros(1, w.shape[1], stride)

        def stream(x):
            nonlocal over
            y = F.conv_transpose1d(x, w, None, stride)  # [1, C', (L + 1) · stride]
            y = torch.cat((y[..., :stride] + over, y[..., stride:]), 2)
            over = y[..., -stride:]
            return y[..., :-stride] + b[:, None]

        return stream

    return make_stream


def check_5(answer):
    rng = torch.Generator().manual_seed(0)
    w, b, x = torch.randn(3, 2, 10, generator=rng), torch.randn(2, generator=rng), torch.randn(1, 3, 12, generator=rng)
    whole = F.conv_transpose1d(x, w, b, 5)[..., :-5]
    for sizes in ((12,), (1,) * 12, (4, 1, 7)):
        stream = answer(w, b, 5)
        pieces = [stream(piece) for piece in x.split(sizes, 2)]
        lengths = [piece.shape[2] for piece in pieces]
        assert lengths == [5 * size for size in sizes], f"pieces of {sizes} frames give {[5 * n for n in sizes]} samples, not {lengths}"
        wrong = (torch.cat(pieces, 2) - whole).abs().amax((0, 1))
        first = int((wrong > 1e-4).nonzero()[0]) if (wrong > 1e-4).any() else None
        assert first is None, f"in pieces of {sizes} frames sample {first} is the first that differs from the whole"


ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "All on the left, (K - 1) · d of them (2⌈s/2⌉ where there is a stride). With some on the right, the decoder would have to wait for "
    "latents that are not drawn yet, and in training the language model would see hints of the patch that it is to draw "
    "(sections 1 and 2).",
    "The encoder has to wait for the 640 samples of a frame, 40 ms (section 2). The decoder can blend a frame only with the one before: "
    "what it draws between two frames comes half a frame later than with a look ahead (section 3).",
    "So that z is a differentiable function of μ and σ, with all chance in ε. ε is zero after training: encode returns μ (section 8).",
    "The weakest channels fall silent one by one (μ stands still, σ = 1), the error rises, the nats fall. Those that speak are pulled "
    "to Var μ + σ² = 1 (section 9).",
    "PESQ, STOI and the ears. The VAE was trained on the mel distance itself, which does not hear phases; a measure that was also the aim "
    "says little about anything else (sections 10 and 12).",
)
