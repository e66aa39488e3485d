"""PPO: the critic's values against transformers' own forward pass, its updates against a plain loop, and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tiny_policy
from poise.errors import ConfigError


def logged(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def watched(folder: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A trainer and, of each batch: the critic before it, what was generated, and what the critic made of it."""
    trainer = tiny_policy.trainer(folder, baseline="critic", critic_learning_rate=1e-2, **settings)
    seen: list[dict[str, Any]] = []
    learn = trainer.critic.learn

    def spy(output: Any, valued: Any) -> Any:
        before = copy.deepcopy(trainer.critic.critic)
        metrics = learn(output, valued)
        seen.append({"critic": before, "output": output, "valued": valued, "rewards_B": trainer._rewards_B})
        return metrics

    trainer.critic.learn = spy
    return trainer, seen


def value_by_hand(critic: Any, output: dict[str, Tensor], row: int) -> Tensor:
    """V before each token of one response, without any padding."""
    prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
    response = output["completion_ids"][row][output["completion_mask"][row].bool()]
    hidden = critic.trunk(input_ids=torch.cat([prompt, response])[None]).last_hidden_state[0]
    return critic.head(hidden)[len(prompt) - 1 : -1, 0]


def test_values_and_advantages_of_the_critic_before_it_learns(tmp_path: Path) -> None:
    trainer, seen = watched(tmp_path, gae_lambda=1.0, max_steps=3, log_completions=True)
    trainer.train()
    batch = seen[-1]
    valued, rewards_B = batch["valued"], batch["rewards_B"]
    assert float(valued.values_BT.std()) > 1e-3  # it has learnt something by now
    for row in range(0, 32, 5):
        by_hand = value_by_hand(batch["critic"], batch["output"], row).detach()
        used = valued.used_BT[row]
        torch.testing.assert_close(valued.values_BT[row][used], by_hand, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(valued.advantages_BT[row][used], rewards_B[row] - by_hand, atol=1e-5, rtol=1e-4)
        assert (valued.advantages_BT[row][~used] == 0).all()
    table = pd.read_parquet(sorted((tmp_path / "completions").glob("*.parquet"))[-1])
    torch.testing.assert_close(torch.tensor(table["baseline"].to_numpy()).float(), valued.values_BT[:, 0])
    last = logged(trainer)[-1]
    assert last["poise/baseline_mean"] == pytest.approx(float(valued.values_BT[:, 0].mean()), abs=1e-5)
    assert {"poise/critic_loss", "poise/critic_explained_variance", "poise/variance_ratio", "poise/mae"} <= set(last)


def test_an_update_is_adamw_on_the_squared_error(tmp_path: Path) -> None:
    trainer, seen = watched(tmp_path, num_generations=1, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer.train()
    (batch,) = seen
    critic, output, returns_BT = batch["critic"], batch["output"], batch["valued"].returns_BT
    used_BT = batch["valued"].used_BT
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2, weight_decay=trainer.args.weight_decay)
    losses = [
        (value_by_hand(critic, output, row) - returns_BT[row][used_BT[row]]).square().sum()
        for row in range(len(used_BT))
    ]
    (0.5 * torch.stack(losses).sum() / used_BT.sum()).backward()
    torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
    optimizer.step()
    for (name, wanted), got in zip(critic.named_parameters(), trainer.critic.critic.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_the_critic_learns_which_prompts_are_easy(tmp_path: Path) -> None:
    """Reward known from the prompt: with the policy at rest, the critic's error falls far below its variance."""

    def easy(prompts: list[str], **columns: Any) -> list[float]:
        return [float(prompt[-1] == "a") for prompt in prompts]

    data = Dataset.from_list([{"prompt": f"{number}{letter}"} for number in range(64) for letter in "ab"])
    settings = {"learning_rate": 0.0, "max_steps": 25, "num_generations": 1, "train_dataset": data}
    trainer = tiny_policy.trainer(tmp_path, easy, baseline="critic", critic_learning_rate=3e-3, **settings)
    trainer.train()
    history = logged(trainer)
    assert history[0]["poise/baseline_mean"] == 0.0
    assert history[-1]["poise/variance_ratio"] < 0.3
    assert history[-1]["poise/critic_explained_variance"] > 0.7


def test_clipping_bounds_what_a_value_gains_by_moving(tmp_path: Path) -> None:
    trainer, seen = watched(tmp_path, critic_clip=0.1)
    trainer.train()
    learner, valued = trainer.critic, seen[0]["valued"]
    rows = torch.tensor([0])
    old, returns = valued.values_BT[rows], valued.returns_BT[rows]
    moved = old + 0.5 * (returns - old).sign()
    error = learner._squared_error(moved, valued, rows)
    reached = old + 0.1 * (returns - old).sign()
    torch.testing.assert_close(error, torch.maximum((moved - returns).square(), (reached - returns).square()))
    assert (error[returns != old] >= (moved - returns).square()[returns != old]).all()


def test_whitened_tokens(tmp_path: Path) -> None:
    trainer, seen = watched(tmp_path, whiten_advantages=True, gae_lambda=0.95, max_steps=2)
    trainer.train()
    valued = seen[-1]["valued"]
    used = valued.advantages_BT[valued.used_BT]
    assert float(used.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(used.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in logged(trainer))


@pytest.mark.parametrize("settings", [{"bf16": True}, {"model": "bfloat16"}], ids=["autocast", "bf16 policy"])
def test_the_critic_keeps_its_precision(settings: dict[str, Any], tmp_path: Path) -> None:
    if "model" in settings:
        settings = {"model": tiny_policy.model().bfloat16()}
    trainer, seen = watched(tmp_path, max_steps=2, **settings)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.critic.critic.parameters()} == {torch.float32}
    assert seen[-1]["valued"].values_BT.dtype == torch.float32
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in logged(trainer))


def test_failed_rewards_teach_the_critic_nothing(tmp_path: Path) -> None:
    def half(completions: list[Any], target: list[str], **columns: Any) -> list[float]:
        rewards = tiny_policy.reward(completions, target)
        return [float("nan") if index % 2 else reward for index, reward in enumerate(rewards)]

    trainer = tiny_policy.trainer(tmp_path, half, baseline="critic", num_generations=1)
    seen: list[Any] = []
    learn = trainer.critic.learn
    trainer.critic.learn = lambda output, valued: seen.append(valued) or learn(output, valued)
    trainer.train()
    assert not seen[0].used_BT[1::2].any()
    assert seen[0].used_BT[::2].any(1).all()
    assert logged(trainer)[0]["poise/failed"] == 16.0


def test_lora_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig

    with pytest.raises(ConfigError, match="a whole copy of the policy: turn LoRA off"):
        tiny_policy.trainer(tmp_path, baseline="critic", peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
