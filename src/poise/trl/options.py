"""TRL's own options: the values with which a run would go on, but not mean what they say, are refused here.

TRL itself looks at most of these only in the first step, or never.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from poise.core import READ_STATES
from poise.core.limits import finite, one_of, positive, whole
from poise.errors import ConfigError

logger = logging.getLogger(__name__)
LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo")
# These divide each rollout's term by its own length, and so its score.
BY_LENGTH = ("grpo", "sapo")


def refuse_senseless(config: Any) -> None:
    """Refuse what no loss of TRL knows, and numbers that would leave the policy without a gradient.

    Args:
        config: a GRPOConfig.

    Raises:
        ConfigError: the option, its value, and what would work.
    """
    one_of("loss_type", config.loss_type, LOSS_TYPES)
    one_of("importance_sampling_level", config.importance_sampling_level, ("token", "sequence"))
    one_of("scale_rewards", config.scale_rewards, ("none", "group", "batch"))
    one_of(
        "multi_objective_aggregation", config.multi_objective_aggregation, ("sum_then_normalize", "normalize_then_sum")
    )
    positive("temperature", config.temperature, hint="; greedy rollouts of a prompt are all the same")
    whole("num_iterations", config.num_iterations, least=1)
    finite("beta", config.beta)
    if config.beta < 0:
        raise ConfigError(f"beta={config.beta} would reward distance from the reference policy; use 0 or more")
    finite("top_entropy_quantile", config.top_entropy_quantile)
    if not 0 < config.top_entropy_quantile <= 1:
        raise ConfigError(f"top_entropy_quantile must lie in (0, 1], got {config.top_entropy_quantile}")
    if config.mask_truncated_completions:
        logger.warning(
            "mask_truncated_completions=True: whether a rollout counts depends on its own length; truncated ones are "
            "treated as if they had earned just their baseline"
        )
    _refuse_wrong_clipping(config)
    _refuse_saves_within_windows(config)


def _refuse_wrong_clipping(config: Any) -> None:
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    for name, value in (("epsilon", config.epsilon), ("epsilon_high", high)):
        finite(name, value)
        if value < 0:
            raise ConfigError(f"{name} must not be negative, got {value}")
    if config.loss_type == "cispo":
        if high < 1:
            raise ConfigError(
                f"loss_type='cispo' caps the probability ratio itself at epsilon_high={high}, which would scale every "
                "gradient down; use a cap above 1, such as epsilon_high=5.0"
            )
        return
    if config.delta is not None:
        finite("delta", config.delta)
        if config.delta <= 1 + high:
            raise ConfigError(
                f"delta={config.delta} bounds the probability ratio of bad rollouts, but good ones may reach "
                f"1 + epsilon_high = {1 + high:g}; use a larger delta, such as {max(10.0, 2 * (1 + high)):g}, or None"
            )


def _refuse_saves_within_windows(config: Any) -> None:
    """A checkpoint between a batch's credit and its last update cannot be continued exactly: TRL keeps no batch."""
    if getattr(config, "enable_jit_checkpoint", False):
        raise ConfigError(
            "enable_jit_checkpoint=True saves in the middle of a batch, where a run cannot be continued exactly; "
            "use save_steps: whatever was done after the last checkpoint is done again, bit for bit"
        )
    window = config.steps_per_generation * config.num_iterations
    if config.save_strategy == "best" and config.gradient_accumulation_steps % window:
        raise ConfigError(
            "save_strategy='best' saves whenever an evaluation says so, but a generated batch is "
            f"{window} micro-batches and an update {config.gradient_accumulation_steps}, so that some updates end "
            "within a batch, from where a run cannot be continued exactly; use save_strategy='steps'"
        )


def refuse_device(baseline: str, device: torch.device) -> None:
    """Refuse to fit a probe where there are no 64-bit numbers, which is Apple's GPU.

    Raises:
        ConfigError: the device, and what would work.
    """
    if device.type == "mps" and baseline in READ_STATES:
        raise ConfigError(
            f"baseline={baseline!r} fits its probe in float64, which Apple's MPS does not have; train with "
            "use_cpu=True, or choose a baseline that reads no states, such as 'leave-one-out'"
        )


def refuse_wrong_columns(args: Any, dataset: Any, has_environment: bool) -> None:
    """Refuse a dataset without prompts, and to drop the column that names the domains.

    Without that column the run would quietly have one probe for all of them.

    Args:
        args: a PoiseConfig.
        dataset: what is trained on; a stream may not know its columns.
        has_environment: whether an environment makes the prompts.
    """
    columns = getattr(dataset, "column_names", None) or []
    if columns and "prompt" not in columns and not has_environment:
        raise ConfigError(
            f"the dataset has no column 'prompt'; it has {', '.join(columns)}: rename the one with prompts"
        )
    if args.remove_unused_columns and args.domain_column in columns:
        raise ConfigError(
            f"remove_unused_columns=True drops the dataset's column {args.domain_column!r}, which names its domains; "
            "set remove_unused_columns=False"
        )


def refuse_too_few_prompts(args: Any, dataset: Any) -> None:
    """Refuse a dataset that does not fill one generation batch: TRL drops what does not, and would train on nothing.

    Args:
        args: a PoiseConfig.
        dataset: what is trained on; a stream may not know its length.

    Raises:
        ConfigError: how many prompts there are, and how many are needed, by all processes together.
    """
    needed = args.generation_batch_size // args.num_generations
    if hasattr(dataset, "__len__") and len(dataset) < needed:
        raise ConfigError(
            f"{len(dataset)} training prompts are fewer than the {needed} of one generation batch; give more prompts, "
            "or a smaller per_device_train_batch_size or steps_per_generation"
        )
