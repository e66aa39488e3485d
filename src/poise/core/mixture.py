"""A baseline that chooses itself: a convex combination of those at hand, weighted by how they did on past batches.

candidates --combine, with the weights as they stand--> baselines --> advantages (fixed)
candidates, rewards --learn--> second moments of their errors --> the next batch's weights

Every candidate is independent of y_i given x, and the weights come from earlier batches, so the combination is too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.core.scores import relative_weights

# Past batches fade by this factor each: a memory of ten, in which a policy changes little (docs/log.md).
DISCOUNT = 0.9
# Past rewards fade faster: their mean follows the policy (docs/log.md).
REWARD_DISCOUNT = 0.5
# Keeps the smallest systems solvable where two candidates are the same, as a share of the mean squared error.
_JITTER = 1e-6


@dataclass(frozen=True)
class Record:
    """Discounted second moments of C candidates' errors: E[e_a e_b], over the rows in which both existed.

    Args:
        sum_CC: Σ w e_a e_b, w the rows' weights.
        rows_CC: Σ w over the same rows.
    """

    sum_CC: Float[Tensor, "C C"]
    rows_CC: Float[Tensor, "C C"]

    @staticmethod
    def empty(candidates: int) -> Record:
        # Two tensors, as a file of tensors takes none twice.
        shape = candidates, candidates
        return Record(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    def learnt(self, errors_BC: Float[Tensor, "B C"], weights_B: Float[Tensor, " B"]) -> Record:
        """The record after one more batch; a NaN error says nothing of its candidate.

        Args:
            errors_BC: reward minus candidate, reward scale.
            weights_B: how much each row counts, on any scale.
        """
        if len(errors_BC) == 0:
            return self
        known_BC = errors_BC.isfinite().double().cpu()
        errors_BC = errors_BC.double().cpu().nan_to_num(0.0) * known_BC
        weights_B1 = relative_weights(weights_B.cpu())[:, None]
        return Record(
            DISCOUNT * self.sum_CC + errors_BC.T @ (weights_B1 * errors_BC),
            DISCOUNT * self.rows_CC + known_BC.T @ (weights_B1 * known_BC),
        )

    @property
    def moments_CC(self) -> Float[Tensor, "C C"]:
        """E[e_a e_b]; 0 where nothing is known."""
        return self.sum_CC / self.rows_CC.clamp_min(1e-12)

    @property
    def known_C(self) -> Bool[Tensor, " C"]:
        return self.rows_CC.diagonal() > 0

    def best(self, default: int) -> int:
        """The candidate of least mean squared error; the default before anything is known."""
        if not bool(self.known_C.any()):
            return default
        return int(torch.where(self.known_C, self.moments_CC.diagonal(), torch.inf).argmin())

    def weights(self) -> Float[Tensor, " C"]:
        """The convex weights of least mean squared error; all on the first candidate before anything is known."""
        if not bool(self.known_C.any()):
            return torch.eye(len(self.sum_CC), dtype=torch.float64)[0]
        return simplex_minimum(self.moments_CC, self.known_C)


@dataclass(frozen=True)
class Past:
    """What the batches of one domain left behind.

    Args:
        errors: of the candidates.
        rewards_2: Σ w r and Σ w over rollouts, w their weights.
    """

    errors: Record
    rewards_2: Float[Tensor, "2"]

    @staticmethod
    def empty(candidates: int) -> Past:
        return Past(Record.empty(candidates), torch.zeros(2, dtype=torch.float64))

    @cached_property
    def weights_C(self) -> Float[Tensor, " C"]:
        """The next batch's; every micro-batch of it asks."""
        return self.errors.weights()

    def learnt(
        self, candidates_BC: Float[Tensor, "B C"], rewards_B: Float[Tensor, " B"], weights_B: Float[Tensor, " B"]
    ) -> Past:
        """What is left after one more batch, of which every reward is known."""
        errors = self.errors.learnt(rewards_B[:, None] - candidates_BC, weights_B)
        weighted_B2 = torch.stack([weights_B * rewards_B, weights_B], 1).double().cpu()
        return Past(errors, REWARD_DISCOUNT * self.rewards_2 + weighted_B2.sum(0))


