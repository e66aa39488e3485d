"""Every option of the installed TRL's GRPOConfig: it means what it means in TRL, or it is refused with the reason.

`OPTIONS` says of each which it is. An option that a new TRL brings fails here until someone has looked at it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from trl import GRPOConfig
from trl.trainer import grpo_trainer

import tiny_policy
from poise.errors import ConfigError
from poise.trl import PoiseConfig
from poise.trl.options import LOSS_TYPES

# ours: another default than TRL's, the published one. limited: some values are refused (REFUSED below). runs: touches
# rollouts, states, credit or loss; trained with in RUNS below or in the named file. trl: acts outside all of these, as
# in GRPOTrainer.
OPTIONS = {
    "model_init_kwargs": "trl",
    "trust_remote_code": "trl",
    "router_aux_loss_coef": "runs",
    "disable_dropout": "runs",
    "cast_lm_head_to_fp32": "runs",
    "num_generations": "ours",
    "num_generations_eval": "runs: trl/test_settings.py",
    "max_completion_length": "runs: support/tiny_policy.py",
    "ds3_gather_for_generation": "trl",
    "shuffle_dataset": "runs",
    "pad_to_multiple_of": "runs",
    "generation_batch_size": "runs: trl/test_settings.py",
    "steps_per_generation": "runs: trl/test_gradient.py",
    "temperature": "limited",
    "top_p": "runs",
    "top_k": "runs",
    "min_p": "runs",
    "generation_kwargs": "runs",
    "chat_template_kwargs": "runs",
    "repetition_penalty": "runs",
    "cache_implementation": "runs",
    "use_vllm": "runs: vllm/test_colocate.py",
    "vllm_mode": "trl",
    "vllm_model_impl": "trl",
    "vllm_enable_sleep_mode": "trl",
    "vllm_structured_outputs_regex": "trl",
    "vllm_server_base_url": "trl",
    "vllm_server_host": "trl",
    "vllm_server_port": "trl",
    "vllm_server_timeout": "trl",
    "vllm_group_port": "trl",
    "vllm_gpu_memory_utilization": "trl",
    "vllm_max_model_length": "trl",
    "vllm_tensor_parallel_size": "trl",
    "beta": "limited",
    "num_iterations": "limited",
    "epsilon": "limited",
    "delta": "ours",
    "epsilon_high": "ours",
    "sapo_temperature_neg": "runs",
    "sapo_temperature_pos": "runs",
    "vespo_k_pos": "runs",
    "vespo_lambda_pos": "runs",
    "vespo_k_neg": "runs",
    "vespo_lambda_neg": "runs",
    "importance_sampling_level": "limited",
    "reward_weights": "runs: trl/test_broken_rewards.py",
    "multi_objective_aggregation": "limited",
    "scale_rewards": "ours",
    "loss_type": "limited",
    "mask_truncated_completions": "runs: trl/test_variants.py",
    "sync_ref_model": "runs",
    "ref_model_mixup_alpha": "runs",
    "ref_model_sync_steps": "runs",
    "top_entropy_quantile": "limited",
    "entropy_coef": "runs",
    "use_adaptive_entropy": "runs",
    "entropy_coef_min": "runs",
    "entropy_coef_max": "runs",
    "entropy_coef_delta": "runs",
    "entropy_target": "runs",
    "max_tool_calling_iterations": "trl",
    "vllm_importance_sampling_correction": "trl",
    "vllm_importance_sampling_mode": "trl",
    "vllm_importance_sampling_clip_max": "trl",
    "vllm_importance_sampling_clip_min": "trl",
    "off_policy_mask_threshold": "runs",
    "use_bias_correction_kl": "runs",
    "log_completions": "runs: trl/test_variants.py",
    "log_multimodal": "trl",
    "num_completions_to_print": "trl",
    "log_unique_prompts": "runs",
    "log_completions_hub_repo": "trl",
    "use_transformers_continuous_batching": "trl",
    "transformers_continuous_batching_config": "trl",
    "use_transformers_paged": "trl",
    "vllm_importance_sampling_cap": "trl",
}
TESTS = Path(__file__).parents[1]
# What transformers' own TrainingArguments says and POISE has a word in; the rest is the Trainer's business.
INHERITED = {"remove_unused_columns", "save_strategy"}

# Options trained with, together where they do not disturb each other.
RUNS: dict[str, dict[str, Any]] = {
    "sampling": {
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.05,
        "generation_kwargs": {"min_new_tokens": 2},
        "cache_implementation": "dynamic",
    },
    "batches": {
        "pad_to_multiple_of": 8,
        "shuffle_dataset": False,
        "log_completions": True,
        "log_unique_prompts": True,
        "num_completions_to_print": 0,
        "disable_dropout": True,
    },
    "chat": {"chat_template_kwargs": {"enable_thinking": False}},
    "reference": {
        "beta": 0.04,
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.5,
        "ref_model_sync_steps": 1,
        "use_bias_correction_kl": False,
    },
    "entropy": {
        "top_entropy_quantile": 0.5,
        "use_adaptive_entropy": True,
        "entropy_coef": 0.01,
        "entropy_coef_min": 0.001,
        "entropy_coef_max": 0.1,
        "entropy_coef_delta": 0.002,
        "entropy_target": 5.0,
    },
    "off-policy": {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
    "sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "sapo": {"loss_type": "sapo", "sapo_temperature_neg": 1.1, "sapo_temperature_pos": 0.9},
    "vespo": {
        "loss_type": "vespo",
        "vespo_k_pos": 1.5,
        "vespo_lambda_pos": 2.5,
        "vespo_k_neg": 2.5,
        "vespo_lambda_neg": 1.5,
    },
    "fp32 head": {"cast_lm_head_to_fp32": True},
    "experts": {"router_aux_loss_coef": 0.01},
}

SMALL: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 16, "max_completion_length": 6}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "loss_type": ({"loss_type": "ppo"}, "unknown loss_type 'ppo'; choose one of dapo, grpo,"),
    "cispo": ({"loss_type": "cispo"}, "caps the probability ratio itself at epsilon_high=0.28"),
    "importance_sampling_level": (
        {"importance_sampling_level": "word"},
        "unknown importance_sampling_level 'word'; choose one of token, sequence",
    ),
    "scale_rewards": ({"scale_rewards": "std"}, "unknown scale_rewards 'std'; choose one of none, group, batch"),
    "multi_objective_aggregation": (
        {"multi_objective_aggregation": "sum", "baseline": "group-mean"},
        "unknown multi_objective_aggregation 'sum'",
    ),
    "temperature": ({"temperature": 0.0}, "temperature must be positive, got 0.0; greedy rollouts of a prompt are all"),
    "num_iterations": ({"num_iterations": 0}, "num_iterations must be a whole number of at least 1, got 0"),
    "beta": ({"beta": -0.1}, "beta=-0.1 would reward distance from the reference policy"),
    "NaN": ({"beta": float("nan")}, "beta must be a finite number, got nan"),
    "top_entropy_quantile": ({"top_entropy_quantile": 0.0}, r"top_entropy_quantile must lie in \(0, 1\], got 0.0"),
    "epsilon": ({"epsilon": -0.2}, "epsilon must not be negative, got -0.2"),
    "epsilon_high": ({"epsilon_high": -0.2}, "epsilon_high must not be negative, got -0.2"),
    "delta": ({"delta": 1.2}, r"delta=1.2 .* good ones may reach 1 \+ epsilon_high = 1.28; use a larger delta"),
    "delta below a wide range": ({"epsilon_high": 12.0}, "use a larger delta, such as 26, or None"),
    "enable_jit_checkpoint": ({"enable_jit_checkpoint": True}, "saves in the middle of a batch"),
    "save_strategy": (
        {"save_strategy": "best", "num_iterations": 2, "metric_for_best_model": "reward", "eval_strategy": "steps"},
        "a generated batch is 2 micro-batches and an update 1, .* cannot be continued exactly",
    ),
    "save_strategy, updates that end within a batch": (
        {
            "save_strategy": "best",
            "gradient_accumulation_steps": 3,
            "steps_per_generation": 2,
            "metric_for_best_model": "reward",
            "eval_strategy": "steps",
        },
        "a generated batch is 2 micro-batches and an update 3, so that some updates end within a batch",
    ),
}


class FirstGradient(TrainerCallback):
    """The first step's gradient, before it is clipped."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.gradient is None:
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in kwargs["model"].parameters()])


