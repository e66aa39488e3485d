"""Tracking: every few steps, how good the step's predictions are against fresh rollouts of the policy that made it.

A step's own rewards are a noisy target: one sibling's reward stands for a pass rate. K fresh rollouts of each prompt
of the step say more. They are not trained on, and the run goes on as if they had not been sampled.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from poise.eval import evaluate
from poise.eval.results import PromptResult
from poise.eval.store import prompt_key
from poise.rewards import Verifier
from poise.runs.heldout import undisturbed
from poise.runs.plan import Plan
from poise.runs.settings import TrainSettings
from poise.trl.fresh import FreshValues


class Tracking:
    """Samples and verifies the fresh rollouts; set as `trainer.fresh_values`.

    Args:
        trainer: whose policy is sampled from.
        verify: what scores a completion.
        settings: how often, how many, how they are sampled (as training rollouts are).
        plan: says how many updates make a step.

    Source: the paper's diagnostics, every 10 steps against Avg@8 of the current policy.
    """

    def __init__(self, trainer: Any, verify: Verifier, settings: TrainSettings, plan: Plan) -> None:
        self.trainer, self.verify, self.settings, self.plan = trainer, verify, settings, plan

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> FreshValues | None:
        """Fresh values of a generated batch's prompts, row by row, before anything is learnt from it.

        Args:
            rows: the batch's dataset rows on this process, one per rollout.

        Returns:
            None if this step is not tracked.
        """
        step = self.trainer.state.global_step // self.plan.updates_per_step + 1
        if step % self.settings.evaluation.track_every:
            return None
        began = time.perf_counter()
        prompts = {prompt_key(row): row for row in rows}
        with undisturbed():
            found = self._sample(list(prompts.values()), step)
        results = dict(zip(prompts, found, strict=True))
        of_row = [results[prompt_key(row)] for row in rows]
        return FreshValues(
            means=[result.average for result in of_row],
            noise=[noise(result.verified) for result in of_row],
            rollouts=sum(len(result.scores) for result in found),
            seconds=time.perf_counter() - began,
        )

    def _sample(self, rows: list[Mapping[str, Any]], step: int) -> tuple[PromptResult, ...]:
        generation, evaluation = self.settings.generation, self.settings.evaluation
        return evaluate(
            self.trainer.model,
            self.trainer.processing_class,
            rows,
            self.verify,
            k=evaluation.track_samples,
            temperature=generation.temperature,
            top_p=generation.top_p,
            max_new_tokens=generation.max_completion_tokens,
            batch_size=max(evaluation.eval_batch, evaluation.track_samples),
            seed=step,  # held-out evaluations have seed 0
            resamples=1,
        ).results


def noise(scores: Sequence[float]) -> float:
    """Squared standard error of the mean of some scores; NaN for fewer than two.

    >>> noise([0.0, 1.0, 1.0, 0.0])
    0.08333333333333333
    """
    return statistics.variance(scores) / len(scores) if len(scores) > 1 else math.nan
