"""The probe's last stage: a linear head on standardised regressors, by ridge or by penalised logistic regression.

Both are one batched solve (the logistic one a few) in float64, in the dual where there are more columns than rows. A
head may be fitted under several penalties at once, of which one predicts. Regressors are float32 or float64 and are
taken to float64 a piece at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from poise.core.pieces import pieces

_MAX_NEWTON_STEPS = 50
_MIN_CURVATURE = 1e-10


@dataclass(frozen=True)
class Head:
    """Prediction = clip(link(design @ weights + intercept)), on the reward's scale.

    The link is the identity, or low + (high - low) * sigmoid for a logistic head.

    Args:
        weights_AK, intercept_A: one row for each penalty that it was fitted under.
        low, high: range of the predictions.
        is_logistic: which link.
        choice: the row that predicts.
    """

    weights_AK: Tensor
    intercept_A: Tensor
    low: float
    high: float
    is_logistic: bool = False
    choice: int = 0

    @property
    def weights_K(self) -> Float[Tensor, " K"]:
        return self.weights_AK[self.choice]

    @property
    def intercept(self) -> float:
        return float(self.intercept_A[self.choice])

    def predict(self, design_BK: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        return self._linked(design_BK.to(self.weights_AK) @ self.weights_K + self.intercept)

    def predict_all(self, design_BK: Float[Tensor, "B K"]) -> Float[Tensor, "B A"]:
        """What it would predict under each penalty."""
        return self._linked(design_BK.to(self.weights_AK) @ self.weights_AK.T + self.intercept_A)

    def _linked(self, value: Tensor) -> Tensor:
        if self.is_logistic:
            return self.low + (self.high - self.low) * value.sigmoid()
        return value.clamp(self.low, self.high)

    @staticmethod
    def constant(value: float, width: int, penalties: int = 1) -> Head:
        weights_AK = torch.zeros(penalties, width, dtype=torch.float64)
        return Head(weights_AK, torch.full((penalties,), value, dtype=torch.float64), value, value)


def fit_ridge(
    design_BK: Float[Tensor, "B K"],
    targets_B: Float[Tensor, " B"],
    alphas: Sequence[float],
    low: float,
    high: float,
    weights_B: Float[Tensor, " B"] | None = None,
) -> Head:
    """Minimise Σ v (y − b − xᵀw)² + α‖w‖² with row weights v, intercept b unpenalised; predictions in [low, high].

    Source: scikit-learn's `Ridge` objective; the published probe (paper section 3) uses it, without row weights.
    """
    weights_B = torch.ones_like(targets_B) if weights_B is None else weights_B.to(targets_B)
    return Head(*_weighted_ridge(design_BK, targets_B, weights_B, alphas), low, high)


def fit_logistic(
    design_BK: Float[Tensor, "B K"],
    targets_B: Float[Tensor, " B"],
    alphas: Sequence[float],
    low: float,
    high: float,
    weights_B: Float[Tensor, " B"] | None = None,
) -> Head:
    """Minimise −Σ v [t log q + (1 − t) log(1 − q)] + α/2 ‖w‖² with t = (y − low)/(high − low), q = σ(xᵀw + b).

    Fractional targets are allowed (mean reward of several siblings). Of several penalties the largest is fitted first,
    and each starts from the one before. Targets that are the same wherever there is weight give a constant head.
    """
    weights_B = torch.ones_like(targets_B) if weights_B is None else weights_B.to(targets_B)
    share_B = ((targets_B - low) / (high - low)).clamp(0, 1) if high > low else torch.zeros_like(targets_B)
    least, most = share_B[weights_B > 0].aminmax()
    if least == most:
        return Head.constant(low + (high - low) * float(least), design_BK.shape[1], len(alphas))
    mean = (weights_B @ share_B / weights_B.sum()).clamp(_MIN_CURVATURE, 1 - _MIN_CURVATURE)
    design_BK = design_BK.double()  # once, since every step reads it
    at = (torch.zeros_like(design_BK[0]), torch.logit(mean))
    found: dict[float, tuple[Tensor, Tensor]] = {}
    for alpha in sorted(set(alphas), reverse=True):
        at = found[alpha] = _LogisticRows(design_BK, share_B, weights_B, alpha).minimum(at)
    weights_AK, intercept_A = (torch.stack(part) for part in zip(*(found[alpha] for alpha in alphas), strict=True))
    return Head(weights_AK, intercept_A, low, high, True)


@dataclass(frozen=True)
class _LogisticRows:
    """One logistic fit; a point is (weights_K, intercept)."""

    design_BK: Tensor
    share_B: Tensor
    weights_B: Tensor
    alpha: float

    def minimum(self, at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Newton steps with a halving line search; the objective is strictly convex, so they converge."""
        loss = self.loss(*at)
        for _ in range(_MAX_NEWTON_STEPS):
            step, size = self.newton_step(*at), 1.0
            while not (new := self.loss(at[0] + size * step[0], at[1] + size * step[1])) <= loss:
                size /= 2
                if size < 1e-8:  # no descent left in double precision: this is the minimum
                    return at
            at = (at[0] + size * step[0], at[1] + size * step[1])
            converged, loss = bool(loss - new <= 1e-12 * len(self.share_B)), new
            if converged:
                return at
        warnings.warn(
            f"logistic probe not converged after {_MAX_NEWTON_STEPS} Newton steps (alpha={self.alpha})", stacklevel=2
        )
        return at

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
        new_AK, new_A = _weighted_ridge(self.design_BK, response_B, self.weights_B * curvature_B, (self.alpha,))
        return new_AK[0] - weights_K, new_A[0] - intercept


