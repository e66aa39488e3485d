"""Estimates of a race with intervals over seeds; every resample draws the same seeds for all methods.

Axis suffixes: `_M` methods, `_S` seeds, `_X` places on the rollout axis, `_R` bootstrap resamples (row 0: the data).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poise.eval.metrics import sign_flip_p_value
from poise.lab.compare_curves import Curve, crossing
from poise.lab.compare_intervals import CALLED_AT, Bounds
from poise.lab.metrics import mean_ranks

_PLACES = 129  # of the rollout axis, on which curves of different steps meet


@dataclass(frozen=True)
class Standing:
    """How one method did in one arm.

    Args:
        area: mean accuracy over the budget.
        area_gap: its paired difference to the reference.
        p_value: of that difference, by sign flips over seeds; with S seeds it cannot be below 2 / 2ˢ.
        verdict: 1 ahead of the reference, -1 behind it, 0 not told apart: interval and test have to agree.
        final: mean accuracy of the last evaluations.
        rollouts: until the mean curve reaches the reference's final accuracy.
    """

    method: str
    seeds: int
    area: Bounds
    area_gap: Bounds
    p_value: float
    final: Bounds
    rollouts: Bounds

    @property
    def verdict(self) -> int:
        if self.p_value > CALLED_AT:
            return 0
        return int(self.area_gap.low > 0) - int(self.area_gap.high < 0)


def standings(curves: Sequence[Curve], reference: str, final: int, resamples: int, seed: int = 0) -> list[Standing]:
    """One standing per method, on the seeds that all methods have finished; none if there is no such seed.

    Args:
        curves: of one arm.
        reference: name of the method to compare with.
        final: evaluations whose mean is a run's final accuracy.
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    by_method = grouped(curves)
    if reference not in by_method:
        return []
    seeds = sorted(set.intersection(*({curve.run.seed for curve in runs} for runs in by_method.values())))
    if not seeds:
        return []
    chosen = {
        name: sorted((curve for curve in runs if curve.run.seed in seeds), key=lambda curve: curve.run.seed)
        for name, runs in by_method.items()
    }
    weights_RS = seed_weights(len(seeds), resamples, seed)
    budget = curves[0].run.budget
    target_R = weights_RS @ np.array([curve.final(final) for curve in chosen[reference]])
    reference_S = np.array([curve.area for curve in chosen[reference]])
    found: list[Standing] = []
    for name, runs in chosen.items():
        area_S = np.array([curve.area for curve in runs])
        found.append(
            Standing(
                method=name,
                seeds=len(seeds),
                area=Bounds.of(weights_RS @ area_S, len(seeds)),
                area_gap=Bounds.of(weights_RS @ (area_S - reference_S), len(seeds)),
                p_value=sign_flip_p_value(area_S - reference_S),
                final=Bounds.of(weights_RS @ np.array([curve.final(final) for curve in runs]), len(seeds)),
                rollouts=Bounds.of(rollouts_to(runs, target_R, weights_RS, budget), len(seeds)),
            )
        )
    return found


def grouped(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Curves by method."""
    by_method: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        by_method[curve.run.method.name].append(curve)
    return dict(by_method)


def seed_weights(seeds: int, resamples: int, seed: int) -> np.ndarray:
    """Weights of the seeds, (R + 1, S): row 0 is the data as they are."""
    counts = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return np.concatenate([np.ones((1, seeds)), counts]) / seeds


def mean_curve(runs: Sequence[Curve], budget: float, axis: str = "rollouts") -> tuple[np.ndarray, np.ndarray]:
    """Places up to the budget, and every run's accuracy there, (S, X)."""
    places_X = np.linspace(0, budget, _PLACES)
    return places_X, np.stack([np.interp(places_X, run.costs[axis], run.accuracy) for run in runs])


def rollouts_to(runs: Sequence[Curve], target_R: np.ndarray, weights_RS: np.ndarray, budget: float) -> np.ndarray:
    """Rollouts until the mean curve of the drawn seeds reaches the target of the same seeds; infinity if it does not.

    The mean curve, not each seed's: a single noisy evaluation reaches a target early by chance.
    """
    places_X, accuracy_SX = mean_curve(runs, budget)
    return np.array(
        [
            crossing(places_X, curve_X, target)
            for curve_X, target in zip(weights_RS @ accuracy_SX, target_R, strict=True)
        ]
    )


def best_rates(curves: Sequence[Curve]) -> dict[str, float]:
    """For every method the learning rate with the largest mean area over the tuning seeds; of equals the smaller."""
    return {
        name: max(sorted(areas), key=lambda rate: float(np.mean(areas[rate])))
        for name, areas in areas_by_rate(curves).items()
    }


def areas_by_rate(curves: Sequence[Curve]) -> dict[str, dict[float, list[float]]]:
    """Areas of the tuning runs, by method and learning rate, on the seeds that all tried rates of a method have.

    While the tuning is half done, a rate's mean over other seeds than another's would say which seeds are the easier.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for name, runs in grouped(curves).items():
        by_rate: dict[float, dict[int, float]] = defaultdict(dict)
        for run in runs:
            by_rate[run.run.learning_rate][run.run.seed] = run.area
        seeds = sorted(set.intersection(*(set(areas) for areas in by_rate.values())))
        if seeds:
            found[name] = {rate: [areas[seed] for seed in seeds] for rate, areas in by_rate.items()}
    return found


def own_update_norms(curves: Sequence[Curve]) -> dict[str, float]:
    """Median norm of every method's updates over its seeds, warm-up and all."""
    norms = {
        name: np.concatenate([run.moves["update_norm"][1] for run in runs]) for name, runs in grouped(curves).items()
    }
    return {name: float(np.median(found)) for name, found in norms.items() if found.size}


def common_update_norm(own: Mapping[str, float]) -> float:
    """The size that the matched arm gives to every update: the median over methods of their own norms.

    One method's norm would be that method's choice: what it bears, others may not. Half of the methods take larger
    steps than this one in the race, half smaller. Three digits, so that the folder's name says all of it.

    >>> common_update_norm({"a": 0.12345, "b": 0.98765, "c": 0.26321})
    0.263
    """
    return float(f"{np.median(list(own.values())):.3g}") if own else 0.0


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Spearman's correlation of two numbers per method; NaN for fewer than three methods, or where all are equal.

    >>> rank_correlation({"a": 1.0, "b": 2.0, "c": 9.0}, {"a": 0.1, "b": 0.3, "c": 0.2})
    0.5
    """
    names = [name for name in first if math.isfinite(first[name]) and math.isfinite(second.get(name, math.nan))]
    if len(names) < 3:
        return math.nan
    ranks = [mean_ranks(np.array([values[name] for name in names])) for values in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return math.nan
    return round(float(np.corrcoef(ranks)[0, 1]), 12)
