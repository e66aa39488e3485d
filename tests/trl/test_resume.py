"""Killed and resumed, a run goes on as if it had not been: weights, probe, buffer, phase and random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import tiny_policy
from poise.core import load_state
from poise.errors import RewardError, StateMismatchError
from poise.trl import STATE_FILE
from poise.trl.checkpoint import REFERENCE_FILE

LAYOUTS: dict[str, dict[str, Any]] = {
    "train": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16},
    "old, windows of two updates": {"per_device_train_batch_size": 16, "steps_per_generation": 2},
    "self-choosing": {"baseline": "auto", "gradient_accumulation_steps": 4, "per_device_train_batch_size": 8},
    "critic": {"baseline": "critic", "gae_lambda": 0.9, "critic_learning_rate": 1e-3, "num_generations": 1},
    "dynamic sampling": {"baseline": "group-mean", "dynamic_sampling": True, "num_generations": 4},
    "tracker, over several epochs": {
        "baseline": "tracker",
        "num_generations": 1,
        "train_dataset": tiny_policy.prompts(64),
    },
}


class KilledError(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def critic_state(trainer: Any) -> list[torch.Tensor]:
    if trainer.critic is None:
        return []
    state, parameters = trainer.critic.optimizer.state, list(trainer.critic.critic.parameters())
    assert state
    names = ("step", "exp_avg", "exp_avg_sq")
    return [*parameters, *(state[parameter][name] for parameter in parameters for name in names)]


def assert_same(a: Any, b: Any) -> None:
    for (name, left), (_, right) in zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True):
        assert torch.equal(left, right), name
    for left, right in zip(critic_state(a), critic_state(b), strict=True):
        assert torch.equal(left, right)
    left, right = a.estimator.state_dict(), b.estimator.state_dict()
    assert left["meta"] == right["meta"]
    assert left["tensors"].keys() == right["tensors"].keys()
    for name, tensor in left["tensors"].items():
        torch.testing.assert_close(tensor, right["tensors"][name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_run_is_the_uninterrupted_one(layout: str, tmp_path: Path) -> None:
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, **LAYOUTS[layout]}
    whole = tiny_policy.trainer(tmp_path / "whole", **settings)
    whole.train()
    killed = tiny_policy.trainer(tmp_path / "killed", callbacks=[KillAt(7)], **settings)
    with pytest.raises(KilledError):
        killed.train()
    checkpoints = sorted((tmp_path / "killed").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    # In windows of two updates a save due at step 3 waits for step 4, where nothing generated is pending.
    assert [path.name for path in checkpoints] == [
        f"checkpoint-{step}" for step in ((4, 6) if layout.startswith("old") else (3, 6))
    ]
    resumed = tiny_policy.trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    assert_same(whole, resumed)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_moving_reference_goes_on_from_where_it_was(tmp_path: Path) -> None:
    tiny_policy.model().save_pretrained(tmp_path / "policy")  # TRL builds the reference from what is on disk
    moves = {"beta": 0.04, "sync_ref_model": True, "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 2}
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "model": str(tmp_path / "policy"), **moves}
    whole = tiny_policy.trainer(tmp_path / "run", **settings)
    whole.train()
    resumed = tiny_policy.trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same(whole, resumed)
    for left, right in zip(whole.ref_model.parameters(), resumed.ref_model.parameters(), strict=True):
        assert torch.equal(left, right)
    (tmp_path / "run" / "checkpoint-3" / REFERENCE_FILE).unlink()
    with pytest.raises(StateMismatchError, match="its run did not move the reference model; turn sync_ref_model off"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def test_failed_batches_are_counted_across_a_resume(tmp_path: Path) -> None:
    def broken(completions: list[Any], **columns: Any) -> list[float]:
        return [float("nan")] * len(completions)

    settings = {"save_strategy": "steps", "save_steps": 1, "max_failed_batches": 3}
    tiny_policy.trainer(tmp_path, broken, max_steps=2, **settings).train()
    resumed = tiny_policy.trainer(tmp_path, broken, max_steps=9, **settings)
    with pytest.raises(RewardError, match="no rollout of the last 3 generation batches got a reward"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2


class KillWithin(TrainerCallback):
    """Ends the run once, after the first micro-batch of the update that follows a step."""

    def __init__(self, step: int) -> None:
        self.steps = {step}

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.steps.clear()
            raise KilledError


@pytest.mark.parametrize("layout", ["train", "old, windows of two updates"])
def test_an_interrupted_trainer_resumes_where_it_is(layout: str, tmp_path: Path) -> None:
    """In a notebook the same object goes on: nothing of the window that it was in may leak into the first one."""
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, **LAYOUTS[layout]}
    if layout.startswith("old"):
        settings |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    whole = tiny_policy.trainer(tmp_path / "whole", **settings)
    whole.train()
    interrupted = tiny_policy.trainer(tmp_path / "interrupted", callbacks=[KillWithin(6)], **settings)
    with pytest.raises(KilledError):
        interrupted.train()
    interrupted.train(resume_from_checkpoint=str(tmp_path / "interrupted" / "checkpoint-4"))
    assert_same(whole, interrupted)


class SaveAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.step


def test_a_save_within_a_window_waits_whoever_asks_for_it(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=6, num_iterations=2)
    trainer.add_callback(SaveAt(3))
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_the_best_model_is_one_that_was_saved(tmp_path: Path) -> None:
    """A save that is due within a window waits, and with it the evaluation that says which checkpoint is the best."""

    def falling(completions: list[Any], trainer_state: Any, **columns: Any) -> list[float]:
        return [1 / (1 + trainer_state.global_step)] * len(completions)

    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    every = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    layout = {"max_steps": 6, "num_iterations": 2, "per_device_eval_batch_size": 4}
    trainer = tiny_policy.trainer(tmp_path, falling, eval_dataset=tiny_policy.prompts(4), **best, **every, **layout)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_a_checkpoint_holds_only_tensors_and_json(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    state = load_state(tmp_path / "checkpoint-2" / STATE_FILE)
    assert state["meta"]["schema"] == 3
    assert json.loads(json.dumps(state["meta"])) == state["meta"]
    assert state["meta"]["version"] == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reasoning_layer": 1.0}, r"reasoning_layer: saved 2, now 1"),
        ({"state_window": 4}, r"window: saved 10, now 4"),
        ({"end_of_reasoning": ""}, r"end_of_reasoning: saved \[5\], now \[\]"),
        ({"prompt_components": 3}, r"probe.prompt_components: saved 4, now 3"),
        ({"baseline": "leave-one-out"}, r"baseline: saved 'probe', now 'leave-one-out'"),
        ({"loss_type": "grpo"}, r"weights_by_length: saved False, now True"),
    ],
)
def test_changed_settings_are_refused_by_name(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    tiny_policy.trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(StateMismatchError, match=sentence):
        tiny_policy.trainer(tmp_path, max_steps=2, **change).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path) -> None:
    tiny_policy.trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / STATE_FILE).unlink()
    with pytest.raises(StateMismatchError, match="not written by POISE"):
        tiny_policy.trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)
