"""Dynamic sampling: batches full of prompts with a signal, every sampled rollout counted, exact after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import IterableDataset

import tiny_policy
from poise.errors import ConfigError
from poise.trl import PoiseConfig
from poise.trl.dynamic import FurtherPrompts, has_signal, join_rows

DAPO = {"baseline": "group-mean", "scale_rewards": "group", "dynamic_sampling": True, "num_generations": 4}


def test_signal_by_hand() -> None:
    nan = math.nan
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [nan, 0.0, nan], [nan, 0.0, 2.0], [nan, nan, nan]])
    assert has_signal(rewards).tolist() == [True, False, False, True, False]


def test_further_prompts_go_through_the_data_pass_by_pass_and_continue() -> None:
    data = tiny_policy.prompts(6).add_column("number", list(range(6)))
    whole, parts = FurtherPrompts(data, seed=3), FurtherPrompts(data, seed=3)
    order = [row["number"] for row in whole.take(12)]
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))
    assert order[:6] != order[6:]
    begun = [row["number"] for row in parts.take(4)]
    resumed = FurtherPrompts(data, seed=3)
    resumed.taken = parts.taken
    assert begun + [row["number"] for row in resumed.take(8)] == order
    assert [row["number"] for row in FurtherPrompts(data, seed=4).take(6)] != order[:6]


def test_rows_are_joined_at_one_width() -> None:
    first = {
        "prompt_ids": torch.tensor([[7, 8]]),
        "completion_ids": torch.tensor([[1, 2, 3]]),
        "completion_mask": torch.tensor([[1, 1, 1]]),
        "advantages": torch.tensor([0.5]),
        "num_items_in_batch": torch.tensor(3),
    }
    second = {
        "prompt_ids": torch.tensor([[4], [5]]),
        "completion_ids": torch.tensor([[6], [9]]),
        "completion_mask": torch.tensor([[1], [1]]),
        "advantages": torch.tensor([-0.5, 0.25]),
        "num_items_in_batch": torch.tensor(2),
    }
    joined = join_rows([first, second], pad_id=0, row_B=torch.tensor([2, 0]))
    assert {name: value.tolist() for name, value in joined.items()} == {
        "prompt_ids": [[0, 5], [7, 8]],
        "completion_ids": [[9, 0, 0], [1, 2, 3]],
        "completion_mask": [[1, 0, 0], [1, 1, 1]],
        "advantages": [0.25, 0.5],
    }


def logged(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 2}, {"num_iterations": 2}], ids=["train", "old"])
def test_batches_are_full_of_signal_and_every_rollout_counts(settings: dict[str, Any], tmp_path: Path) -> None:
    sampled: list[int] = []

    def reward(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
        sampled.append(len(completions))
        return tiny_policy.reward(completions, target)

    trainer = tiny_policy.trainer(tmp_path, reward, max_steps=2, log_completions=True, **DAPO, **settings)
    trainer.train()
    last = logged(trainer)[-1]
    rows = 32 * settings.get("gradient_accumulation_steps", 1)
    assert last["poise/sampled_rollouts"] == sum(sampled) > sum(sampled[:1])
    assert sampled[0] == rows
    table = pd.read_parquet(sorted((tmp_path / "completions").glob("*.parquet"))[-1])
    rewards, advantages = (torch.tensor(table[name].to_numpy()).view(-1, 4) for name in ("reward", "advantage"))
    assert len(table) == rows
    assert (rewards.amax(1) > rewards.amin(1)).all()
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=1e-5)
    assert (table["prompt"].to_numpy().reshape(-1, 4) == table["prompt"].to_numpy()[::4, None]).all()
    assert logged(trainer)[0]["poise/sampling_rounds"] > 1
    assert logged(trainer)[0]["poise/filled_share"] == 1.0
    assert 0 < logged(trainer)[0]["poise/signal_share"] < 1


def test_after_the_last_round_training_goes_on_with_what_there_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def first_prompt_only(completions: list[Any], **columns: Any) -> list[float]:
        return [float(index == 0) for index in range(len(completions))]

    trainer = tiny_policy.trainer(tmp_path, first_prompt_only, max_sampling_rounds=3, **DAPO)
    seen: list[dict[str, Any]] = []
    loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: seen.append(inputs) or loss(model, inputs)
    trainer.train()
    (inputs,) = seen
    kept_B = inputs["tool_mask"].sum(1) > 0
    assert int(kept_B.sum()) == 3 * 4
    assert inputs["advantages"][kept_B].abs().min() > 0.4
    assert float(inputs["num_items_in_batch"]) == float(inputs["completion_mask"][kept_B].sum())
    assert "after 3 rounds of dynamic sampling 3 of 8 prompts" in caplog.text
    assert logged(trainer)[0]["poise/filled_share"] == 3 / 8
    assert math.isfinite(logged(trainer)[0]["loss"])


def test_an_evaluation_before_the_first_batch_is_no_part_of_it(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, per_device_eval_batch_size=4, **DAPO)
    trainer.evaluate(tiny_policy.prompts(4))
    trainer.train()
    assert logged(trainer)[0]["poise/sampling_rounds"] > 1
    assert "weight" not in trainer._logs["extra"], "nothing is weighted without a probe"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"baseline": "probe"}, "biases the gradient of baseline='probe'"),
        ({"scale_rewards": "batch"}, "scales each round by itself"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "scales each round by itself"),
        ({"max_sampling_rounds": 0}, "must be a whole number of at least 1, got 0"),
    ],
)
def test_refusals(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    asked = {"scale_rewards": "none", **({} if "baseline" in settings else DAPO), **settings}
    with pytest.raises(ConfigError, match=sentence):
        PoiseConfig(str(tmp_path), use_cpu=True, bf16=False, **{"dynamic_sampling": True, **asked})


def test_a_streamed_dataset_is_refused(tmp_path: Path) -> None:
    rows = tiny_policy.prompts(8).to_list()
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ConfigError, match="a dataset that can be indexed"):
        tiny_policy.trainer(tmp_path, train_dataset=stream, **DAPO)
