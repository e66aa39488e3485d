"""How good the predictions are, and what the baseline does to the variance: numbers for every step's log."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.rollouts import Credit


def prediction_metrics(
    predictions_B: Float[Tensor, " B"], targets_B: Float[Tensor, " B"], prefix: str = ""
) -> dict[str, float]:
    """Agreement of predictions with their online targets; pairs with a NaN on either side do not count.

    Returns:
        mae, rmse, bias (prediction minus target), on the reward's scale; pearson; brier_skill = 1 − MSE / Var(target),
        the skill against the constant that knows the batch's mean; explained_variance = 1 − Var(target − prediction)
        / Var(target). NaN where undefined (no pairs, or constant targets).

    The online target of a batch is noisy (one sibling's reward at n = 2), so pearson and skill are far below those
    against the true pass rate.
    """
    known_B = predictions_B.isfinite() & targets_B.isfinite()
    g_B, y_B = predictions_B[known_B].double(), targets_B[known_B].double()
    names = ("mae", "rmse", "bias", "pearson", "brier_skill", "explained_variance")
    if len(y_B) == 0:
        return {prefix + name: math.nan for name in names}
    error_B = g_B - y_B
    mse, variance = error_B.square().mean(), y_B.var(correction=0)
    values = (
        error_B.abs().mean(),
        mse.sqrt(),
        error_B.mean(),
        _ratio(((g_B - g_B.mean()) * (y_B - y_B.mean())).mean(), (g_B.var(correction=0) * variance).sqrt()),
        1 - _ratio(mse, variance),
        1 - _ratio(error_B.var(correction=0), variance),
    )
    return {prefix + name: float(value) for name, value in zip(names, values, strict=True)}


def variance_ratio(advantages_B: Float[Tensor, " B"], rewards_B: Float[Tensor, " B"]) -> float:
    """Var(A) / Var(r) over the rollouts in the update; below 1 the baseline explains reward. NaN if undefined.

    Source: the paper plots it per step, about 0.7.
    """
    if len(rewards_B) == 0:
        return math.nan
    return float(_ratio(advantages_B.double().var(correction=0), rewards_B.double().var(correction=0)))


def calibration(
    predictions_B: Float[Tensor, " B"], targets_B: Float[Tensor, " B"], bins: int = 10
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """Reliability curve in equally filled bins of the prediction.

    Returns:
        mean prediction, mean target and number of pairs of each bin; fewer bins where there are fewer pairs.
    """
    known_B = predictions_B.isfinite() & targets_B.isfinite()
    order_B = predictions_B[known_B].argsort(stable=True)
    g, y = predictions_B[known_B][order_B].double(), targets_B[known_B][order_B].double()
    pairs = [pair for pair in zip(g.tensor_split(bins), y.tensor_split(bins), strict=True) if len(pair[0])]
    means = torch.tensor([[float(a.mean()), float(b.mean()), len(a)] for a, b in pairs], dtype=torch.float64)
    predicted, observed, count = means.reshape(-1, 3).unbind(1)
    return predicted, observed, count


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator if float(denominator) > 1e-12 else torch.tensor(math.nan, dtype=torch.float64)


def credit_metrics(credit: Credit) -> dict[str, float]:
    """What a credited batch says about the variance.

    Names: reward_mean and baseline_mean on the reward's scale; variance_ratio = Var(A)/Var(r); failed = rollouts whose
    reward failed; unused = rollouts that left the update.
    """
    used_B = credit.used_B
    return {
        "reward_mean": float(credit.rewards_B.nanmean()),
        "baseline_mean": float(credit.baselines_B[used_B].mean()),
        "variance_ratio": variance_ratio(credit.advantages_B[used_B], credit.rewards_B[used_B]),
        "failed": float((~credit.rewards_B.isfinite()).sum()),
        "unused": float((~used_B).sum()),
    }


def probe_metrics(credit: Credit) -> dict[str, float]:
    """How good the probe's predictions of this batch are, before it learns from it.

    Names: prediction_mean on the reward's scale, against reward_mean; probe_share = share of the rollouts in the
    update whose baseline is the probe's (0 while it is cold); and those of `prediction_metrics`.
    """
    used_B = credit.used_B
    return {
        "prediction_mean": float(credit.predictions_B.nanmean()),
        "probe_share": float((credit.from_probe_B & used_B).sum()) / max(1, int(used_B.sum())),
        **prediction_metrics(credit.predictions_B, credit.targets_B),
    }


def value_metrics(credit: Credit) -> dict[str, float]:
    """How good the values of the prompts are, against the rewards of the batch that they were made without.

    Names: as in `probe_metrics`. The target is the rollout's own reward, which v(x) knows nothing of.
    """
    return {
        "prediction_mean": float(credit.predictions_B.nanmean()),
        **prediction_metrics(credit.predictions_B, credit.rewards_B),
    }
