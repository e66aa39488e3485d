"""Intervals of estimates over a handful of seeds, and when a difference between two methods is called one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_LEVEL = 0.95
# A difference is called one if its interval leaves zero out and the sign-flip test is at or below this. Five seeds
# cannot give less than 2/32, so they call only what all five agree on.
CALLED_AT = 0.1


@dataclass(frozen=True)
class Bounds:
    """An estimate with its interval over seeds; `known` is the share of resamples in which it is finite."""

    mean: float
    low: float
    high: float
    known: float = 1.0

    @staticmethod
    def of(values_R: np.ndarray, seeds: int) -> Bounds:
        """From the value on the data (first) and on the resamples; an infinite end says "not within the budget"."""
        tail = tail_of(seeds)
        # Steps of the empirical distribution, since means of a finite number and infinity say nothing.
        low, high = np.quantile(values_R[1:], [tail, 1 - tail], method="inverted_cdf")
        return Bounds(float(values_R[0]), float(low), float(high), float(np.isfinite(values_R[1:]).mean()))


def tail_of(seeds: int) -> float:
    """Share of resamples beyond each end of an interval: an expanded percentile interval.

        tail = Φ(−√(S/(S−1)) · t₀.₉₇₅(S−1))

    Resampling S values knows their spread as if S were many: with five seeds the plain percentile interval holds the
    true mean 84 times in 100, this one 92 times (normal values).

    Source: Hesterberg, What Teachers Should Know about the Bootstrap, arXiv 1411.5279.
    """
    if seeds < 2:
        return (1 - _LEVEL) / 2
    widened = math.sqrt(seeds / (seeds - 1)) * t_quantile((1 + _LEVEL) / 2, seeds - 1)
    return NormalDist().cdf(-widened)


def t_quantile(level: float, freedom: int) -> float:
    """Quantile of Student's t above its median, by bisection.

    >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.975, 1), 4)
    (2.7764, 12.7062)
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 2 * level - 1 else (low, middle)
    return middle


def _t_within(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom. Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    is_odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if is_odd else (1.0, 0.0)
    for place in range(is_odd + 2, freedom + 1, 2):
        total += term
        term *= (place - 1) / place * math.cos(angle) ** 2
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if is_odd else inside


def chance_of_a_call(seeds: int) -> float:
    """Largest p that S seeds can give and that is still called a difference: equal methods are called so no more often.

    >>> [chance_of_a_call(seeds) for seeds in (4, 5, 8)]
    [0.0, 0.0625, 0.09375]
    """
    pairs = 2 ** (seeds - 1)
    return math.floor(CALLED_AT * pairs) / pairs
