"""How good the predictions are, and what the baseline does to the variance: numbers for every step's log."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.rollouts import Credit


def prediction_metrics(
    predictions_B: Float[Tensor, " B"],
    targets_B: Float[Tensor, " B"],
    weights_B: Float[Tensor, " B"] | None = None,
    *,
    prefix: str = "",
) -> dict[str, float]:
    """Agreement of predictions with their online targets; pairs with a NaN on either side do not count.

    Args:
        weights_B: how much each pair counts, everywhere below; alike if None. A probe that was fitted with weights
            predicts a weighted mean of the reward, and is right or wrong about that.

    Returns:
        prediction_mean, target_mean, mae, rmse, bias (prediction minus target), on the reward's scale; pearson;
        brier_skill = 1 − MSE / Var(target), the skill against the constant that knows the batch's mean;
        explained_variance = 1 − Var(target − prediction) / Var(target). NaN where undefined (no pairs, one target).

    The online target of a batch is noisy (one sibling's reward at n = 2), so pearson and skill are far below those
    against the true pass rate.
    """
    known_B = predictions_B.isfinite() & targets_B.isfinite()
    names = ("prediction_mean", "target_mean", "mae", "rmse", "bias", "pearson", "brier_skill", "explained_variance")
    share_B = torch.ones_like(predictions_B) if weights_B is None else weights_B
    share_B = share_B[known_B].double()
    if not float(share_B.sum()) > 0:
        return {prefix + name: math.nan for name in names}
    share_B = share_B / share_B.sum()
    g_B, y_B = predictions_B[known_B].double(), targets_B[known_B].double()
    error_B = g_B - y_B
    mse, variance = share_B @ error_B.square(), _covariance(y_B, y_B, share_B)
    values = (
        share_B @ g_B,
        share_B @ y_B,
        share_B @ error_B.abs(),
        mse.sqrt(),
        share_B @ error_B,
        _ratio(_covariance(g_B, y_B, share_B), (_covariance(g_B, g_B, share_B) * variance).sqrt()),
        1 - _ratio(mse, variance),
        1 - _ratio(_covariance(error_B, error_B, share_B), variance),
    )
    return {prefix + name: value for name, value in zip(names, torch.stack(values).tolist(), strict=True)}


def _covariance(x_B: Tensor, y_B: Tensor, share_B: Tensor) -> Tensor:
    return share_B @ ((x_B - share_B @ x_B) * (y_B - share_B @ y_B))


def relative_to_leave_one_out(credit: Credit) -> float:
    """Σ w A² / Σ w (r − siblings' mean)²: the gradient's variance within prompts relative to leave-one-out's.

    With w the proxy of each rollout's squared score it estimates that of the gradient; where all weigh alike, that of
    the advantages. Over rollouts of the update whose siblings have a reward; NaN where there are none.
    """
    both_B = credit.used_B & credit.targets_B.isfinite()
    weights_B = credit.weights_B[both_B].double()
    advantages_B = credit.advantages_B[both_B].double()
    others_B = (credit.rewards_B - credit.targets_B)[both_B].double()
    return float(_ratio(weights_B @ advantages_B.square(), weights_B @ others_B.square()))


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
    return numerator / denominator if float(denominator) > 1e-12 else numerator * math.nan


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

    Names: probe_share = share of the rollouts in the update whose baseline is the probe's (0 while it is cold; with
    "auto" the estimator puts the probes' weight there);
    relative_to_leave_one_out; and those of `prediction_metrics`, with the weights that the probe is fitted with.
    """
    used_B = credit.used_B
    return {
        "probe_share": float((credit.from_probe_B & used_B).sum()) / max(1, int(used_B.sum())),
        "relative_to_leave_one_out": relative_to_leave_one_out(credit),
        **prediction_metrics(credit.predictions_B, credit.targets_B, credit.target_weights_B),
    }


def value_metrics(credit: Credit) -> dict[str, float]:
    """How good the values of the prompts are, against the rewards of the batch that they were made without.

    Names: as in `prediction_metrics`. The target is the rollout's own reward, which v(x) knows nothing of.
    """
    return prediction_metrics(credit.predictions_B, credit.rewards_B, credit.weights_B)