def simplex_minimum(moments_CC: Float[Tensor, "C C"], allowed_C: Bool[Tensor, " C"]) -> Float[Tensor, " C"]:
    """argmin wᵀMw over w ≥ 0, Σw = 1, w = 0 where not allowed. Exact, by looking at every face of the simplex.

    On the face of the candidates S the minimum is M_SS⁻¹ 1, scaled to sum 1; the best face on which it has no negative
    entry holds the answer. With four candidates there are 15 faces (axis `_F`).

    >>> [round(share, 3) for share in simplex_minimum(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2) > 0).tolist()]
    [0.75, 0.25]
    """
    candidates = len(moments_CC)
    scale = float(moments_CC.diagonal()[allowed_C].mean())
    moments_CC = moments_CC.double() + (_JITTER * scale or 1.0) * torch.eye(candidates, dtype=torch.float64)
    inside_FC = torch.tensor(list(itertools.product((0.0, 1.0), repeat=candidates))[1:], dtype=torch.float64)
    inside_FC = inside_FC[(inside_FC <= allowed_C).all(1)]
    # Candidates outside the face solve an equation of their own, with weight 0.
    system_FCC = inside_FC[:, :, None] * moments_CC * inside_FC[:, None] + torch.diag_embed(1 - inside_FC)
    share_FC = torch.linalg.solve(system_FCC, inside_FC)
    share_FC = share_FC / share_FC.sum(1, keepdim=True)
    value_F = ((share_FC @ moments_CC) * share_FC).sum(1)
    return share_FC[torch.where((share_FC >= 0).all(1), value_F, torch.inf).argmin()]


def combine(candidates_BC: Float[Tensor, "B C"], weights_BC: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Σ_c w_c b_c over the candidates that a rollout has, weights scaled to sum 1; NaN where it has none of weight.

    >>> combine(torch.tensor([[1.0, 3.0], [1.0, torch.nan]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])).tolist()
    [2.0, 1.0]
    """
    weights_BC = torch.where(candidates_BC.isnan(), 0.0, weights_BC.to(candidates_BC))
    total_B = weights_BC.sum(1)
    sum_B = (weights_BC * candidates_BC.nan_to_num(0.0)).sum(1)
    return sum_B / torch.where(total_B > 0, total_B, torch.nan)


class Mixture:
    """The past of one run, domain by domain: a new one starts from the first candidate, whatever others learnt.

    Args:
        names: the candidates; the first serves alone until a batch has been learnt from. With none, past rewards are
            remembered, and nothing is combined.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.past: dict[int, Past] = {}

    def weights_for(self, domains_B: Int[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """Each row's weights, by its domain, as past batches left them."""
        return self._by_domain(domains_B, lambda past: past.weights_C)

    def rewards_for(self, domains_B: Int[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        """Σ w r and Σ w of each row's domain over past batches."""
        return self._by_domain(domains_B, lambda past: past.rewards_2)

    def _by_domain(self, domains_B: Int[Tensor, " B"], function: Callable[[Past], Tensor]) -> Tensor:
        domains, row_B = domains_B.unique(return_inverse=True)
        values = [function(self._past_of(domain)) for domain in domains.tolist()]
        return torch.stack(values).float().to(domains_B.device)[row_B]

    def _past_of(self, domain: int) -> Past:
        return self.past.get(domain) or Past.empty(len(self.names))

    def learn(
        self,
        candidates_BC: Float[Tensor, "B C"],
        rewards_B: Float[Tensor, " B"],
        weights_B: Float[Tensor, " B"],
        domains_B: Int[Tensor, " B"],
    ) -> None:
        """Add a credited batch's errors; rollouts without a reward say nothing."""
        for domain in domains_B[rewards_B.isfinite()].unique().tolist():
            rows_B = rewards_B.isfinite() & (domains_B == domain)
            learnt = self._past_of(domain).learnt(candidates_BC[rows_B], rewards_B[rows_B], weights_B[rows_B])
            self.past[domain] = learnt
