"""A batch of rollouts as the estimator sees it, and what it credits them with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.core.features import Features
from poise.core.trees import cat_tensors, map_tensors
from poise.errors import ConfigError


def domain_id(name: str) -> int:
    """A number that stands for a domain's name, the same in every process and run.

    >>> domain_id("math") == domain_id("math"), domain_id("math") == domain_id("code")
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def prompt_id(tokens: Sequence[int]) -> int:
    """A number that stands for a prompt's token ids, the same in every process and run.

    >>> prompt_id([1, 12]) == prompt_id([1, 12]), prompt_id([1, 12]) == prompt_id([11, 2])
    (True, False)
    """
    return domain_id(" ".join(map(str, tokens)))


@dataclass(frozen=True)
class Rollouts:
    """B rollouts with what was verified and captured of them, in any order.

    Args:
        rewards_B: any finite scale; NaN (or infinite) where verification failed.
        groups_B: rollouts of one prompt share a number.
        features: internal states; None if the baseline needs none.
        domains_B: `domain_id` of each rollout's domain; None if there is one domain.
        weights_B: a proxy of the rollout's squared score |∇log π(y|x)|², on any scale, from the same forward pass
            (`squared_score`), divided by whatever the loss divides by; None if the fit is not weighted. A rollout's own
            never reaches its baseline.
        prompts_B: `prompt_id` of each rollout's prompt; None if the baseline remembers no prompt.
        values_B: a critic's value of each rollout's prompt; None if there is no critic.
    """

    rewards_B: Float[Tensor, " B"]
    groups_B: Int[Tensor, " B"]
    features: Features | None = None
    domains_B: Int[Tensor, " B"] | None = None
    weights_B: Float[Tensor, " B"] | None = None
    prompts_B: Int[Tensor, " B"] | None = None
    values_B: Float[Tensor, " B"] | None = None

    def __post_init__(self) -> None:
        columns = {
            "rewards": self.rewards_B,
            "groups": self.groups_B,
            "features": self.features,
            "domains": self.domains_B,
            "weights": self.weights_B,
            "prompts": self.prompts_B,
            "values": self.values_B,
        }
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(self.rewards_B) == 0:
            raise ConfigError("there is nothing to credit: the batch holds no rollout")
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"rollouts need one row each of {', '.join(lengths)}; got {lengths}")


@dataclass(frozen=True)
class Credit:
    """Baselines and advantages of B rollouts, fixed before the probe learns from their rewards.

    Args:
        rewards_B: NaN where verification failed.
        groups_B, domains_B: as in `Rollouts`.
        predictions_B: g(z_i), the probe's prediction from the rollout's *own* states, which serves its siblings; NaN
            where the probe is cold or the states are absent.
        baselines_B: NaN where none exists.
        advantages_B: r_i - b_i; 0 where the rollout leaves the update.
        targets_B: what z_i is to predict: the siblings' mean reward, weighted by `weights_B`; NaN where no sibling has
            a reward.
        target_weights_B: how much the pair counts in the fit: the mean weight of those siblings; NaN likewise.
        weights_B: as in `Rollouts`; 1 where it gave none.
        from_probe_B: whether the baseline is the probe's; with "auto", whether it is a combination.
        features, prompts_B: as in `Rollouts`.
        version: how many updates the probe had seen.
        candidates_BC: the baselines that "auto" combined.
    """

    rewards_B: Float[Tensor, " B"]
    groups_B: Int[Tensor, " B"]
    domains_B: Int[Tensor, " B"]
    predictions_B: Float[Tensor, " B"]
    baselines_B: Float[Tensor, " B"]
    advantages_B: Float[Tensor, " B"]
    targets_B: Float[Tensor, " B"]
    target_weights_B: Float[Tensor, " B"]
    weights_B: Float[Tensor, " B"]
    from_probe_B: Bool[Tensor, " B"]
    features: Features | None
    version: int
    prompts_B: Int[Tensor, " B"] | None = None
    candidates_BC: Float[Tensor, "B C"] | None = None

    @property
    def used_B(self) -> Bool[Tensor, " B"]:
        """Which rollouts take part in the update: those with a reward and a baseline."""
        return (self.rewards_B - self.baselines_B).isfinite()

    def __len__(self) -> int:
        return len(self.rewards_B)

    def map(self, function: Callable[[Tensor], Tensor]) -> Credit:
        """Apply `function` to every tensor: a gather over ranks, an index, a move to a device."""
        return map_tensors(self, function)

    @staticmethod
    def cat(parts: Sequence[Credit]) -> Credit:
        """All rollouts of all parts; all must have been credited by the same probe."""
        versions = sorted({part.version for part in parts})
        if len(versions) != 1:
            raise ConfigError(f"credits of one update must come from one probe, got versions {versions}")
        known = sum(part.features is not None for part in parts)
        if known not in (0, len(parts)):
            raise ConfigError(f"{known} of {len(parts)} credits of one update carry features; all or none must")
        return cat_tensors(parts)


@dataclass(frozen=True)
class Grouping:
    """Rows of B rollouts arranged as P prompts x G rollouts; short groups are padded.

    Args:
        place_B: where each row stands among the P x G places.
        shape: P, G.
    """

    place_B: Int[Tensor, " B"]
    shape: tuple[int, int]

    @staticmethod
    def of(groups_B: Int[Tensor, " B"]) -> Grouping:
        """Group rows that share a number, keeping their order."""
        _, prompt_B = groups_B.unique(return_inverse=True)
        order_B, sizes_P = prompt_B.argsort(stable=True), prompt_B.bincount()
        first_P = sizes_P.cumsum(0) - sizes_P
        rank_B = torch.empty_like(order_B)
        rank_B[order_B] = torch.arange(len(order_B), device=order_B.device) - first_P[prompt_B[order_B]]
        width = int(sizes_P.max())
        return Grouping(prompt_B * width + rank_B, (len(sizes_P), width))

    def pack(self, values_B: Float[Tensor, "*many B"]) -> Float[Tensor, "*many P G"]:
        """NaN where a short group has no rollout."""
        values_PG = values_B.new_full((*values_B.shape[:-1], *self.shape), torch.nan)
        values_PG.flatten(-2)[..., self.place_B] = values_B
        return values_PG

    def unpack(self, values_PG: Float[Tensor, "*many P G"]) -> Float[Tensor, "*many B"]:
        return values_PG.flatten(-2)[..., self.place_B]
