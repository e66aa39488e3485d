"""One rollout a prompt: TRL's configuration refuses it, for baselines that need no sibling nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poise.errors import ConfigError


@contextmanager
def validated_as_group(config: Any) -> Iterator[None]:
    """Let GRPOConfig validate a batch of single rollouts as if it were made of larger groups, then say 1 again.

    Its remaining checks ask that groups divide the batches, which groups of one always do: so the stand-in must be a
    number that divides the generation batch whatever the number of processes.

    Raises:
        ConfigError: the batch holds a single rollout.
    """
    windows = config.generation_batch_size or config.steps_per_generation or config.gradient_accumulation_steps
    stand_in = max(config.per_device_train_batch_size, windows)
    if stand_in < 2:
        raise ConfigError(
            "num_generations=1 with one rollout per device and batch leaves nothing to average over; raise "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    if config.num_generations_eval is None:
        config.num_generations_eval = 1
    config.num_generations = stand_in
    try:
        yield
    finally:
        config.num_generations = 1
