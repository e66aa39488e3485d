"""The `credit` step on verl: from a batch as TransferQueue holds it to rollouts, and from their credit back to rows.

A verl batch may hold several rows per rollout (agent loops with several outputs), rows that only pad it to a multiple
of the mini-batch, and groups that lost a rollout, in any order. Its keys, `{prompt}_{rollout}_{output}`, say which is
which. Each row has a prompt of its own; a later output's may hold what the rollout wrote before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poise.core import Credit, Features, Rollouts, domain_id


@dataclass(frozen=True)
class BatchRows:
    """Which rows of a batch are which rollouts.

    Args:
        first_R: for each rollout, the row of its first output, whose prompt holds nothing that the rollout wrote.
        last_R: for each rollout, the row of its last output: the one that was verified, and whose other states count.
        rollout_B: for each row, its rollout; -1 for padding.
        groups_R: for each rollout, a number for its prompt.
    """

    first_R: Tensor
    last_R: Tensor
    rollout_B: Tensor
    groups_R: Tensor

    @staticmethod
    def of(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> BatchRows:
        """Read a batch's keys; rows tagged `is_padding` belong to no rollout."""
        rollouts: dict[tuple[str, str], int] = {}
        prompts: dict[str, int] = {}
        outputs: list[list[tuple[int, int]]] = []
        groups: list[int] = []
        rollout_of_row: list[int] = []
        for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            if tag.get("is_padding", False):
                rollout_of_row.append(-1)
                continue
            prompt, session, output = key.rsplit("_", 2)
            rollout = rollouts.setdefault((prompt, session), len(rollouts))
            if rollout == len(outputs):
                outputs.append([])
                groups.append(prompts.setdefault(prompt, len(prompts)))
            outputs[rollout].append((int(output), row))
            rollout_of_row.append(rollout)
        return BatchRows(
            torch.tensor([min(numbered)[1] for numbered in outputs], dtype=torch.long),
            torch.tensor([max(numbered)[1] for numbered in outputs], dtype=torch.long),
            torch.tensor(rollout_of_row, dtype=torch.long),
            torch.tensor(groups, dtype=torch.long),
        )

    def rollouts(
        self,
        rewards_B: Tensor,
        features_B: Features | None,
        sources_B: Sequence[Any],
        scores: tuple[Tensor, Tensor] | None = None,
    ) -> Rollouts:
        """The batch's rollouts; a reward that is not a number has failed.

        Args:
            rewards_B: verl's reward of each row.
            features_B: captured features of each row; a rollout's are those of its last output, with the prompt of its
                first. None if the baseline needs none.
            sources_B: `data_source` of each row, the name of its domain.
            scores: squared score of each row, and its weight in the gradient's variance; a rollout's is the sum over
                its outputs. None if the probe reads none.
        """
        features = None
        if features_B is not None:
            features = replace(
                features_B.select(self.last_R),
                prompt_BH=features_B.prompt_BH[self.first_R],
                squared_score_B=self._summed(scores[0]) if scores is not None else None,
            )
        domains = [domain_id(str(sources_B[row])) for row in self.last_R.tolist()]
        return Rollouts(
            rewards_B=rewards_B[self.last_R],
            groups_B=self.groups_R,
            features=features,
            domains_B=torch.tensor(domains, dtype=torch.long),
            weights_B=self._summed(scores[1]) if scores is not None else None,
        )

    def _summed(self, values_B: Tensor) -> Tensor:
        real_B = self.rollout_B >= 0
        return values_B.new_zeros(len(self.last_R)).index_add(0, self.rollout_B[real_B], values_B[real_B])

    def spread(self, values_R: Tensor, padding: float) -> Tensor:
        """Each rollout's value on all of its rows, `padding` on the others."""
        values_B = values_R[self.rollout_B.clamp_min(0)] if len(values_R) else values_R.new_zeros(len(self.rollout_B))
        return torch.where(self.rollout_B >= 0, values_B, torch.full_like(values_B, padding))


def unused_rows(rows: BatchRows, credit: Credit) -> list[int]:
    """Rows of rollouts that leave the update: their reward failed, or no baseline exists for them."""
    used_B = rows.spread(credit.used_B.float(), padding=1.0)
    return (used_B == 0).nonzero()[:, 0].tolist()


def predictions_by_key(keys: Sequence[str], rows: BatchRows, credit: Credit) -> dict[str, dict[str, float | None]]:
    """Prediction, baseline and advantage under each row's key, for the dumps; None where there is no value."""
    columns = {
        "prediction": rows.spread(credit.predictions_B, torch.nan).tolist(),
        "baseline": rows.spread(credit.baselines_B, torch.nan).tolist(),
        "advantage": rows.spread(torch.where(credit.used_B, credit.advantages_B, torch.nan), torch.nan).tolist(),
    }
    return {
        key: {name: number_or_none(values[row]) for name, values in columns.items()} for row, key in enumerate(keys)
    }


def number_or_none(value: Any) -> Any:
    """None for NaN, which JSON does not have; anything else as it is."""
    return None if isinstance(value, float) and value != value else value


def numbers_or_none(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The same for each value of each column."""
    return {name: [number_or_none(value) for value in values] for name, values in columns.items()}
