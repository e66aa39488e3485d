"""PoiseConfig: published defaults, refusals with a reason, adoption of a plain GRPOConfig; and TRL's contract."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trl import GRPOConfig

import tiny_policy
from poise.core import EstimatorConfig
from poise.errors import CaptureError, ConfigError, PoiseError
from poise.trl import PoiseConfig, PoiseTrainer, contract
from poise.trl.options import refuse_device

# Private attributes that PoiseTrainer sets itself.
OWN = {"_capture", "_guard", "_windows", "_parts", "_rewards_B"}


def test_published_defaults(tmp_path: Path) -> None:
    config = PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    published = {
        "num_generations": 2,
        "scale_rewards": "none",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "delta": 10.0,
        "loss_type": "dapo",
        "beta": 0.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "learning_rate": 1e-6,
        "buffer_capacity": 4096,
        "prompt_components": 32,
        "reasoning_components": 64,
        "probe_alpha": 100.0,
        "state_window": 10,
    }
    assert {name: getattr(config, name) for name in published} == published


def test_without_an_accelerator_it_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert PoiseConfig(str(tmp_path)).bf16 is False
    assert PoiseConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert PoiseConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_a_preset_decides_what_is_none(tmp_path: Path) -> None:
    def estimator(**settings: Any) -> EstimatorConfig:
        return PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings).estimator()

    default, paper = estimator(), estimator(preset="paper")
    assert (default.baseline, paper.baseline) == ("auto", "probe")
    assert estimator(preset="paper", baseline="auto").baseline == "auto"
    assert (default.probe.sibling_outcome, paper.probe.sibling_outcome) == (True, False)
    assert (default.probe.weights, default.cold_start_rows, default.cold_start_steps) == ("score", 256, 0)
    assert (paper.probe.weights, paper.cold_start_rows, paper.cold_start_steps) == ("none", 1, 16)
    mixed = estimator(preset="paper", cold_start_rows=64, probe_weights="score")
    assert (mixed.probe.weights, mixed.cold_start_rows, mixed.cold_start_steps) == ("score", 64, 16)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"preset": "papr"}, "unknown preset 'papr'; choose one of default, paper"),
        (
            {"num_generations": 1, "baseline": "probe"},
            "needs at least 2; one rollout a prompt works with baseline='shrinkage', 'tracker', 'critic', "
            "'prompt-probe', 'auto', 'none'",
        ),
        ({"num_generations": 1, "baseline": "leave-one-out"}, "baseline='leave-one-out' .* its siblings"),
        ({"num_generations": 0, "baseline": "none"}, "num_generations=0: a prompt needs at least one rollout"),
        (
            {"num_generations": 1, "baseline": "none", "per_device_train_batch_size": 1},
            "raise per_device_train_batch_size or gradient_accumulation_steps",
        ),
        ({"scale_rewards": "group"}, "contains the rollout's own reward"),
        ({"scale_rewards": "batch", "baseline": "leave-one-out"}, "biases the gradient"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "replaces the baseline"),
        (
            {"baseline": "oracle"},
            "choose one of probe, leave-one-out, shrinkage, tracker, critic, prompt-probe, auto, group-mean, none",
        ),
        ({"whiten_advantages": True}, "belongs to baseline='tracker' or 'critic' or 'none', not to 'auto'"),
        ({"whiten_advantages": True, "baseline": "group-mean"}, "scale_rewards scales it instead"),
        ({"baseline": "tracker", "tracker_half_life": 0.0}, "tracker_half_life must be positive"),
        ({"baseline": "critic", "gae_lambda": 1.5}, "gae_lambda must lie between 0 and 1, got 1.5"),
        ({"baseline": "critic", "critic_clip": 0.0}, "critic_clip must be positive"),
        ({"baseline": "critic", "critic_learning_rate": 0.0}, "critic_learning_rate must be positive"),
        ({"capture": "never"}, "unknown capture 'never'; choose one of auto, extra"),
        ({"probe_head": "mlp"}, "unknown probe_head 'mlp'; choose one of ridge, logistic"),
        ({"probe_weights": "scores"}, "unknown probe_weights 'scores'; choose one of none, score"),
        ({"probe_alpha": 0.0}, "alpha must be positive"),
        ({"probe_clip": [1.0]}, "two numbers"),
        ({"probe_clip": [1.0, 0.0]}, "low < high"),
        ({"cold_start_rows": 5000}, "would never be used"),
        ({"prompt_components": -1}, "at least 0"),
        ({"state_window": 0}, "window must be a whole number of at least 1"),
        ({"prompt_layer": "middle"}, "prompt_layer must be a finite number, got 'middle'"),
        ({"reward_timeout": -1.0}, "reward_timeout must be positive, got -1.0 seconds; None waits forever"),
        ({"max_failed_batches": 0}, "max_failed_batches must be a whole number of at least 1, got 0"),
        ({"max_sampling_rounds": 0}, "max_sampling_rounds must be a whole number of at least 1, got 0"),
        ({"gae_lambda": float("nan")}, "gae_lambda must be a finite number, got nan"),
    ],
)
def test_refusals_name_value_and_reason(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({"per_device_train_batch_size": 5}, 5),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}, 3),
        ({"per_device_train_batch_size": 1, "steps_per_generation": 7}, 7),
        ({"per_device_train_batch_size": 3, "generation_batch_size": 9}, 9),
    ],
)
def test_one_rollout_a_prompt_is_configured_like_any_other(
    settings: dict[str, Any], batch: int, tmp_path: Path
) -> None:
    config = PoiseConfig(str(tmp_path), baseline="none", num_generations=1, use_cpu=True, bf16=False, **settings)
    assert (config.num_generations, config.num_generations_eval, config.generation_batch_size) == (1, 1, batch)


def test_group_mean_may_be_scaled_since_it_is_grpo(tmp_path: Path) -> None:
    config = PoiseConfig(
        output_dir=str(tmp_path),
        baseline="group-mean",
        scale_rewards="group",
        num_generations=8,
        use_cpu=True,
        bf16=False,
    )
    assert (config.num_generations, config.scale_rewards) == (8, "group")


def test_a_script_that_only_changes_the_class_name(tmp_path: Path) -> None:
    args = GRPOConfig(
        output_dir=str(tmp_path),
        learning_rate=3e-4,
        per_device_train_batch_size=16,
        max_completion_length=8,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    policy, tokenizer = tiny_policy.model(), tiny_policy.tokenizer()
    trainer = PoiseTrainer(policy, tiny_policy.reward, args, tiny_policy.prompts(), processing_class=tokenizer)
    assert (trainer.num_generations, trainer.scale_rewards, trainer.epsilon_high) == (2, "none", 0.28)
    assert trainer.args.learning_rate == 3e-4
    assert args.num_generations == 8, "the script's own object is left alone"
    trainer.train()


def test_a_script_is_told_which_defaults_become_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PoiseConfig.adopt(
        GRPOConfig(output_dir=str(tmp_path), num_generations=8, epsilon_high=0.3, use_cpu=True, bf16=False)
    )
    assert "num_generations 8 -> 2, delta None -> 10.0, scale_rewards 'group' -> 'none'; a PoiseConfig" in caplog.text
    assert "epsilon_high" not in caplog.text


def test_a_script_that_set_eight_rollouts_keeps_them(tmp_path: Path) -> None:
    adopted = PoiseConfig.adopt(GRPOConfig(output_dir=str(tmp_path), num_generations=4, use_cpu=True, bf16=False))
    assert (adopted.num_generations, adopted.chosen_baseline) == (4, "auto")


def test_a_script_that_set_scaling_is_told_why_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scale_rewards='batch'"):
        PoiseConfig.adopt(GRPOConfig(output_dir=str(tmp_path), scale_rewards="batch", use_cpu=True, bf16=False))


def test_unknown_layer_is_refused_with_the_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layer 9(\.0)? names no block of this model; give an index in 1\.\.4"):
        tiny_policy.trainer(tmp_path, prompt_layer=9.0)


def test_a_device_without_64_bits_is_refused_where_a_probe_is_fitted() -> None:
    with pytest.raises(ConfigError, match="baseline='auto' fits its probe in float64, which Apple's MPS does not have"):
        refuse_device("auto", torch.device("mps"))
    refuse_device("leave-one-out", torch.device("mps"))
    refuse_device("auto", torch.device("cpu"))


def test_leaving_out_by_length_is_said_to_change_what_is_learnt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert "mask_truncated_completions" not in caplog.text
    PoiseConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, mask_truncated_completions=True)
    assert "treated as if they had earned just their baseline" in caplog.text


def test_straddling_groups_warn_and_name_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_policy.trainer(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    assert trainer.capture_mode == "extra"
    assert "per_device_train_batch_size=3" in caplog.text
    assert "make it a multiple of 2" in caplog.text


def test_installed_trl_keeps_the_contract() -> None:
    contract.check()


@pytest.mark.parametrize("method", contract.METHODS)
def test_a_moved_method_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in (trl.GRPOTrainer, *trl.GRPOTrainer.__mro__[1:]):
        if method in vars(owner):
            monkeypatch.delattr(owner, method)
    with pytest.raises(ConfigError, match=rf"trl .* has moved .*GRPOTrainer\.{method}"):
        contract.check()


def test_a_moved_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.MENTIONS, "_compute_loss", ("something else entirely",))
    with pytest.raises(ConfigError, match=r"'something else entirely' in GRPOTrainer\._compute_loss"):
        contract.check()


def test_the_contract_names_every_private_symbol_of_trl_in_use() -> None:
    listed = " ".join([*contract.METHODS, *(mention for group in contract.MENTIONS.values() for mention in group)])
    for file in Path(contract.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        on_trainer = {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_trainer(node.value, file)}
        ours = {name for name in vars(PoiseTrainer) if not hasattr(trl.GRPOTrainer, name)}
        private = {name for name in on_trainer - ours - OWN if name.startswith("_") and not name.startswith("__")}
        assert not (missing := {name for name in private if name not in listed}), f"{file.name} uses {missing}"


def _is_trainer(owner: ast.expr, file: Path) -> bool:
    """`self` in trainer.py, `trainer` and `self.trainer` in the files beside it."""
    return ast.unparse(owner) in (("self", "super()") if file.name == "trainer.py" else ("trainer", "self.trainer"))


def test_a_loss_without_the_forward_pass_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_policy.trainer(tmp_path)
    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", lambda *_: torch.zeros((), requires_grad=True))
    with pytest.raises(CaptureError, match="without the forward pass"):
        trainer.train()


def test_every_error_is_a_poise_error() -> None:
    assert issubclass(ConfigError, PoiseError)
    assert issubclass(CaptureError, PoiseError)
