"""Recorder: listens to the trainer and writes the run folder, step by step, so that a kill loses at most one step."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.runs.display import Display
from poise.runs.folder import RunFolder
from poise.runs.plan import Plan
from poise.runs.tokens import write_tokens
from poise.trl.token_sample import TokenSample

# TRL's closing log line (total seconds, samples per second) is no step.
_CLOSING_LINE = "train_runtime"


# The kernel counts a process's resident memory in KiB; macOS in bytes.
_KERNEL_UNIT = 1 if sys.platform == "darwin" else 1024
_MIB = 1 << 20


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in MiB: resident, and on the GPU where there is one."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KERNEL_UNIT
    peak = {"peak_memory_mib": round(resident / _MIB, 1)}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / _MIB, 1)
    return peak


class Recorder(TrainerCallback):
    """Writes metrics.jsonl and token entropies, names completion files by step, marks and prunes checkpoints.

    Args:
        folder: the run's folder.
        plan: says how many updates make a step.
        display: is told every step.
        keep_checkpoints: complete checkpoints that are kept.
        seconds: training seconds of earlier sessions of this run.
        tokens: the token entropies that the trainer keeps.
        budget: the run stops after the step in which so many rollouts have been sampled; 0 for no such limit.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        display: Display,
        keep_checkpoints: int,
        seconds: float,
        tokens: TokenSample,
        budget: int = 0,
    ) -> None:
        self.folder, self.plan, self.display, self.keep = folder, plan, display, keep_checkpoints
        self.seconds, self.tokens, self.budget = seconds, tokens, budget
        earlier = (folder.metrics.read() or [{}])[-1]  # a resumed run has been rewound to its checkpoint
        self.rollouts, self.cpu_seconds = earlier.get("rollouts", 0), earlier.get("cpu_seconds", 0.0)
        self._began: tuple[float, float] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trainer's "step" is one update; the clock starts at the first update of a step."""
        if state.is_world_process_zero:
            self.folder.adopt_completions(self.plan.updates_per_step)
        if self._began is None:
            self._began = time.perf_counter(), time.process_time()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or _CLOSING_LINE in logs or self._began is None:
            return
        step_seconds = time.perf_counter() - self._began[0]
        self.seconds += step_seconds
        self.cpu_seconds += time.process_time() - self._began[1]
        self._began = None
        step = state.global_step // self.plan.updates_per_step
        # Dynamic sampling needs more rollouts than it trains on; the trainer counts all of them since the run's start.
        self.rollouts = int(logs.get("poise/sampled_rollouts") or self.rollouts + self.plan.rollouts_per_step)
        if 0 < self.budget <= self.rollouts:  # every process stops, and saves as it would after the last step
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy == "steps"
        if not state.is_world_process_zero:
            return
        record = {
            "step": step,
            "updates": state.global_step,
            "rollouts": self.rollouts,
            "tokens": logs.get("num_tokens"),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "step_seconds": round(step_seconds, 4),
            **peak_memory(),
            **{key: value for key, value in logs.items() if key not in ("step", "num_tokens")},
        }
        write_tokens(self.folder.token_file(step), self.tokens.take(), kwargs["processing_class"])
        self.folder.metrics.append(record)
        self.display.step(record)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.folder.adopt_completions(self.plan.updates_per_step)
            step = state.global_step // self.plan.updates_per_step
            self.folder.complete(state.global_step, step, self.seconds)
            self.folder.prune(self.keep)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.folder.adopt_completions(self.plan.updates_per_step)
