"""From inner products of score vectors to the variance of a policy gradient, within prompts and in total.

A prompt's gradient from m rollouts is G = 1/m Σ_i (r_i − b_i) s_i; an update of B rollouts averages B/m prompts:

    tr Cov = (m/B) (E‖G‖² − ‖E G‖²)

Everything here is a function of Gram matrices, so it needs no vector of the policy's size. Axis suffixes: `_M`
prompts, `_n` rollouts of each, `_R` resamples (the first is the data).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.baselines import mean_of_others

# All subsets of 8 rollouts of one size are at most 70; beyond, so many are drawn evenly.
_MAX_SUBSETS = 70
# Strengths of the prior of the variance-optimal oracle, in rollouts of mean weight.
_PRIORS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Method:
    """A baseline as a function of m rollouts of every prompt.

    Args:
        name: for tables.
        baselines: (rewards_Mm, which of the n rollouts they are) -> baselines_Mm.
        smallest: fewest rollouts a prompt that it needs.
        noise_M: sampling variance of an oracle's baseline, whose effect is taken out; 0 for the others.
    """

    name: str
    baselines: Callable[[Tensor, list[int]], Tensor]
    smallest: int = 1
    noise_M: Tensor | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the baseline is a number of the prompt alone, as Proposition 1 assumes."""
        return self.smallest == 1


def fixed(name: str, baseline_M: Tensor, noise_M: Tensor | None = None) -> Method:
    """A baseline that depends on the prompt alone."""
    return Method(name, lambda rewards, chosen: baseline_M[:, None].expand_as(rewards), 1, noise_M)


def crossed(name: str, predictions_Mn: Tensor) -> Method:
    """Mean of the siblings' predictions."""
    return Method(name, lambda rewards, chosen: mean_of_others(predictions_Mn[:, chosen]), 2)


def of_rewards(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """A baseline of `poise.core.baselines` that reads rewards only; all prompts are one batch."""
    return Method(name, lambda rewards, chosen: function(rewards, rewards), 2)


def second_moment_M(
    gram_Mnn: Float[Tensor, "M n n"], rewards_Mn: Float[Tensor, "M n"], method: Method, m: int
) -> Float[Tensor, " M"]:
    """‖G‖² of each prompt at m rollouts, the mean over subsets of its n: an unbiased estimate of E‖G‖² given x."""
    total_M = torch.zeros(len(gram_Mnn), dtype=torch.float64)
    subsets = some_subsets(rewards_Mn.shape[1], m)
    for chosen in subsets:
        rewards_Mm = rewards_Mn[:, chosen]
        advantages_Mm = (rewards_Mm - method.baselines(rewards_Mm, chosen)).double()
        total_M += torch.einsum("pi,pij,pj->p", advantages_Mm, gram_Mnn[:, chosen][:, :, chosen], advantages_Mm)
    found_M = total_M / len(subsets) / m**2
    if method.noise_M is not None:
        found_M = found_M - method.noise_M.double() * gram_Mnn.diagonal(dim1=1, dim2=2).mean(1) / m
    return found_M


def some_subsets(n: int, m: int) -> list[list[int]]:
    """All subsets of m of n in the order of `itertools.combinations`, or at most `_MAX_SUBSETS` at even steps of it.

    >>> some_subsets(3, 2)
    [[0, 1], [0, 2], [1, 2]]
    """
    count = comb(n, m)
    return [_subset(rank, n, m) for rank in range(0, count, -(-count // _MAX_SUBSETS))]


def _subset(rank: int, n: int, m: int) -> list[int]:
    """The subset at a place of that order, without those before it: there are millions from n = 32 on."""
    chosen: list[int] = []
    for item in range(n):
        with_item = comb(n - item - 1, m - len(chosen) - 1) if len(chosen) < m else 0
        if rank < with_item:
            chosen.append(item)
        else:
            rank -= with_item
    return chosen


def within_and_mean_M(gram_Mnn: Tensor, rewards_Mn: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Of a fixed baseline: tr Cov((r − b)s | x) and ‖E[(r − b)s | x]‖² of each prompt, unbiased.

    Source: paper Proposition 1; Σ_within is the mean of the first, Σ_between the variance behind the second.
    """
    one_M, two_M = (second_moment_M(gram_Mnn, rewards_Mn, method, m) for m in (1, 2))
    # ‖G‖² at m = 2 is half the first moment and half the mean inner product of two rollouts.
    mean_M = 2 * two_M - one_M
    return one_M - mean_M, mean_M


def signal_R(across_MM: np.ndarray, weights_RM: np.ndarray) -> np.ndarray:
    """‖E G‖² from inner products between different prompts; a prompt drawn twice is not two prompts."""
    total_R = np.einsum("rp,pq,rq->r", weights_RM, across_MM, weights_RM, optimize=True)
    square_RM = weights_RM**2
    own_R, pairs_R = square_RM @ across_MM.diagonal(), weights_RM.sum(1) ** 2 - square_RM.sum(1)
    return (total_R - own_R) / pairs_R


def total_variance_R(
    second_M: np.ndarray, signal_R: np.ndarray, weights_RM: np.ndarray, m: int, budget: int
) -> np.ndarray:
    """(m/B)(E‖G‖² − ‖E G‖²), on the data and each resample."""
    return m / budget * (weights_RM @ second_M - signal_R)


def optimal_baseline_M(norms_MK: Tensor, rewards_MK: Tensor) -> Tensor:
    """b* = E[‖s‖² r] / E[‖s‖²] of each prompt, from K rollouts of it, drawn towards the one of all prompts together.

        b*_x = (Σ_k w_k r_k + κ w̄ b̄) / (Σ_k w_k + κ w̄),   w = ‖s‖²,   b̄ = Σ w r / Σ w over all prompts

    It minimises tr Cov((r − b)s) over all numbers b. The norms have a long tail: a prompt of which no failure was seen
    would get b* = 1, and one failure then outweighs everything. κ is the one of `_PRIORS` with the least variance on
    rollouts that the baseline has not seen (leave-one-out over these K).

    Source: Greensmith, Bartlett, Baxter 2004 for b*; the prior is ours.
    """
    weight_MK, rewards_MK = norms_MK.double(), rewards_MK.double()
    mean = weight_MK.mean().clamp_min(1e-300)
    typical = (weight_MK * rewards_MK).mean() / mean
    upper_M, lower_M = (weight_MK * rewards_MK).sum(1, keepdim=True), weight_MK.sum(1, keepdim=True)

    def loss(prior: float) -> float:
        others_MK = upper_M - weight_MK * rewards_MK + prior * mean * typical
        left_out_MK = others_MK / (lower_M - weight_MK + prior * mean).clamp_min(1e-300)
        return float((weight_MK * (rewards_MK - left_out_MK).square()).mean())

    prior = min(_PRIORS, key=loss)
    return ((upper_M + prior * mean * typical) / (lower_M + prior * mean))[:, 0]
