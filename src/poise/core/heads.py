"""The probe's last stage: a linear head on standardised regressors, by ridge or by penalised logistic regression.

Both are one batched solve (the logistic one a few) in float64, in the dual where there are more columns than rows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_MAX_NEWTON_STEPS = 50
_MIN_CURVATURE = 1e-10


@dataclass(frozen=True)
class Head:
    """Prediction = clip(link(design @ weights + intercept)), on the reward's scale.

    The link is the identity, or low + (high - low) * sigmoid for a logistic head.
    """

    weights_K: Tensor
    intercept: float
    low: float
    high: float
    is_logistic: bool = False

    def predict(self, design_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        value_B = design_BK.to(self.weights_K) @ self.weights_K + self.intercept
        if self.is_logistic:
            return self.low + (self.high - self.low) * value_B.sigmoid()
        return value_B.clamp(self.low, self.high)

    @staticmethod
    def constant(value: float, width: int) -> Head:
        return Head(torch.zeros(width, dtype=torch.float64), value, value, value)


def fit_ridge(
    design_BK: Float[Tensor, "B K"],
    targets_B: Float[Tensor, " B"],
    alpha: float,
    low: float,
    high: float,
    weights_B: Float[Tensor, " B"] | None = None,
) -> Head:
    """Minimise Σ v (y − b − xᵀw)² + α‖w‖² with row weights v, intercept b unpenalised; predictions in [low, high].

    Source: scikit-learn's `Ridge` objective; the published probe (paper section 3) uses it, without row weights.
    """
    weights_B = _ones_or(weights_B, targets_B)
    weights_K, intercept = _weighted_ridge(design_BK, targets_B, weights_B, alpha)
    return Head(weights_K, float(intercept), low, high)


def fit_logistic(
    design_BK: Float[Tensor, "B K"],
    targets_B: Float[Tensor, " B"],
    alpha: float,
    low: float,
    high: float,
    weights_B: Float[Tensor, " B"] | None = None,
    start: Head | None = None,
) -> Head:
    """Minimise −Σ v [t log q + (1 − t) log(1 − q)] + α/2 ‖w‖² with t = (y − low)/(high − low), q = σ(xᵀw + b).

    Fractional targets are allowed (mean reward of several siblings). Newton steps with a halving line search; the
    objective is strictly convex, so they converge, from `start` or from nothing. Constant targets give a constant head.
    """
    weights_B = _ones_or(weights_B, targets_B)
    share_B = ((targets_B - low) / (high - low)).clamp(0, 1) if high > low else torch.zeros_like(targets_B)
    mean = weights_B @ share_B / weights_B.sum()
    if float(mean) in (0.0, 1.0):
        return Head.constant(low + (high - low) * float(mean), design_BK.shape[1])
    rows = _LogisticRows(design_BK, share_B, weights_B, alpha)
    at = (torch.zeros_like(design_BK[0]), torch.logit(mean))
    if start is not None and start.is_logistic:
        at = (start.weights_K.to(design_BK), torch.tensor(start.intercept).to(mean))
    loss = rows.loss(*at)
    for _ in range(_MAX_NEWTON_STEPS):
        step = rows.newton_step(*at)
        size = 1.0
        while not (new := rows.loss(at[0] + size * step[0], at[1] + size * step[1])) <= loss:
            size /= 2
            if size < 1e-8:  # no descent left in double precision: this is the minimum
                return Head(at[0], float(at[1]), low, high, True)
        at = (at[0] + size * step[0], at[1] + size * step[1])
        converged, loss = bool(loss - new <= 1e-12 * len(share_B)), new
        if converged:
            return Head(at[0], float(at[1]), low, high, True)
    warnings.warn(f"logistic probe not converged after {_MAX_NEWTON_STEPS} Newton steps (alpha={alpha})", stacklevel=2)
    return Head(at[0], float(at[1]), low, high, True)


@dataclass(frozen=True)
class _LogisticRows:
    """The rows of one logistic fit: its objective, and the Newton direction at a point (weights_K, intercept)."""

    design_BK: Tensor
    share_B: Tensor
    weights_B: Tensor
    alpha: float

    def loss(self, weights_K: Tensor, intercept: Tensor) -> Tensor:
        logit_B = self.design_BK @ weights_K + intercept
        fit_B = binary_cross_entropy_with_logits(logit_B, self.share_B, reduction="none")
        return self.weights_B @ fit_B + self.alpha / 2 * weights_K.square().sum()

    def newton_step(self, weights_K: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """A weighted ridge regression of the working response (IRLS), less the point itself."""
        logit_B = self.design_BK @ weights_K + intercept
        q_B = logit_B.sigmoid()
        curvature_B = (q_B * (1 - q_B)).clamp_min(_MIN_CURVATURE)
        response_B = logit_B + (self.share_B - q_B) / curvature_B
        new_K, new = _weighted_ridge(self.design_BK, response_B, self.weights_B * curvature_B, self.alpha)
        return new_K - weights_K, new - intercept


def _ones_or(weights_B: Tensor | None, like_B: Tensor) -> Tensor:
    return torch.ones_like(like_B) if weights_B is None else weights_B.to(like_B)


def _weighted_ridge(design_BK: Tensor, y_B: Tensor, weights_B: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Slopes and intercept of a ridge regression with row weights."""
    root_B, total = weights_B.sqrt(), weights_B.sum()
    mean_K, mean = weights_B @ design_BK / total, weights_B @ y_B / total
    weights_K = _penalised_solve((design_BK - mean_K) * root_B[:, None], (y_B - mean) * root_B, alpha)
    return weights_K, mean - mean_K @ weights_K


def _penalised_solve(x_BK: Tensor, y_B: Tensor, alpha: float) -> Tensor:
    """(XᵀX + αI)⁻¹Xᵀy, or Xᵀ(XXᵀ + αI)⁻¹y where there are more columns than rows."""
    rows, columns = x_BK.shape
    is_dual = columns > rows
    gram = x_BK @ x_BK.T if is_dual else x_BK.T @ x_BK
    gram.diagonal().add_(alpha)
    factor = torch.linalg.cholesky(gram)
    right = y_B if is_dual else x_BK.T @ y_B
    solution = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return x_BK.T @ solution if is_dual else solution
