"""Baselines: rewards and predictions of each prompt's rollouts in, one baseline per rollout out. Pure functions.

All take and return (P, G) tensors: P prompts, G rollouts of each. NaN marks what is missing: a failed reward, absent
features, a probe not yet fitted. NaN in the result means that no baseline of this kind exists for the rollout.

A baseline b_i keeps the policy gradient E[(r_i - b_i) ∇log π(y_i|x)] unbiased exactly when it is independent of y_i
given x (paper equations 6-7). All here are (`siblings_or_own` where the prediction is from the prompt alone), except
`group_mean`, not quite: it contains r_i, which shrinks the gradient by (G-1)/G.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

BaselineName = Literal[
    "probe", "prompt-probe", "auto", "leave-one-out", "shrinkage", "tracker", "critic", "group-mean", "none"
]
Baseline = Callable[[Float[Tensor, "P G"], Float[Tensor, "P G"]], Float[Tensor, "P G"]]


def mean_of_others(
    values_PG: Float[Tensor, "*many P G"], weights_PG: Float[Tensor, "*many P G"] | None = None
) -> Float[Tensor, "*many P G"]:
    """Mean over the siblings j != i that have a value, weighted if weights are given; NaN where there is none.

    >>> mean_of_others(torch.tensor([[1.0, 0.0, torch.nan]])).tolist()
    [[0.0, 1.0, 0.5]]
    >>> mean_of_others(torch.tensor([[1.0, 0.0, 7.0]]), torch.tensor([[1.0, 3.0, 9.0]])).tolist()
    [[5.25, 6.400000095367432, 0.25]]

    The rollout's own value enters with weight exactly zero, not by subtraction from a sum, so the result does not
    depend on it even in rounding.
    """
    share_PG = torch.ones_like(values_PG) if weights_PG is None else weights_PG.to(values_PG)
    share_PG = torch.where(values_PG.isnan(), 0.0, share_PG)
    others_GG = values_PG.new_ones(values_PG.shape[-1], values_PG.shape[-1]).fill_diagonal_(0.0)
    # No matrix product: a GPU may be told to round those to ten bits (TF32).
    sum_PG = ((values_PG.nan_to_num(0.0) * share_PG)[..., None] * others_GG).sum(-2)
    return sum_PG / (share_PG[..., None] * others_GG).sum(-2)


def cross_rollout(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """POISE: b_i = mean over siblings j != i of g(z_j).

    Args:
        rewards_PG: not used.
        predictions_PG: the probe's prediction from each rollout's own features.

    Source: paper Algorithm 1; the mean over siblings for G > 2 is its natural extension.
    """
    return mean_of_others(predictions_PG)


def leave_one_out(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """RLOO: b_i = mean over siblings j != i of r_j.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    return mean_of_others(rewards_PG)