def _weighted_ridge(
    design_BK: Tensor, y_B: Tensor, weights_B: Tensor, alphas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Slopes and intercept under each penalty; rows of X and y are centred and scaled by the root of their weight.

    The slopes are (XᵀX + αI)⁻¹Xᵀy, or Xᵀ(XXᵀ + αI)⁻¹y where there are more columns than rows.
    """
    rows, columns = design_BK.shape
    total, root_B = weights_B.sum(), weights_B.sqrt()
    mean = weights_B @ y_B / total
    y_B = (y_B - mean) * root_B
    if columns > rows:
        x_BK = design_BK.double()
        mean_K = weights_B @ x_BK / total
        x_BK = (x_BK - mean_K) * root_B[:, None]
        weights_AK = _penalised_solves(x_BK @ x_BK.T, y_B, alphas) @ x_BK
    else:
        # The regressors are standardised, so centring after the sums loses no digits.
        of_2B = torch.stack([root_B, y_B])
        gram_KK, sums_2K = y_B.new_zeros(columns, columns), y_B.new_zeros(2, columns)
        for piece in pieces(design_BK):
            x_CK = design_BK[piece] * root_B[piece, None]  # float64, as the weights are
            gram_KK.addmm_(x_CK.T, x_CK)
            sums_2K.addmm_(of_2B[:, piece], x_CK)
        mean_K = sums_2K[0] / total
        gram_KK.addr_(mean_K, sums_2K[0], alpha=-1)
        weights_AK = _penalised_solves(gram_KK, sums_2K[1], alphas)
    return weights_AK, mean - weights_AK @ mean_K


def _penalised_solves(gram: Tensor, right: Tensor, alphas: Sequence[float]) -> Tensor:
    """(G + αI)⁻¹y under each penalty α; G's diagonal is left changed."""
    diagonal = gram.diagonal().clone()
    solutions: list[Tensor] = []
    for alpha in alphas:
        gram.diagonal().copy_(diagonal + alpha)
        solutions.append(torch.cholesky_solve(right[:, None], torch.linalg.cholesky(gram))[:, 0])
    return torch.stack(solutions)
