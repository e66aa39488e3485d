"""Held-out evaluation inside a run: before the first step, every few steps, and after the last."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.eval import Evaluation, evaluate, summarise
from poise.rewards import Verifier
from poise.runs.display import Display
from poise.runs.folder import RunFolder
from poise.runs.plan import Plan
from poise.runs.settings import TrainSettings

# The same sampling seed for every evaluation of every run: differences between evaluations are the policy's.
_SEED = 0


class HeldOut(TrainerCallback):
    """Evaluates the policy on held-out prompts and writes evaluations.jsonl.

    Args:
        dataset: held-out prompts, in the shared form.
        verify: what scores a completion.
        settings: how many samples, how they are sampled.
        plan: says how many updates make a step.
        folder: where evaluations are written.
        display: is told every evaluation.
    """

    def __init__(
        self,
        dataset: Dataset,
        verify: Verifier,
        settings: TrainSettings,
        plan: Plan,
        folder: RunFolder,
        display: Display,
    ) -> None:
        self.dataset, self.verify, self.settings, self.plan = dataset, verify, settings, plan
        self.folder, self.display = folder, display

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._evaluate(0, kwargs, state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Runs where a step's metrics are logged, so that the evaluation is on file before a checkpoint is."""
        if "train_runtime" in (kwargs.get("logs") or {}):
            return
        step, every = state.global_step // self.plan.updates_per_step, self.settings.evaluation.eval_every
        is_last = step == self.plan.steps or control.should_training_stop
        if is_last or (every and step % every == 0):
            self._evaluate(step, kwargs, state)

    def _evaluate(self, step: int, kwargs: dict[str, Any], state: TrainerState) -> None:
        began = time.perf_counter()
        with undisturbed():
            found = self._measure(kwargs["model"], kwargs["processing_class"])
        if state.is_world_process_zero:
            record = {**summary(found), "seconds": round(time.perf_counter() - began, 3)}
            record = {"step": step, "updates": state.global_step, **record}
            write_evaluation(found, self.folder.evaluation_file(step))
            self.folder.evaluations.append(record)
            self.display.evaluation(record)
            if found.failed:
                reason = next(iter(found.failures))
                self.display.note(f"{found.failed} of {found.samples} verifications failed there, e.g. {reason}")

    def _measure(self, model: Any, tokenizer: Any) -> Evaluation:
        """The evaluation on all held-out prompts, of which every process takes its share."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        own = evaluate(
            model,
            tokenizer,
            self.dataset.select(range(rank, len(self.dataset), world)),
            self.verify,
            k=self.settings.evaluation.eval_samples,
            temperature=self.settings.evaluation.eval_temperature,
            top_p=self.settings.evaluation.eval_top_p,
            max_new_tokens=self.settings.generation.max_completion_tokens,
            batch_size=self.settings.evaluation.eval_batch,
            seed=_SEED,
        )
        if world == 1:
            return own
        results = [result for part in gather_object([own.results]) for result in part]
        return summarise(results, own.settings, seconds=own.seconds)


def summary(found: Evaluation) -> dict[str, Any]:
    """An evaluation as one flat record: mean score with its interval, pass@k, and what went wrong."""
    return {
        "accuracy": found.average.mean,
        "low": found.average.low,
        "high": found.average.high,
        "prompts": found.average.prompts,
        "samples": found.samples,
        **{f"pass@{k}": estimate.mean for k, estimate in found.pass_at.items()},
        **{f"domain/{domain}": estimate.mean for domain, estimate in found.domains.items()},
        "tokens": found.tokens,
        "truncated": found.truncated,
        "failed": found.failed,
    }


def write_evaluation(found: Evaluation, path: Path) -> None:
    """Everything behind an evaluation, prompt by prompt, written in one go."""
    partial = path.with_suffix(".partial")
    found.to_json(partial)
    os.replace(partial, path)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards every random generator is as it was: a run samples the same rollouts however often it is evaluated."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