def shrinkage(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """James-Stein: the siblings' mean, drawn towards the other prompts' mean as far as it is noise.

        b_i = (1 − λ_i) · mean_{j≠i} r_j + λ_i · m,   λ_i = a_i / (a_i + t)

    Over the *other* prompts q, with n_q known rewards each: m = mean of their means; σ² = pooled variance within them;
    V = variance of their means (Q − 1); τ² = max(0, V − σ² · mean(1/n_q)). Then a_i = σ² / k_i, the variance of a mean
    of k_i siblings, and t = τ²(1 + 1/Q) + σ² · mean(1/n_q)/Q, the squared distance of m from this prompt's value.
    λ_i is the weight that minimises E[(b_i − E[r|x])²] for these moments.

    Where the other prompts say nothing of σ² or V (fewer than two of them, or one rollout each), λ_i = 0; where there
    is no sibling, b_i = m. Nothing of the rollout itself enters, nor any moment of its own prompt but the siblings'
    mean, so the gradient stays unbiased.

    Source: the idea is arXiv 2511.03710's (shrinkage baselines for verifiable rewards); the moments that set the
    strength are our own choice, made so that it too is independent of y_i.
    """
    siblings_PG, moments = mean_of_others(rewards_PG), _moments_of_others(rewards_PG.double())
    count_PG = _siblings_known(rewards_PG).to(moments.mean_P)
    noise_PG = moments.within_P[:, None] / count_PG
    share_PG = noise_PG / (noise_PG + moments.distance_P[:, None])
    target_PG = moments.mean_P[:, None].expand_as(rewards_PG)
    siblings_PG = siblings_PG.to(target_PG)
    shrunk_PG = siblings_PG + share_PG * (target_PG - siblings_PG)
    return first_known(shrunk_PG, siblings_PG, target_PG).to(rewards_PG)


def prompt_value(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Single-stream: b_i = v(x), the prompt's value from what was known before the batch.

    Args:
        rewards_PG: not used.
        predictions_PG: v(x), the same for all rollouts of a prompt.

    Source: arXiv 2509.13232 (per-prompt tracker). A critic's value of the prompt stands here too: PPO's token-level
    advantages are made of it elsewhere (`core.returns`).
    """
    return predictions_PG


@dataclass(frozen=True)
class _Moments:
    """Of all prompts but this one: mean of means, pooled variance within, squared distance of the mean from a value."""

    mean_P: Tensor
    within_P: Tensor
    distance_P: Tensor


def _moments_of_others(rewards_PG: Float[Tensor, "P G"]) -> _Moments:
    known_P = (~rewards_PG.isnan()).sum(1).to(rewards_PG)
    has_P = (known_P > 0).to(rewards_PG)
    mean_P = rewards_PG.nan_to_num(0.0).sum(1) / known_P.clamp_min(1)
    squares_P = (rewards_PG - mean_P[:, None]).nan_to_num(0.0).square().sum(1)
    prompts_P = _known(_sum_of_others(has_P))
    within_P = _sum_of_others(squares_P) / _known(_sum_of_others((known_P - 1).clamp_min(0)))
    center_P = _sum_of_others(mean_P * has_P) / prompts_P
    # Var = E[m²] − E[m]² loses digits only where the means agree to a billionth of their size (float64).
    spread_P = _sum_of_others(mean_P.square() * has_P) / prompts_P - center_P.square()
    variance_P = spread_P.clamp_min(0) * prompts_P / _known(prompts_P - 1)
    noise_P = within_P * _sum_of_others(has_P / known_P.clamp_min(1)) / prompts_P
    between_P = (variance_P - noise_P).clamp_min(0)
    return _Moments(center_P, within_P, between_P * (1 + 1 / prompts_P) + noise_P / prompts_P)


def _siblings_known(values_PG: Tensor) -> Tensor:
    known_PG = ~values_PG.isnan()
    return known_PG.sum(1, keepdim=True) - known_PG.long()


def _known(count: Tensor) -> Tensor:
    """Counts to divide by; NaN where there is nothing."""
    return torch.where(count > 0, count, torch.nan)


def group_mean(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """GRPO: b_i = mean of the whole group's rewards, the rollout's own included.

    Source: Shao et al. 2024 (arXiv 2402.03300).
    """
    return rewards_PG.nanmean(1, keepdim=True).expand_as(rewards_PG)


def none(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """REINFORCE without a baseline: b_i = 0."""
    return torch.zeros_like(rewards_PG)


def siblings_or_own(rewards_PG: Float[Tensor, "P G"], predictions_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """What is predicted from the prompt's state alone: the mean of what the siblings' forward passes say of it.

    It is a function of the prompt, so a rollout without siblings takes its own.

    >>> siblings_or_own(torch.zeros(2, 2), torch.tensor([[0.5, 0.25], [0.75, torch.nan]])).tolist()
    [[0.25, 0.5], [0.75, 0.75]]
    """
    return first_known(mean_of_others(predictions_PG), predictions_PG)


def other_prompts(
    rewards_PG: Float[Tensor, "P G"],
    weights_PG: Float[Tensor, "P G"] | None = None,
    earlier_2P: Float[Tensor, "2 P"] | None = None,
) -> Float[Tensor, "P G"]:
    """Mean reward of all rollouts of the *other* prompts, weighted if weights are given: the last resort.

    Args:
        earlier_2P: Σ w r and Σ w of earlier batches, which join the sums.

    >>> other_prompts(torch.tensor([[1.0, torch.nan], [0.0, 1.0]])).tolist()
    [[0.5, 0.5], [1.0, 1.0]]
    >>> other_prompts(torch.tensor([[1.0], [0.0]]), earlier_2P=torch.tensor([[3.0, 0.0], [3.0, 0.0]])).tolist()
    [[0.75], [1.0]]
    """
    share_PG = torch.ones_like(rewards_PG) if weights_PG is None else weights_PG.to(rewards_PG)
    share_PG = torch.where(rewards_PG.isnan(), 0.0, share_PG)
    sums_2P = torch.stack([rewards_PG.nan_to_num(0.0) * share_PG, share_PG]).sum(2)
    sum_P, total_P = _sum_of_others(sums_2P) + (0.0 if earlier_2P is None else earlier_2P.to(sums_2P))
    return (sum_P / total_P)[:, None].expand_as(rewards_PG)


def _sum_of_others(values_P: Tensor) -> Tensor:
    """Sum before plus sum after each element, which itself never enters, not even in rounding."""
    before_P = pad(values_P, (1, -1)).cumsum(-1)
    after_P = pad(values_P, (-1, 1)).flip(-1).cumsum(-1).flip(-1)
    return before_P + after_P


def first_known(*candidates: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """The first candidate that is not NaN, element by element."""
    result = candidates[0]
    for candidate in candidates[1:]:
        result = torch.where(result.isnan(), candidate, result)
    return result


BASELINES: dict[BaselineName, Baseline] = {
    "probe": cross_rollout,
    "leave-one-out": leave_one_out,
    "shrinkage": shrinkage,
    "tracker": prompt_value,
    "critic": prompt_value,
    "prompt-probe": siblings_or_own,
    "auto": cross_rollout,  # one of the candidates that `core.mixture` combines
    "group-mean": group_mean,
    "none": none,
}
# These read the policy's states.
READ_STATES: frozenset[BaselineName] = frozenset({"probe", "prompt-probe", "auto"})
# A single rollout of a prompt has no baseline of these kinds.
NEED_SIBLINGS: frozenset[BaselineName] = frozenset({"probe", "leave-one-out", "group-mean"})