def test_every_option_of_the_installed_trl_has_been_looked_at() -> None:
    inherited = {field.name for field in fields(TrainingArguments)}
    installed = {field.name for field in fields(GRPOConfig)} - inherited
    new, gone = sorted(installed - set(OPTIONS)), sorted(set(OPTIONS) - installed)
    assert not new, f"TRL has new options {new}: let each train with POISE or refuse it, and say so in OPTIONS"
    assert not gone, f"TRL has dropped the options {gone}: take them out of OPTIONS"
    assert inherited >= INHERITED


def test_options_said_to_be_limited_are_refused_somewhere() -> None:
    assert {name for name, how in OPTIONS.items() if how == "limited"} <= set(REFUSED)


def test_options_said_to_run_are_run() -> None:
    here = {name for name, how in OPTIONS.items() if how == "runs"}
    assert here <= {name for settings in RUNS.values() for name in settings}
    for name, how in OPTIONS.items():
        if how.startswith("runs: "):
            assert name in (TESTS / how.removeprefix("runs: ")).read_text(), name


def test_options_said_to_be_ours_have_another_default() -> None:
    defaults = [{field.name: field.default for field in fields(kind)} for kind in (GRPOConfig, PoiseConfig)]
    changed = {name for name in OPTIONS if defaults[0][name] != defaults[1][name]}
    assert changed == {name for name, how in OPTIONS.items() if how == "ours"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_mean_what_it_says_is_refused(name: str, tmp_path: Path) -> None:
    settings, sentence = REFUSED[name]
    if name == "enable_jit_checkpoint" and not hasattr(PoiseConfig, name):
        pytest.skip("this transformers has no checkpoints on demand")
    with pytest.raises(ConfigError, match=sentence):
        PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_domains_are_not_dropped_unseen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drops the dataset's column 'domain', which names its domains"):
        tiny_policy.trainer(tmp_path, remove_unused_columns=True)
    unnamed = Dataset.from_list([{"prompt": f"{a}+1="} for a in range(32)])
    tiny_policy.trainer(tmp_path, remove_unused_columns=True, train_dataset=unnamed)


def test_a_dataset_without_prompts_is_refused(tmp_path: Path) -> None:
    questions = Dataset.from_list([{"question": "1+1=", "target": "2"}])
    with pytest.raises(ConfigError, match="no column 'prompt'; it has question, target: rename the one with prompts"):
        tiny_policy.trainer(tmp_path, train_dataset=questions)


@pytest.mark.parametrize("count", [0, 15])
def test_fewer_prompts_than_one_batch_has_are_refused(count: int, tmp_path: Path) -> None:
    """TRL would train on none of them, and say so nowhere."""
    few = tiny_policy.prompts().select(range(count))
    said = f"{count} training prompts are fewer than the 16 of one generation batch; give more prompts, or a smaller"
    with pytest.raises(ConfigError, match=said):
        tiny_policy.PoiseTrainer(
            model=tiny_policy.model(),
            reward_funcs=tiny_policy.reward,
            args=tiny_policy.config(tmp_path, steps_per_generation=2, per_device_train_batch_size=16),
            train_dataset=few,
            processing_class=tiny_policy.tokenizer(),
        )


def test_as_many_prompts_as_one_batch_has_are_trained_on(tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, train_dataset=tiny_policy.prompts(16))
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("args", [TrainingArguments("out", use_cpu=True), {"max_steps": 3}])
def test_other_arguments_are_refused(args: Any) -> None:
    with pytest.raises(ConfigError, match=f"args must be a PoiseConfig or a GRPOConfig, got {type(args).__name__}"):
        tiny_policy.PoiseTrainer(model=tiny_policy.model(), reward_funcs=tiny_policy.reward, args=args)


def policy_for(name: str, folder: Path) -> Any:
    """The tiny policy, or one that has what the option is about."""
    if name == "reference":  # TRL builds it from what is on disk
        tiny_policy.model().save_pretrained(folder)
        return str(folder)
    return tiny_policy.model(tied=name != "fp32 head", experts=4 if name == "experts" else 0)


@pytest.mark.parametrize("name", RUNS)
def test_trains_with(name: str, tmp_path: Path) -> None:
    policy = policy_for(name, tmp_path / "policy")
    dataset = tiny_policy.prompts(32, conversational=name == "chat")
    trainer = tiny_policy.trainer(tmp_path, model=policy, train_dataset=dataset, **SMALL, **RUNS[name])
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert torch.isfinite(torch.tensor([last["loss"], last["grad_norm"]])).all()
    if name != "off-policy":  # there the second step is the first batch's second update
        assert last["poise/probe_share"] == 1.0
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_no_loss_of_trl_is_forgotten() -> None:
    source = Path(grpo_trainer.__file__).read_text()
    assert all(f'"{name}"' in source for name in LOSS_TYPES)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The first gradient under each of TRL's losses, from the same rollouts and the same advantages."""
    found: dict[str, Tensor] = {}
    for loss in LOSS_TYPES:
        torch.manual_seed(0)
        watch = FirstGradient()
        settings = {"epsilon_high": 5.0} if loss == "cispo" else {}
        settings["generation_kwargs"] = {"sequence_bias": [[[1], 3.0]]}  # rollouts of all lengths: 1 ends them
        folder = tmp_path_factory.mktemp(loss)
        tiny_policy.trainer(folder, loss_type=loss, callbacks=[watch], **settings).train()
        assert watch.gradient is not None
        found[loss] = watch.gradient
    return found


@pytest.mark.parametrize(
    ("loss", "like", "is_scaled"),
    [
        ("bnpo", "dapo", False),
        ("cispo", "dapo", False),
        ("vespo", "dapo", False),
        ("sapo", "grpo", False),
        ("dr_grpo", "dapo", True),
        ("luspo", "dapo", True),
    ],
)
def test_losses_agree_where_the_policy_is_the_one_that_sampled(
    loss: str, like: str, is_scaled: bool, gradients: dict[str, Tensor]
) -> None:
    """At ratio 1 every loss is the policy gradient with our advantages: some to the digit, some up to a constant."""
    ours, expected = gradients[loss], gradients[like]
    if is_scaled:
        scale = (ours @ expected) / (expected @ expected)
        assert scale > 0.01
        expected = scale * expected
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=2e-4)


def test_losses_that_divide_by_length_differ(gradients: dict[str, Tensor]) -> None:
    cosine = torch.nn.functional.cosine_similarity(gradients["grpo"], gradients["dapo"], dim=0)
    assert 0.5 < cosine < 0.9999
