"""The plan: literal geometries, and every batch that cannot be split."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.runs.configfile import overlay
from poise.runs.plan import make_plan
from poise.runs.settings import TrainSettings


def settings(**optimisation: object) -> TrainSettings:
    return overlay(TrainSettings(), {"optimisation": optimisation}, "test")


def test_the_published_geometry_on_eight_devices() -> None:
    plan = make_plan(settings(prompts_per_step=512, updates_per_step=32, micro_batch=2, steps=200), devices=8)
    assert plan.rollouts_per_step == 1024
    assert plan.micro_batches_per_step == 64  # 1024 rollouts / 8 devices / 2
    assert plan.accumulation == 2  # 16 prompts x 2 rollouts = 32 a update, 4 a device, 2 micro-batches
    assert plan.prompts == 102_400


def test_the_automatic_micro_batch_holds_whole_groups() -> None:
    assert make_plan(settings(prompts_per_step=32), devices=1).micro_batch == 16
    assert make_plan(settings(prompts_per_step=5, rollouts_per_prompt=3), devices=1).micro_batch == 15
    assert make_plan(settings(prompts_per_step=7, rollouts_per_prompt=24), devices=1).micro_batch == 24


@given(st.integers(1, 64), st.integers(2, 8), st.integers(1, 8), st.integers(1, 4))
def test_a_plan_accounts_for_every_rollout(prompts: int, group: int, updates: int, devices: int) -> None:
    assume(prompts % (updates * devices) == 0)
    wanted = settings(prompts_per_step=prompts, rollouts_per_prompt=group, updates_per_step=updates)
    plan = make_plan(wanted, devices)
    assert plan.micro_batch * plan.accumulation * updates * devices == prompts * group
    assert plan.micro_batch % group == 0


@pytest.mark.parametrize(
    ("optimisation", "devices", "expected"),
    [
        ({"prompts_per_step": 10, "updates_per_step": 4}, 1, "--prompts-per-step 8 or 12 can"),
        ({"prompts_per_step": 2}, 4, "--prompts-per-step 4 can"),
        ({"micro_batch": 7}, 1, "these do: 1, 2, 4, 8, 16, 32, 64"),
        ({"rollouts_per_prompt": 0}, 1, "--rollouts-per-prompt must be at least 1, got 0"),
        ({"steps": 0}, 1, "--steps must be between 1 and 1000000000, got 0"),
        ({"clip_low": 1.5}, 1, "--clip-low must be between 0 and 1, got 1.5"),
        ({"learning_rate": -1.0}, 1, "--learning-rate must be at least 0"),
    ],
)
def test_impossible_batches_are_refused(optimisation: dict[str, object], devices: int, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_plan(settings(**optimisation), devices)
    assert expected in str(refused.value)


def test_several_greedy_samples_are_refused() -> None:
    base = TrainSettings()
    greedy = replace(base, evaluation=replace(base.evaluation, eval_temperature=0.0, eval_samples=4))
    with pytest.raises(ConfigError, match="the same completion 4 times"):
        make_plan(greedy, devices=1)
