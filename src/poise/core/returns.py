"""Returns and advantages of single tokens, and what PPO and SPO do to advantages before the loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    values_BT: Float[Tensor, "B T"], rewards_B: Float[Tensor, " B"], mask_BT: Tensor, lam: float = 1.0
) -> Float[Tensor, "B T"]:
    """Generalised advantage estimates for a reward that comes with the last token, undiscounted.

        δ_t = V_{t+1} − V_t,   δ_T = r − V_T,   A_t = δ_t + λ A_{t+1}

    λ = 1 is r − V_t, unbiased whatever V is, as long as V_t is a function of what precedes token t (and of other
    rollouts). λ < 1 puts V_{t+1}, a function of token t, in the place of what comes after: its gradient is biased by
    V's errors. λ = 0 is V_{t+1} − V_t.

    Args:
        values_BT: V_t, from the state before token t, on the reward's scale.
        rewards_B: r, finite or NaN; the row of a NaN is NaN.
        mask_BT: the policy's tokens; the others are passed over, and get 0.
        lam: λ in [0, 1].

    >>> values, reward, mask = torch.tensor([[0.5, 0.25]]), torch.tensor([1.0]), torch.ones(1, 2)
    >>> gae(values, reward, mask).tolist(), gae(values, reward, mask, lam=0.0).tolist()
    ([[0.5, 0.75]], [[-0.25, 0.75]])

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16, with discount 1.
    """
    mask_BT = mask_BT.bool()
    if lam == 1.0:  # the sum telescopes
        return torch.where(mask_BT, rewards_B[:, None] - values_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B, next_B = rewards_B, torch.zeros_like(rewards_B)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        is_token_B, value_B = mask_BT[:, t], values_BT[:, t]
        next_B = torch.where(is_token_B, next_value_B - value_B + lam * next_B, next_B)
        next_value_B = torch.where(is_token_B, value_B, next_value_B)
        advantages_BT[:, t] = torch.where(is_token_B, next_B, 0.0)
    return advantages_BT


def whiten(values: Float[Tensor, "*shape"], used: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(A − mean) / standard deviation over what is used; 0 elsewhere, and everywhere if all used values are equal.

    >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]

    Mean and deviation contain each rollout's own advantage, so the gradient is no longer unbiased.

    Source: arXiv 2509.13232 (over a batch's rollouts); PPO as run on language models (over its tokens).
    """
    if not bool(used.any()):
        return torch.zeros_like(values)
    centered = torch.where(used, values - values[used].mean(), 0.0)
    deviation = centered[used].square().mean().sqrt()
    return centered / deviation if float(deviation) > 1e-8 else torch.zeros_like(values)
