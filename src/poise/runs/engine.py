"""The engine of a run: settings and plan in PoiseTrainer's own words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from poise.errors import ConfigError, PoiseError
from poise.runs.plan import Plan
from poise.runs.policy import forward_dtype, init_arguments
from poise.runs.settings import PoiseSettings, RewardSettings, TrainSettings
from poise.trl import PoiseConfig


def engine_config(settings: TrainSettings, plan: Plan, output: Path, shuffled: bool = True) -> PoiseConfig:
    """The trainer's configuration.

    Args:
        settings, plan: what is asked for, and what it amounts to.
        output: where checkpoints go.
        shuffled: whether the trainer shuffles the prompts.

    Raises:
        ConfigError: the trainer refuses a combination; its reason is quoted.
    """
    arguments = {
        **_model(settings),
        **_batches(settings, plan),
        **_optimiser(settings),
        **_poise(settings.poise),
        **_rewards(settings.reward),
        **_bookkeeping(settings, plan),
        "shuffle_dataset": shuffled,
    }
    try:
        return PoiseConfig(output_dir=str(output), **arguments)
    except PoiseError:
        raise
    except (ValueError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"the trainer refuses these settings: {' '.join(str(error).split())}") from error


def _model(settings: TrainSettings) -> dict[str, Any]:
    import torch

    half = forward_dtype(settings.model) == "bfloat16"
    return {
        "model_init_kwargs": init_arguments(settings.model),
        "bf16": half,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": settings.optimisation.gradient_checkpointing,
    }


def _batches(settings: TrainSettings, plan: Plan) -> dict[str, Any]:
    generation = settings.generation
    return {
        "max_steps": plan.steps * plan.updates_per_step,
        "num_generations": plan.rollouts_per_prompt,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "steps_per_generation": plan.micro_batches_per_step,
        "max_completion_length": generation.max_completion_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "use_vllm": generation.vllm,
        "vllm_mode": "colocate",
    }


def _optimiser(settings: TrainSettings) -> dict[str, Any]:
    optimisation = settings.optimisation
    return {
        "learning_rate": optimisation.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(optimisation.schedule, optimisation.schedule),
        "warmup_steps": optimisation.warmup_updates,
        "weight_decay": optimisation.weight_decay,
        "adam_beta2": optimisation.adam_beta2,
        "max_grad_norm": optimisation.max_grad_norm,
        "epsilon": optimisation.clip_low,
        "epsilon_high": optimisation.clip_high,
        "delta": optimisation.dual_clip,
        "beta": optimisation.kl_weight,
    }


def _poise(settings: PoiseSettings) -> dict[str, Any]:
    """PoiseConfig has the same names; only what is None there is said differently in TOML, which has no None."""
    arguments = asdict(settings)
    for name in ("prompt_components", "reasoning_components"):
        arguments[name] = None if arguments[name] == -1 else arguments[name]
    arguments["critic_clip"] = settings.critic_clip or None
    arguments["probe_alpha"] = None if settings.probe_alpha == -1 else settings.probe_alpha
    arguments["probe_clip"] = list(settings.probe_clip) or None
    return arguments


def _rewards(settings: RewardSettings) -> dict[str, Any]:
    return {"reward_weights": list(settings.reward_weights) or None, "reward_timeout": settings.reward_timeout}


def _bookkeeping(settings: TrainSettings, plan: Plan) -> dict[str, Any]:
    """Logs once a step; saves only where a step ends, since a resume is exact nowhere else."""
    run = settings.run
    return {
        "seed": run.seed,
        "full_determinism": run.deterministic,
        "logging_steps": plan.updates_per_step,
        "logging_first_step": False,
        "log_completions": True,
        "num_completions_to_print": 0,
        "save_strategy": "steps" if run.save_every else "no",
        "save_steps": max(1, run.save_every) * plan.updates_per_step,
        "save_total_limit": None,
        "report_to": list(run.report_to) or "none",
        "disable_tqdm": True,
    }
