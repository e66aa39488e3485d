"""What else users run: LoRA, bf16, chat prompts, truncated rollouts, evaluation, saved models, completion tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import Qwen3ForCausalLM

import tiny_policy
from poise.core import domain_id


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    trainer = tiny_policy.trainer(tmp_path, peft_config=lora, max_steps=3, beta=0.04)
    assert trainer.ref_model is None, "the reference is the same model with its adapter off"
    trainer.train()
    assert trainer._capture.states.calls == 3, "the reference's forward passes are not captured"
    assert trainer.state.log_history[-2]["poise/probe_share"] == 1.0


def test_bf16_policy_has_fp32_states(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, model=tiny_policy.model().bfloat16(), max_steps=2)
    trainer.train()
    features = next(iter(trainer.estimator.buffers.values())).pairs.features
    assert features.prompt_BH.dtype == features.reasoning_BH.dtype == features.entropy_BE.dtype == torch.float32
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def test_bf16_autocast(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, bf16=True, max_steps=2)
    trainer.train()
    assert next(iter(trainer.estimator.buffers.values())).pairs.features.prompt_BH.dtype == torch.float32


def test_conversational_prompts(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, train_dataset=tiny_policy.prompts(conversational=True), max_steps=2)
    trainer.train()
    assert trainer.state.log_history[-2]["poise/probe_share"] == 1.0


def test_domains_have_their_own_buffers(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=2)
    trainer.train()
    assert set(trainer.estimator.buffers) == {domain_id("small"), domain_id("large")}


def test_truncated_rollouts_are_absent_not_zero(tmp_path: Path) -> None:
    """mask_truncated_completions hides their tokens from attention, so they have no states to predict from.

    Nor do they weigh anything in the gradient: with score weights, pairs that would predict their reward leave as well.
    """
    settings = {"mask_truncated_completions": True, "max_steps": 2, "num_iterations": 2, "probe_weights": "none"}
    trainer = tiny_policy.trainer(tmp_path, **settings)
    trainer.train()
    rows = sum(len(buffer) for buffer in trainer.estimator.buffers.values())
    truncated = trainer.state.log_history[0]["completions/clipped_ratio"]
    assert truncated > 0.5
    assert rows == round(32 * (1 - truncated))
    for buffer in trainer.estimator.buffers.values():
        assert buffer.pairs.features.present_B.all()
        assert (buffer.pairs.features.reasoning_BH.norm(dim=1) > 0).all()


def test_evaluation_leaves_the_estimator_alone(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=2, per_device_eval_batch_size=4)
    trainer.train()
    before = trainer.estimator.state_dict()
    metrics = trainer.evaluate(tiny_policy.prompts(4))
    assert 0 <= metrics["eval_reward"] <= 1
    after = trainer.estimator.state_dict()
    assert before["meta"] == after["meta"]
    for name, tensor in before["tensors"].items():
        torch.testing.assert_close(tensor, after["tensors"][name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "settings", [{"gradient_accumulation_steps": 2}, {"num_iterations": 2}, {"probe_weights": "none"}]
)
def test_completions_table_has_credit_beside_reward(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=4, log_completions=True, **settings)
    trainer.train()
    table = pd.read_parquet(sorted((tmp_path / "completions").glob("*.parquet"))[-1])
    assert len(table) == 32 * settings.get("gradient_accumulation_steps", 1)
    credited = table["reward"] - table["baseline"]
    assert (credited - table["advantage"]).abs().max() < 1e-6
    siblings = table["prediction"].to_numpy().reshape(-1, 2)[:, ::-1].reshape(-1)
    assert abs(siblings - table["baseline"]).max() < 1e-6
    assert all(a == b for a, b in zip(table["prompt"][::2], table["prompt"][1::2], strict=True))
    assert ("weight" in table) == ("probe_weights" not in settings)
    if "weight" in table:
        assert (table["weight"] > 0).all()
        assert table["weight"].nunique() > 16


def test_group_mean_is_trls_own_advantage(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(
        tmp_path, baseline="group-mean", scale_rewards="group", num_generations=4, log_completions=True
    )
    trainer.train()
    table = pd.read_parquet(next((tmp_path / "completions").glob("*.parquet")))
    rewards = torch.tensor(table["reward"].to_numpy()).view(-1, 4)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(torch.tensor(table["advantage"].to_numpy()).view(-1, 4), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(table["baseline"].to_numpy()).view(-1, 4)[:, 0], rewards.mean(1))


@pytest.mark.parametrize("baseline", ["none", "shrinkage"])
def test_one_rollout_a_prompt(baseline: str, tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(
        tmp_path, baseline=baseline, num_generations=1, max_steps=2, per_device_train_batch_size=9, log_completions=True
    )
    trainer.train()
    table = pd.read_parquet(sorted((tmp_path / "completions").glob("*.parquet"))[-1])
    rewards = table["reward"].to_numpy()
    assert len(set(table["prompt"])) == len(table) == 9
    others = (rewards.sum() - rewards) / 8
    expected = rewards - (others if baseline == "shrinkage" else 0)
    assert abs(table["advantage"].to_numpy() - expected).max() < 1e-6
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("rollouts", [1, 2])
def test_tracker_remembers_prompts_across_steps(rollouts: int, whitened: bool, tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(
        tmp_path,
        baseline="tracker",
        num_generations=rollouts,
        whiten_advantages=whitened,
        tracker_prior=0.25,
        per_device_train_batch_size=8 * rollouts,
        train_dataset=tiny_policy.prompts(8),
        max_steps=3,
        log_completions=True,
    )
    trainer.train()
    first, second, _ = (pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet")))
    assert (first["baseline"] == 0.25).all()
    earned = first.groupby("prompt")["reward"].sum()
    texts = len(earned)
    expected = [(8 * 0.25 + earned[prompt]) / (8 + (first["prompt"] == prompt).sum()) for prompt in second["prompt"]]
    assert abs(second["baseline"] - expected).max() < 1e-6
    advantages = second["reward"] - second["baseline"]
    if whitened:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=0)
    assert abs(second["advantage"] - advantages).max() < 1e-5
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["poise/tracked_prompts"] == texts
    assert last["poise/prediction_mean"] == pytest.approx(last["poise/baseline_mean"])


def test_saved_model_loads_and_its_card_names_the_method(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path / "final")
    for (name, ours), (_, theirs) in zip(trainer.model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    card = (tmp_path / "README.md").read_text()
    assert "POISE" in card
    assert "2605.07579" in card
    assert "poise" in card.split("---")[1]
