"""A value per prompt, remembered from visit to visit: the baseline of single-stream policy optimisation (SPO).

prompts --predict--> v(x) as it stood --> advantages r - v(x)
prompts, rewards --updated--> the next visit's v(x), with older rewards forgotten
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.core.limits import finite, positive
from poise.errors import ConfigError


@dataclass(frozen=True)
class TrackerConfig:
    """How a prompt's value is remembered.

    Args:
        prior: value of a prompt before any reward was seen, on the reward's scale.
        half_life: updates after which a past reward weighs half.
        least_kept, most_kept: bounds on what one visit keeps of the past, whatever the half-life says.

    Source: bounds and the weight of the prior, 1 / (1 − least_kept) = 8 rollouts, arXiv 2509.13232, section 3 (checked
    against four public re-implementations, which agree on them; the paper itself was not at hand). Deviates from it:
    forgetting is by updates, not by the policy's KL to the one that last saw the prompt, whose log-probs are
    not kept; and unseen prompts start from the mean of all rewards so far, not from offline samples of each prompt.
    """

    prior: float = 0.5
    half_life: float = 16.0
    least_kept: float = 0.875
    most_kept: float = 0.96

    def __post_init__(self) -> None:
        finite("tracker_prior", self.prior)
        positive("tracker_half_life", self.half_life)
        for name in ("least_kept", "most_kept"):
            finite(name, getattr(self, name))
        if not 0 <= self.least_kept <= self.most_kept < 1:
            raise ConfigError(
                f"the tracker keeps between {self.least_kept} and {self.most_kept} of the past per visit; "
                "both must lie in [0, 1), the first not above the second"
            )

    @property
    def prior_count(self) -> float:
        """Rollouts that the prior counts for."""
        return 1 / (1 - self.least_kept)

    def kept(self, updates: Tensor) -> Tensor:
        """ρ = 2^(−Δ / half_life) for Δ updates since the last visit, within the bounds."""
        return (2.0 ** (-updates.double() / self.half_life)).clamp(self.least_kept, self.most_kept)


@dataclass(frozen=True)
class Tracker:
    """What is known of K prompts, sorted by their id, and of a prompt never seen. On the CPU, in float64.

    Args:
        prompts_K: `prompt_id` of each.
        values_K, counts_K: v = α/(α + β) and N = α + β of its Beta pseudo-counts; in this form any reward scale does.
        seen_K: number of the update that saw it last.
        fresh_value, fresh_count: the same of all prompts together: what an unseen prompt starts from.
        updates: updates made.
    """

    prompts_K: Int[Tensor, " K"]
    values_K: Float[Tensor, " K"]
    counts_K: Float[Tensor, " K"]
    seen_K: Int[Tensor, " K"]
    fresh_value: Float[Tensor, ""]
    fresh_count: Float[Tensor, ""]
    updates: Int[Tensor, ""]

    @staticmethod
    def start(config: TrackerConfig) -> Tracker:
        """Before the first reward."""
        none = torch.zeros(0, dtype=torch.int64)
        value, count = (torch.tensor(number, dtype=torch.float64) for number in (config.prior, config.prior_count))
        return Tracker(none, none.double(), none.double(), none, value, count, torch.tensor(0))

    def predict(self, prompts_B: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """v(x) of each rollout's prompt, from earlier updates alone."""
        position_B, known_B = self._find(prompts_B.cpu())
        values_B = self.fresh_value.expand(len(prompts_B)).clone()
        values_B[known_B] = self.values_K[position_B[known_B]]
        return values_B.to(device=prompts_B.device, dtype=torch.float32)

    def updated(self, prompts_B: Int[Tensor, " B"], rewards_B: Float[Tensor, " B"], config: TrackerConfig) -> Tracker:
        """The tracker after one batch; rollouts without a reward say nothing.

            N' = ρN + k,   v' = (ρN·v + Σ r) / N'       k rewards of the prompt, ρ = config.kept(Δ)

        For k = 1 this is α' = ρα + r, β' = ρβ + 1 − r. A prompt's first visit forgets nothing of the prior.

        Source: arXiv 2509.13232, section 3.
        """
        kept_B = rewards_B.isfinite()
        prompts_B, rewards_B = prompts_B[kept_B].cpu(), rewards_B[kept_B].double().cpu()
        seen_V, row_B = prompts_B.unique(return_inverse=True)
        reward_V = torch.zeros(len(seen_V), dtype=torch.float64).index_add(0, row_B, rewards_B)
        count_V = row_B.bincount(minlength=len(seen_V)).double()
        position_V, known_V = self._find(seen_V)
        now = self.updates + 1
        value_V, weight_V = self.fresh_value.repeat(len(seen_V)), torch.full_like(count_V, config.prior_count)
        past_V = position_V[known_V]
        value_V[known_V] = self.values_K[past_V]
        weight_V[known_V] = self.counts_K[past_V] * config.kept(now - self.seen_K[past_V])
        total_V = weight_V + count_V
        fresh_weight = self.fresh_count * config.kept(torch.tensor(1.0))
        fresh_count = fresh_weight + len(rewards_B)
        return replace(
            self._with(seen_V, (weight_V * value_V + reward_V) / total_V, total_V, now),
            fresh_value=(fresh_weight * self.fresh_value + rewards_B.sum()) / fresh_count,
            fresh_count=fresh_count,
            updates=now,
        )

    def _with(self, prompts_V: Tensor, values_V: Tensor, counts_V: Tensor, now: Tensor) -> Tracker:
        """The visited prompts in place of what was known of them, sorted again."""
        left_K = ~torch.isin(self.prompts_K, prompts_V)
        prompts_K = torch.cat([self.prompts_K[left_K], prompts_V])
        order_K = prompts_K.argsort()
        return replace(
            self,
            prompts_K=prompts_K[order_K],
            values_K=torch.cat([self.values_K[left_K], values_V])[order_K],
            counts_K=torch.cat([self.counts_K[left_K], counts_V])[order_K],
            seen_K=torch.cat([self.seen_K[left_K], now.expand(len(prompts_V))])[order_K],
        )

    def _find(self, prompts_N: Tensor) -> tuple[Tensor, Tensor]:
        """Where each prompt stands, and whether it is there at all."""
        position_N = torch.searchsorted(self.prompts_K, prompts_N)
        inside_N = position_N < len(self.prompts_K)
        known_N = inside_N.clone()
        known_N[inside_N] = self.prompts_K[position_N[inside_N]] == prompts_N[inside_N]
        return position_N, known_N
