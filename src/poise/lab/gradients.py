"""What the variance of every baseline is made of: inner products of the score vectors of a frozen policy's rollouts.

Per prompt: the Gram matrix of n rollouts' scores in each metric, and the squared score norms of further rollouts.
Between prompts: inner products of one gradient per prompt. Nothing of the size of the policy is kept but these
gradients, as bfloat16 in the cache. Axis suffixes: `_M` prompts, `_n` rollouts with Gram matrices, `_K` oracle ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.lab.cache import Cache, Tensors
from poise.lab.memory import give_back_memory
from poise.lab.scores import Pair, Projection, score_vectors

METRICS = ("sum", "token-mean", "adam")
# Adam divides by √v + ε; v comes from few rollouts here, so that ε is a thousandth of the mean √v instead of 1e-8.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Gradients:
    """Inner products of M prompts' score vectors, by metric.

    Metrics: "sum", the gradient of Σ_t log π (with a token-mean loss over the batch, the same up to the batch's own
    factor); "token-mean", each rollout's divided by its length; "adam", the first in the metric that Adam's
    preconditioner makes, s/(√v + ε).

    Args:
        rewards_Mn, lengths_Mn: of the rollouts whose Gram matrices are kept.
        grams: ⟨s_i, s_j⟩ within each prompt, (M, n, n).
        norms_K: ‖s‖² of the oracle rollouts, (M, K).
        oracle_rewards_MK: their rewards.
        across: ⟨h_p, h_q⟩ between prompts, (M, M), of h_p = 1/n Σ_i (r_i − p(x)) s_i.
    """

    rewards_Mn: Tensor
    lengths_Mn: Tensor
    grams: dict[str, Float[Tensor, "M n n"]]
    norms_K: dict[str, Float[Tensor, "M K"]]
    oracle_rewards_MK: Tensor
    across: dict[str, Float[Tensor, "M M"]]


@dataclass(frozen=True)
class Measuring:
    """How gradients are taken.

    Args:
        model: the frozen policy.
        temperature, batch: see `score_vectors`.
        projection: of every score vector before anything else.
    """

    model: Any
    temperature: float
    batch: int
    projection: Projection

    def scores(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Projected score vectors, a few at a time."""
        return [self.projection(part) for part in score_vectors(self.model, pairs, self.temperature, self.batch)]


def second_moment(measuring: Measuring, pairs: Sequence[Pair], advantages_B: Tensor, cache: Cache) -> Tensor:
    """v_D = mean of (A s)² over pilot rollouts: what Adam's second moment is where noise dominates, up to a factor."""

    def make() -> tuple[Tensors, dict[str, Any]]:
        total, start = torch.zeros(measuring.projection.dimensions), 0
        for part in score_vectors(measuring.model, pairs, measuring.temperature, measuring.batch):
            weights_B = advantages_B[start : start + len(part)].to(part)
            total += (measuring.projection(part) * weights_B[:, None]).square().sum(0).cpu()
            start += len(part)
        return {"v": total / max(1, len(pairs))}, {}

    return cache.once("pilot", make)[0]["v"]


def preconditioner(v_D: Tensor) -> Tensor:
    """1 / (√v + ε) with ε a thousandth of the mean √v, scaled to a mean square of one."""
    root_D = v_D.sqrt()
    inverse_D = 1 / (root_D + _FLOOR * root_D.mean() + 1e-30)
    return inverse_D / inverse_D.square().mean().sqrt()


