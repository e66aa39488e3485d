"""What the probe sees of a batch of rollouts, row by row: pooled states and entropy statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from poise.core.scores import surprise
from poise.core.trees import cat_tensors, map_tensors
from poise.errors import ConfigError


@dataclass(frozen=True)
class Features:
    """z_i = [h_prompt ; h_reasoning ; u] of B rollouts, from the old policy's forward pass.

    Args:
        prompt_BH: mean hidden state of the last n prompt tokens, fp32.
        reasoning_BH: mean hidden state of the last n reasoning tokens, fp32.
        entropy_BE: mean token entropy (nats) over output, reasoning, answer; NaN where the part is absent.
        reward_B: the rollout's own verified reward, NaN where verification failed. It may inform a *sibling's*
            baseline, like everything else here, and never the rollout's own. The estimator fills it in.
        squared_score_B: the rollout's own squared score (`squared_score`, whatever the loss divides by), with which the
            reward becomes the rollout's outcome; the same holds for it. None if the probe does not see outcomes.

    A row whose states are not finite (no tokens, overflow) is absent: it predicts nothing and is never learnt from.

    Source: paper section 3, z = [h_p ; h_r ; u].
    """

    prompt_BH: Float[Tensor, "B H"]
    reasoning_BH: Float[Tensor, "B H2"]
    entropy_BE: Float[Tensor, "B E"]
    reward_B: Float[Tensor, " B"] | None = None
    squared_score_B: Float[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return len(self.prompt_BH)

    @property
    def has_prompt_B(self) -> Bool[Tensor, " B"]:
        """Which rows have the prompt's state, whatever became of the response: a function of the prompt."""
        return _is_finite(self.prompt_BH)

    @property
    def present_B(self) -> Bool[Tensor, " B"]:
        """Which rows have features."""
        return self.has_prompt_B & _is_finite(self.reasoning_BH)

    def scalars(self, with_outcome: bool) -> Float[Tensor, "B S"]:
        """The numbers that may be absent (NaN): the entropies; and, if asked for, the outcome.

        The outcome's columns are the last ones: how unsure the policy was, if that is known, and the reward.
        """
        if not with_outcome:
            return self.entropy_BE
        if self.reward_B is None:
            raise ConfigError("the probe sees the sibling's outcome, and these features carry no reward (reward_B)")
        unsure = [] if self.squared_score_B is None else [surprise(self.squared_score_B)]
        outcome_BO = torch.stack([*unsure, self.reward_B], dim=1)
        return torch.cat([self.entropy_BE, outcome_BO.to(self.entropy_BE)], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """Apply `function` to each tensor: a gather over ranks, a move to a device, an index."""
        return map_tensors(self, function)

    def select(self, rows: Tensor | slice) -> Features:
        """The rows that an index, mask or slice picks."""
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """All rows of all parts, in order.

        Raises:
            ConfigError: some parts carry rewards or squared scores and some do not.
        """
        if len({(part.reward_B is None, part.squared_score_B is None) for part in parts}) > 1:
            raise ConfigError(
                "some of these features carry rewards or squared scores (reward_B, squared_score_B), some not"
            )
        return cat_tensors(parts)


def _is_finite(states_BH: Tensor) -> Tensor:
    # NaN and infinities survive in a row's sum; testing every element would cost as much as a fit.
    return states_BH.sum(1, dtype=torch.float32).isfinite()
