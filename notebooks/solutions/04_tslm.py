"""Solutions of 04_tslm: rotary positions, the cache, masks."""

import dataclasses
import math

import torch

from vox.config import TransformerConfig, preset


def exercise_1():
    """The slowest pair turns by ω = θ^(−(width − 2)/width) a position, and `positions` of these may be 2π at most."""

    def smallest_theta(width, positions):
        return (positions / (2 * math.pi)) ** (width / (width - 2))

    return smallest_theta


def check_1(answer):
    for width, positions in ((64, 4096), (32, 1024), (128, 100_000)):
        theta = float(answer(width, positions))
        assert theta > 1, f"for {width} and {positions} yours is {theta:g}: with θ ≤ 1 no hand is slower than the first"
        turns = positions * theta ** (-(width - 2) / width) / (2 * math.pi)
        assert turns < 1.001, f"with θ = {theta:g} the slowest of {width // 2} hands turns {turns:.2f} times in {positions} positions"
        assert turns > 0.999, f"θ = {theta:g} is more than is needed: the slowest hand makes only {turns:.3f} of a turn"


def exercise_2():
    """Keys and values, for every layer, every shared head, every dimension of it, every position."""

    def cache_bytes(config, positions, bytes_each):
        return 2 * config.layers * config.kv_heads * config.width * positions * bytes_each

    return cache_bytes


def check_2(answer):
    small = TransformerConfig(layers=3, hidden=96, ffn=256, heads=4, kv_heads=2)
    yours = answer(small, 10, 4)
    assert yours != 2 * 3 * 96 * 10 * 4, "that counts a key and a value for each query head: kv_heads is what is stored"
    assert yours != 3 * 2 * 24 * 10 * 4, "that is half of it: keys and values are both kept"
    assert yours == 2 * 3 * 2 * 24 * 10 * 4, f"3 layers of 2 shared heads, 24 wide, 10 positions of 4 bytes: 11520 bytes, not {yours}"
    released = preset("voxcpm-0.5b").tslm
    own = dataclasses.replace(released, kv_heads=released.heads)
    for config in (released, own):
        expected = 2 * config.layers * config.kv_heads * config.width * 4096 * 2
        assert answer(config, 4096, 2) == expected, f"with {config.kv_heads} kv_heads the released TSLM needs {expected / 1e6:.0f} MB"


def exercise_3():
    """Causal: nothing above the diagonal. Window: nothing further below it than w − 1. `tril` and `triu` cut both."""

    def window(T, w):
        return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - w)

    return window


def check_3(answer):
    for T, w in ((6, 1), (6, 3), (5, 9)):
        mask = torch.as_tensor(answer(T, w))
        assert mask.shape == (T, T) and mask.dtype == torch.bool, f"a bool mask [{T}, {T}], please, not {mask.dtype} {list(mask.shape)}"
        assert not mask.triu(1).any(), "some query sees the future"
        for m in range(T):
            seen = int(mask[m].sum())
            assert seen == min(w, m + 1), f"with w = {w}, query {m} should see {min(w, m + 1)} positions and sees {seen}"
            assert mask[m, m], f"query {m} does not see itself"


def exercise_4():
    """First all the even places, then all the odd ones: then pair i lies at i and i + width/2."""

    def halves(width):
        return torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))

    return halves


def check_4(answer):
    width, T = 16, 7
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, T, width, generator=generator)
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = angles.cos(), angles.sin()

    def neighbours(x):
        a, b = x[:, ::2], x[:, 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(1)

    def ours(x):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    order = torch.as_tensor(answer(width))
    assert sorted(order.tolist()) == list(range(width)), f"an order of {width} indices holds each of 0 … {width - 1} once"
    same = torch.allclose(ours(q[:, order]) @ ours(k[:, order]).T, neighbours(q) @ neighbours(k).T, atol=1e-4)
    assert same, "the scores differ: which two of your indices end up as one pair, and at which speed?"


def exercise_5():
    """R(0) turns nothing: plain dot products are left, and the order of the past is lost (only content is compared)."""

    def broken_scores(q, k, omega):
        return q @ k.T  # equal vectors score equally at any distance: "two back" cannot be said any more

    return broken_scores


def check_5(answer):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 2, generator=generator)
    scores = torch.as_tensor(answer(q, k, 0.4))
    assert scores.shape == (5, 5), f"scores of 5 queries with 5 keys are [5, 5], not {list(scores.shape)}"
    assert torch.allclose(scores, q @ k.T, atol=1e-5), "a turn by 0 · ω leaves a vector as it is: which product is left?"
    assert torch.allclose(torch.as_tensor(answer(q, k, 3.0)), scores, atol=1e-5), "with all positions 0 the speed cannot matter"


ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "Turning q by mω and k by nω leaves their lengths alone and their angle to each other differs by (m − n)ω: nothing else of m and n"
    " is left. One hand shows the same after each full turn, so far and near would look alike; slow hands tell them apart (section 3).",
    "Turned keys, and values, in full precision. A key turned for its own position stays right for ever, since the score of a later"
    " query depends on the difference of the positions only (sections 4 and 7).",
    "The room for keys and values in the cache, and the two maps that make them: an eighth of what sixteen would take. Queries, scores"
    " and SwiGLU stay as they are, so the arithmetic of attention is hardly less (section 4).",
    "Branches of size one add up like √(2L): the stream would be about 14 times as large as one branch. scale_emb leaves the embeddings"
    " of speech (E) alone and multiplies those of text (section 6).",
    "A weight says where a head looks, not whether what it takes from there changes anything, and there are other ways for a word to get"
    " through. Exchange the word and see whether the plan moves (section 9).",
)