def measure(
    measuring: Measuring,
    rollouts: Sequence[tuple[list[Pair], list[Pair]]],
    rewards_Mn: Tensor,
    oracle_rewards_MK: Tensor,
    inverse_D: Tensor,
    cache: Cache,
    done: Callable[[int], None],
) -> Gradients:
    """All inner products, prompt by prompt from the cache as far as they are there.

    Args:
        rollouts: for each prompt the pairs whose Gram matrix is wanted, and the oracle's.
        inverse_D: Adam's preconditioner.
    """
    parts: list[Tensors] = []
    for place, (pairs, oracle) in enumerate(rollouts):

        def make(
            place: int = place, pairs: list[Pair] = pairs, oracle: list[Pair] = oracle
        ) -> tuple[Tensors, dict[str, Any]]:
            return _prompt(measuring, pairs, oracle, rewards_Mn[place], oracle_rewards_MK[place].mean(), inverse_D), {}

        parts.append(cache.once(f"prompt-{place:06d}", make)[0])
        if place % 16 == 15:  # at every prompt it would cost a third of the time
            give_back_memory()
        done(1)
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0] if not name.startswith("mean.")}
    lengths_Mn, lengths_MK = stacked["lengths"].double(), stacked["oracle_lengths"].double()
    grams, norms = {}, {}
    for metric, source in (("sum", "sum"), ("token-mean", "sum"), ("adam", "adam")):
        grams[metric], norms[metric] = stacked[f"gram.{source}"].double(), stacked[f"norms.{source}"].double()
    grams["token-mean"] = grams["sum"] / (lengths_Mn[:, :, None] * lengths_Mn[:, None, :])
    norms["token-mean"] = norms["sum"] / lengths_MK.square()
    across = cache.once(
        "across",
        lambda: (_across([part["mean.sum"] for part in parts], [part["mean.token"] for part in parts], inverse_D), {}),
    )[0]
    return Gradients(
        rewards_Mn, lengths_Mn, grams, norms, oracle_rewards_MK, {metric: across[metric] for metric in METRICS}
    )


def _prompt(
    measuring: Measuring, pairs: list[Pair], oracle: list[Pair], rewards_n: Tensor, rate: Tensor, inverse_D: Tensor
) -> Tensors:
    """One prompt: Gram matrices, its mean gradient, and the oracle rollouts' squared norms."""
    scores_nD = torch.cat(measuring.scores(pairs))
    lengths_n = torch.tensor([len(response) for _, response in pairs])
    scale_D = inverse_D.to(scores_nD)
    weights_n = (rewards_n.to(scores_nD) - rate.to(scores_nD)) / len(pairs)
    tensors: Tensors = {
        "gram.sum": _gram(scores_nD),
        "gram.adam": _gram(scores_nD * scale_D),
        "mean.sum": (weights_n @ scores_nD).bfloat16().cpu(),
        "mean.token": ((weights_n / lengths_n.to(scores_nD)) @ scores_nD).bfloat16().cpu(),
        "lengths": lengths_n,
        "oracle_lengths": torch.tensor([len(response) for _, response in oracle]),
    }
    norms = [
        (part.square().sum(1).cpu(), (part * scale_D).square().sum(1).cpu())
        for part in map(
            measuring.projection, score_vectors(measuring.model, oracle, measuring.temperature, measuring.batch)
        )
    ]
    tensors["norms.sum"], tensors["norms.adam"] = (torch.cat(column) for column in zip(*norms, strict=True))
    return tensors


def _gram(scores_nD: Tensor) -> Tensor:
    """Inner products; fp32 sums over D are exact to 1e-5 or so, and the diagonal is never below zero."""
    return (scores_nD @ scores_nD.T).double().cpu()


def _across(sum_M: Sequence[Tensor], token_M: Sequence[Tensor], inverse_D: Tensor) -> Tensors:
    """Inner products between prompts' mean gradients in each metric, in pieces of the parameters."""
    count = len(sum_M)
    found = {metric: torch.zeros(count, count, dtype=torch.float64) for metric in METRICS}
    step = max(1, (1 << 26) // max(1, count))
    for start in range(0, len(inverse_D), step):
        h_MD = torch.stack([h[start : start + step] for h in sum_M]).float()
        t_MD = torch.stack([h[start : start + step] for h in token_M]).float()
        a_MD = h_MD * inverse_D[start : start + step]
        for metric, piece in zip(METRICS, (h_MD, t_MD, a_MD), strict=True):
            found[metric] += (piece @ piece.T).double()
    return found
