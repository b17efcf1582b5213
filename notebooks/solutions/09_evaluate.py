"""Solutions of notebook 09: judges, their errors, and what an interval is worth."""

import itertools

import numpy as np

from vox import metrics
from vox.intervals import bootstrap, share

FRAMES = np.array([[0.55, 0.45, 0.00], [0.52, 0.08, 0.40], [0.60, 0.00, 0.40]])  # [T, blank and two symbols]
SYMBOLS = ("·", "nine", "ten")
COUNTS_A = [(1, 5), (0, 4), (5, 5), (0, 6), (2, 5), (0, 4), (0, 5), (4, 4)]  # (errors, units) of eight texts, first system
COUNTS_B = [(1, 5), (0, 4), (4, 5), (0, 6), (1, 5), (0, 4), (0, 5), (4, 4)]  # and of another system on the same texts
ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "When the two systems stumble at different texts: pairs take out what is hard for both (section 7).",
    "It is written without spaces; one wrong character would make a whole sentence one wrong word, and where words end is a matter of"
    " opinion (section 1).",
    "It keeps two equal symbols in a row apart: twenty · twenty (section 2).",
    "One compares waveforms sample by sample, which may shift, the other what can be understood (section 7).",
    "Up to about 11 %: Wilson's interval, and the rule of three says about 3 in n (section 3).",
)


def exercise_1():
    """Add up the probabilities of all paths [t1, t2, t3] that collapse to one text, for each text; take the largest sum."""
    sums = {}
    for path in itertools.product(range(len(SYMBOLS)), repeat=len(FRAMES)):
        text = " ".join(SYMBOLS[k] for k, _ in itertools.groupby(path) if k)
        sums[text] = sums.get(text, 0.0) + float(np.prod(FRAMES[np.arange(len(FRAMES)), list(path)]))
    return max(sums, key=sums.get)


def check_1(answer):
    """The likeliest text, not the text of the likeliest path."""
    best_path = " ".join(SYMBOLS[k] for k, _ in itertools.groupby(FRAMES.argmax(1)) if k)
    assert isinstance(answer, str), "the answer is a text, such as 'nine ten'"
    assert answer != best_path, "that is the text of the likeliest path; other texts have many paths"
    assert answer == exercise_1(), f"{answer!r} is not the likeliest: add up all its paths, and those of the others"


def exercise_2():
    """The width of an interval falls with the square root of n: how many texts turn ±6 % at n = 50 into ±1 %?"""
    return 50 * 6**2


def check_2(answer):
    """Six times as narrow needs 36 times as many."""
    assert abs(answer - 50 * 6) > 1, "six times as many texts make it narrower by the square root of six only"
    assert abs(answer - 1800) <= 1, f"{answer} is not it: the width goes with 1 / √n, so n goes with the square"


def exercise_3():
    """Bootstrap the difference text by text: each row is (errors of the first − errors of the second, units)."""
    return bootstrap([(a - b, units) for (a, units), (b, _) in zip(COUNTS_A, COUNTS_B, strict=True)], "ratio")


def check_3(answer):
    """The paired interval (low, high), within what another seed may change."""
    low, high = answer
    wanted = exercise_3()
    assert low <= high, "give the lower end first"
    assert high - low < 0.2, "that is as wide as two separate systems: subtract text by text before you draw"
    assert abs(low - wanted[0]) < 0.02 and abs(high - wanted[1]) < 0.02, f"about ({wanted[0]:.3f}, {wanted[1]:.3f}) is right"


def exercise_4():
    """Try one n after another until the upper end of share([False] * n) is at most 0.01."""
    n = 1
    while share([False] * n).high > 0.01:
        n += 1
    return n


def check_4(answer):
    """The least number of texts without a failure that bounds failures by 1 %."""
    high = share([False] * int(answer)).high
    assert high <= 0.01, f"after {answer} texts without a failure up to {high:.2%} are possible"
    assert share([False] * (int(answer) - 1)).high > 0.01, "fewer would do as well"


def exercise_5():
    """A function: a text whose every word is repeated by mistake has as many errors as words. Use metrics.errors."""

    def doubled(text):
        return metrics.errors(text, " ".join(unit for word in metrics.units(text).split() for unit in (word, word)))

    return doubled


def check_5(answer):
    """The function's errors and units of texts in both languages."""
    for text in ("nine", "four hundred and twelve", "下午三点"):
        n = len(metrics.units(text).split())
        assert answer(text) == (n, n), f"for {text!r} it gives {answer(text)}; each of {n} units comes once too often"
