"""The value of a prefix: from rows (state before a token, sibling's baseline, reward) to one folded vector.

    V = clip(h · v + c + (1 + γ) b)

Fitting is a pure function of (rows, settings, previous value); a fitted value is a frozen bundle of numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.core.heads import fit_ridge
from poise.core.projection import Projection, fit_projection
from poise.core.scores import relative_weights


@dataclass(frozen=True)
class Prefixes:
    """Rows (state before a token, b → r); `groups_B` numbers the rollouts, whose rows stay together."""

    states_BH: Float[Tensor, "B H"]
    baselines_B: Float[Tensor, " B"]
    rewards_B: Float[Tensor, " B"]
    weights_B: Float[Tensor, " B"]
    groups_B: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.rewards_B)


@dataclass(frozen=True)
class PrefixValue:
    """A fitted value, folded to one vector: V = clip(h · vector + intercept + (1 + sibling) b, low, high)."""

    vector_H: Tensor
    intercept: float
    sibling: float
    low: float
    high: float
    projection: Projection

    def __call__(self, projections_BN: Tensor, baselines_B: Float[Tensor, " B"]) -> Float[Tensor, "B N"]:
        """V from h · vector; b itself where the state says nothing finite."""
        baselines_B1 = baselines_B[:, None].to(projections_BN)
        value_BN = projections_BN + self.intercept + (1 + self.sibling) * baselines_B1
        return torch.where(value_BN.isnan(), baselines_B1, value_BN.clamp(self.low, self.high))


def fit_value(rows: Prefixes, components: int | None, alpha: float, previous: PrefixValue | None = None) -> PrefixValue:
    """Minimise Σ w (r − b − hᵀv − c − γ b)² + α(‖v'‖² + γ²), v' on the standardised states' principal components.

    Args:
        rows: all finite.
        components, alpha: principal components kept (None keeps the states as they are), and penalty.
        previous: last step's value, whose basis warm-starts the components.
    """
    warm = previous.projection if previous is not None else None
    projection, design_BK = fit_projection(rows.states_BH, components, warm)
    baselines_B, rewards_B = rows.baselines_B.double(), rows.rewards_B.double()
    head = fit_ridge(
        torch.cat([design_BK.double(), baselines_B[:, None]], 1),
        rewards_B - baselines_B,
        (alpha,),
        -math.inf,
        math.inf,
        relative_weights(rows.weights_B),
    )
    weights_K, sibling = head.weights_K[:-1], float(head.weights_K[-1])
    basis_HK = projection.basis_HK
    unscaled_H = weights_K if basis_HK is None else basis_HK[:, : projection.kept].double() @ weights_K
    vector_H = unscaled_H / projection.scale_H
    intercept = head.intercept - float(projection.mean_H.double() @ vector_H)
    bounds = float(rewards_B.min()), float(rewards_B.max())
    return PrefixValue(vector_H.float(), intercept, sibling, *bounds, projection)
