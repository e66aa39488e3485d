"""How good predictions of a pass rate are, with the noise of the measured pass rate accounted for, and intervals.

Axis suffixes: `_P` held-out prompts, `_F` rollouts of each that a prediction was made from, `_R` bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

METRICS = ("mae", "mse", "pearson", "brier_skill", "pearson_true", "mse_true", "explained")


# Resamples of fewer prompts are few different ones, and know little of the spread between prompts.
_LEAST_PROMPTS = 8


@dataclass(frozen=True)
class Targets:
    """What predictions are compared with, from rollouts that no prediction was made from.

    Args:
        average_P: Avg@k over the first of these rollouts, the paper's target.
        average_noise_P: unbiased estimate of its sampling variance.
        rate_P: mean over all of these rollouts, the best estimate of the pass rate p(x).
        rate_noise_P: unbiased estimate of its sampling variance.
        count: k of Avg@k.
    """

    average_P: np.ndarray
    average_noise_P: np.ndarray
    rate_P: np.ndarray
    rate_noise_P: np.ndarray
    count: int

    @staticmethod
    def of(rewards_PK: Float[Tensor, "P K"], count: int = 8) -> Targets:
        """Targets from finite rewards, at least two a prompt."""
        values = rewards_PK.double().numpy()
        count = min(count, values.shape[1])
        variance_P = values.var(axis=1, ddof=1)
        return Targets(
            values[:, :count].mean(1), variance_P / count, values.mean(1), variance_P / values.shape[1], count
        )

    def select(self, chosen_P: np.ndarray) -> Targets:
        fields = (self.average_P, self.average_noise_P, self.rate_P, self.rate_noise_P)
        return Targets(*(field[chosen_P] for field in fields), self.count)


def groups_of(domains: Sequence[str]) -> dict[str, np.ndarray]:
    """Which prompts figures are about: all of them, and where there are several domains, those of each larger one."""
    named_P = np.array(domains)
    groups = {"all": np.ones(len(named_P), dtype=bool)}
    names, counts = np.unique(named_P, return_counts=True)
    if len(names) > 1:
        chosen = names[counts >= _LEAST_PROMPTS].tolist()
        groups |= {name: named_P == name for name in chosen}
    return groups


def resample_weights(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """Weights of the prompts in each resample, (R + 1, P); row 0 is the data as they are."""
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return np.concatenate([np.ones((1, prompts)), counts]) / prompts


def value_metrics(predictions_PF: np.ndarray, targets: Targets, weights_RP: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric on the data (first) and on each resample.

    mae, mse, pearson, brier_skill = 1 − MSE/Var: against Avg@k, over all prompts and rollouts that predict them.

    pearson_true: Pearson against p(x) itself, corrected for attenuation: pearson / √(1 − E[noise]/Var(Avg@k)), where
    the noise of Avg@k has variance p(1 − p)/k.

    mse_true = E(g − p̂)² − E[noise of p̂]: squared error against p(x). explained = 1 − mse_true/Var p, the share of
    the variance of p(x) between prompts that is explained: 0 for the constant that knows the mean, 1 for p(x).

    Variances are those of the prompts at hand (a sum over P divided by P), not of what they were drawn from: only so is
    the constant that knows their mean at 0.
    """
    # Moments are taken about one point near the data: about zero, a constant's variance would be rounding noise.
    center = targets.rate_P.mean()
    a, h, g = targets.average_P[:, None] - center, targets.rate_P[:, None] - center, predictions_PF - center
    columns = [g, g**2, g * a, np.abs(g - a), (g - a) ** 2, (g - h) ** 2]
    per_prompt = [column.mean(1) for column in columns]
    per_prompt += [a[:, 0], a[:, 0] ** 2, h[:, 0], h[:, 0] ** 2, targets.average_noise_P, targets.rate_noise_P]
    g1, g2, ga, absolute, square, square_h, a1, a2, h1, h2, noise_a, noise_h = (
        weights_RP @ np.stack(per_prompt, axis=1)
    ).T
    variance_g, variance_a, variance_h = g2 - g1**2, a2 - a1**2, h2 - h1**2
    product = np.where(variance_g > 1e-12, variance_g * variance_a, 0)
    pearson = ratio(ga - g1 * a1, np.sqrt(np.maximum(product, 0)))
    reliability = 1 - ratio(noise_a, variance_a)
    mse_true, variance_p = square_h - noise_h, variance_h - noise_h
    return {
        "mae": absolute,
        "mse": square,
        "pearson": pearson,
        "brier_skill": 1 - ratio(square, variance_a),
        "pearson_true": ratio(pearson, np.sqrt(np.maximum(reliability, 0))),
        "mse_true": mse_true,
        "explained": 1 - ratio(mse_true, variance_p),
    }


def interval(values_R: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """Value on the data, and the percentile interval of the resamples."""
    known = values_R[1:][np.isfinite(values_R[1:])]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if known.size else (np.nan, np.nan)
    return {"mean": float(values_R[0]), "low": float(low), "high": float(high)}


def mean_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank.

    >>> mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [2.5, 0.0, 2.5, 1.0]
    """
    _, which_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[which_N]


def ratio(numerator: np.ndarray, denominator: np.ndarray, above: float = 1e-12) -> np.ndarray:
    """Quotient; NaN where the denominator is not above a floor."""
    has = denominator > above
    return np.where(has, numerator / np.where(has, denominator, 1.0), np.nan)
