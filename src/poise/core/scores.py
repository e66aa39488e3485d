"""A proxy of each rollout's squared score: its weight in the gradient's variance, and how unsure the policy was of it.

The variance of (r - b) s, with s = ∇log π(y|x), is smallest at b*(x) = E[|s|² r | x] / E[|s|² | x], not at the expected
reward. Least squares with weights |s|² finds the best approximation of b* that the probe can express.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# A row counts at most this many times the mean: beyond, a handful of rollouts would decide the fit (docs/log.md).
MAX_RATIO = 10.0
# Added to a squared score before its logarithm is taken; 1e-4 does as well (docs/log.md).
LEAST_SCORE = 0.01


def squared_score(log_probs_BT: Float[Tensor, "B T"], mask_BT: Tensor) -> Float[Tensor, " B"]:
    """Σ_t (1 − π_t)² over a rollout's tokens, π_t the probability of the token that was drawn.

    It is the drawn token's part of |e − π|², the squared gradient of log π_t with respect to the logits; the network
    behind them is taken to scale all tokens alike. Rollouts that the policy was sure of weigh nothing.

    Args:
        log_probs_BT: log π_t (nats) of the drawn tokens, from the forward pass that the states come from.
        mask_BT: which tokens the policy wrote; the others are inert, whatever their value.

    >>> squared_score(torch.tensor([[0.5, 0.75], [1.0, 0.5]]).log(), torch.tensor([[1, 1], [1, 0]])).tolist()
    [0.3125, 0.0]
    """
    squares_BT = (1 - log_probs_BT.detach().float().exp()).square()
    return torch.where(mask_BT.bool(), squares_BT, 0.0).sum(1)


def score_weight(squared_score_B: Float[Tensor, " B"], mask_BT: Tensor, by_length: bool) -> Float[Tensor, " B"]:
    """How much a rollout weighs in the gradient's variance: its squared score, divided as the loss divides its score.

    Args:
        mask_BT: which tokens the policy wrote.
        by_length: whether the loss divides each rollout's term by its own length.

    >>> score_weight(torch.tensor([8.0, 1.0]), torch.tensor([[1, 1], [0, 0]]), by_length=True).tolist()
    [2.0, 1.0]
    """
    return squared_score_B / mask_BT.sum(1).clamp_min(1).square() if by_length else squared_score_B


def surprise(squared_score_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """How unsure the policy was of a rollout: log(w + 0.01), w its squared score; least where every token was sure.

    >>> surprise(torch.tensor([0.0, 0.99])).tolist()
    [-4.605170249938965, 0.0]

    Not finite where w is missing, negative or infinite.
    """
    return torch.where(squared_score_B >= 0, squared_score_B + LEAST_SCORE, torch.nan).log()


def relative_weights(weights_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Weights of mean 1, so that a penalty means the same on every scale; none above 10 times the mean before that.

    >>> relative_weights(torch.tensor([0.0, 3.0, 9.0])).tolist()
    [0.0, 0.75, 2.25]

    Weights that are all zero count alike.
    """
    weights_B = weights_B.double()
    mean = weights_B.mean()
    if not float(mean) > 0:
        return torch.ones_like(weights_B)
    weights_B = weights_B.clamp_max(MAX_RATIO * mean)
    return weights_B / weights_B.mean()


def known_weights(weights_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Finite weights: one that is missing or negative becomes zero. Row by row, so that none depends on another."""
    return weights_B.nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0)


def effective_rows(weights_B: Float[Tensor, " B"]) -> float:
    """(Σw)² / Σw²: as many rows of equal weight would say as much.

    >>> effective_rows(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    return float(weights_B.sum().square() / weights_B.square().sum().clamp_min(1e-30))
