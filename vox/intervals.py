"""Measured values with their 95 % intervals.

Notable choices
- an interval is a percentile bootstrap; for shares it is Wilson's, which does not shrink to nothing when no case failed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A measured value, its 95 % interval, and how many cases it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.value:.4g} ({self.low:.4g} … {self.high:.4g}, n = {self.n})"


def bootstrap(values, statistic: str = "mean", draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a statistic: values drawn again with replacement, 2.5 % of the results on either side left out.

    values: [n] for "mean"; [n, 2] for "ratio", the sum of the first column over the sum of the second (errors, units).
    Raises ValueError for no values, other shapes, and values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if statistic not in ("mean", "ratio"):
        raise ValueError(f"statistic must be mean or ratio, not {statistic!r}")
    if not values.size or values.shape[1:] != ((2,) if statistic == "ratio" else ()):
        raise ValueError(f"a {statistic} needs values [n{', 2' * (statistic == 'ratio')}] with n > 0, not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("values hold something that is not a finite number: leave it out first")
    rng = np.random.default_rng(seed)
    columns = values.reshape(len(values), -1)
    means = np.stack([columns[rng.integers(len(columns), size=len(columns))].mean(0) for _ in range(draws)])  # [draws, 1 or 2]
    results = means[:, 0] if statistic == "mean" else means[:, 0] / means[:, 1]
    low, high = np.quantile(results, (0.025, 0.975))
    return float(low), float(high)


def mean(values, seed: int = 0) -> Figure:
    """The mean of numbers, with its interval."""
    return Figure(float(np.mean(values)), *bootstrap(values, seed=seed), len(values))


def share(hits: Sequence[bool]) -> Figure:
    """The share of cases that hold, with Wilson's interval. Raises ValueError for no cases."""
    n = len(hits)
    if not n:
        raise ValueError("a share needs at least one case")
    z, p = 1.959964, sum(hits) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)), n)
