"""What a step leaves behind for its readers: `poise/*` metrics, and columns of TRL's completions table."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poise.core import Credit
from poise.trl.fresh import FreshSampler, track_metrics


class StepLog:
    """Writes into the trainer's own logs, in the order of its prompts.

    Args:
        trainer: a PoiseTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sampled_rollouts = 0  # since the run began, trained on or not
        self._fresh_B2: Tensor | None = None

    def note(self, metrics: Mapping[str, float]) -> None:
        """Metrics of a training step, which TRL averages over what it logs at once."""
        for name, value in metrics.items():
            self.trainer._metrics["train"][f"poise/{name}"].append(value)

    def note_sampled(self) -> None:
        """The rollouts sampled so far: a running sum, so it replaces what stands there instead of joining a mean."""
        self.trainer._metrics["train"]["poise/sampled_rollouts"] = [float(self.sampled_rollouts)]

    def sample_fresh(self, sampler: FreshSampler | None, inputs: list[dict[str, Any]]) -> None:
        """Fresh rollouts of the batch's prompts, from the policy that is about to sample the batch."""
        found = sampler(inputs) if sampler is not None else None
        if found is not None:
            accelerator = self.trainer.accelerator
            self._fresh_B2 = accelerator.gather(found.tensor(accelerator.device))
            self.note({"track_rollouts": float(found.rollouts), "track_seconds": found.seconds})

    def credited(self, credit: Credit, advantages_B: Tensor) -> None:
        """A whole batch, the same on every rank, with the advantages that it was trained on."""
        if self._fresh_B2 is not None:
            self.note(track_metrics(credit.baselines_B, self._fresh_B2))
            self._fresh_B2 = None
        if self.trainer.args.chosen_baseline != "group-mean":  # there TRL's own advantages stand
            advantages = self.trainer._logs["advantages"]
            for _ in range(min(len(credit), len(advantages))):
                advantages.pop()
            advantages.extend(advantages_B.tolist())
        self._columns(prediction=credit.predictions_B, baseline=credit.baselines_B, weight=credit.weights_B)

    def evaluated(self, rows: int) -> None:
        """Rollouts of an evaluation: nothing predicts or credits them, and the table's columns stay of one length."""
        nothing_B = torch.full((rows,), torch.nan)
        self._columns(prediction=nothing_B, baseline=nothing_B, weight=nothing_B)

    def _columns(self, **columns: Tensor) -> None:
        """Prediction, baseline and weight of each rollout; the weight only where it is not 1 for all."""
        logs, has_weights = self.trainer._logs, self.trainer.estimator.config.is_weighted
        for name, values_B in columns.items():
            if name != "weight" or has_weights:
                logs["extra"].setdefault(name, deque(maxlen=logs["prompt"].maxlen)).extend(values_B.tolist())
