"""Every method that the trainer offers: it runs, logs under the same names, and learns a trivial task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_policy

METHODS: dict[str, dict[str, Any]] = {
    "POISE": {"baseline": "probe"},
    "REINFORCE, n = 1": {"baseline": "none", "num_generations": 1},
    "REINFORCE, n = 2": {"baseline": "none"},
    "RLOO-2": {"baseline": "leave-one-out"},
    "shrinkage-2": {"baseline": "shrinkage"},
    "shrinkage-1": {"baseline": "shrinkage", "num_generations": 1},
    "GRPO-8": {"baseline": "group-mean", "num_generations": 8, "scale_rewards": "group"},
    "GRPO-8 without std": {"baseline": "group-mean", "num_generations": 8},
    "DAPO": {"baseline": "group-mean", "num_generations": 8, "scale_rewards": "group", "dynamic_sampling": True},
    "SPO": {"baseline": "tracker", "num_generations": 1, "whiten_advantages": True},
    "PPO": {
        "baseline": "critic",
        "num_generations": 1,
        "whiten_advantages": True,
        "gae_lambda": 0.95,
        "critic_learning_rate": 1e-3,
    },
}
SHARED = {"reward_mean", "baseline_mean", "variance_ratio", "failed", "unused", "sampled_rollouts"}


def says_digit(completions: list[str], **columns: Any) -> list[float]:
    """1 if the response opens with a digit: one in six or so of an untrained policy's."""
    return [float(completion[:1].isdigit()) for completion in completions]


def trained(folder: Path, method: str, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    trainer = tiny_policy.trainer(folder, says_digit, domain_column="", **METHODS[method], **settings)
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_are_finite_and_logged_alike(method: str, tmp_path: Path) -> None:
    untouched = tiny_policy.model()
    trainer, history = trained(tmp_path, method, max_steps=3)
    assert len(history) == 3
    for entry in history:
        assert math.isfinite(entry["loss"])
        assert math.isfinite(entry["grad_norm"])
        assert {f"poise/{name}" for name in SHARED} <= set(entry)
    assert history[-1]["poise/sampled_rollouts"] >= 3 * 32
    if method != "DAPO":
        assert history[-1]["poise/sampled_rollouts"] == 3 * 32
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(trainer.model.parameters(), untouched.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_learns_to_open_with_a_digit(method: str, tmp_path: Path) -> None:
    settings = {"max_steps": 30, "per_device_train_batch_size": 64, "learning_rate": 3e-3, "max_completion_length": 4}
    _, history = trained(tmp_path, method, lr_scheduler_type="constant", **settings)
    first, last = (sum(entry["reward"] for entry in part) / len(part) for part in (history[:3], history[-3:]))
    print(f"{method}: {first:.2f} -> {last:.2f}")
    assert last > first + 0.25
