"""POISE's part of a checkpoint: the estimator, the counters, and the critic where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from poise.core import load_state, save_state
from poise.errors import SaveError

STATE_FILE = "poise.safetensors"


@contextmanager
def written(folder: Path) -> Iterator[None]:
    """Turns what libraries raise while they write `folder` into one sentence.

    Raises:
        SaveError: the disk is full, or does not take the files.
    """
    try:
        yield
    except SaveError:
        raise
    except (SafetensorError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save's own writer
            raise
        raise SaveError(
            f"{folder} could not be written completely ({error}); make room, or choose another disk, and continue from "
            "the checkpoint before it"
        ) from error


def save_into(folder: Path, trainer: Any) -> None:
    """Write it before TRL writes trainer_state.json: without that file a checkpoint is incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    state = trainer.estimator.state_dict()
    state["meta"]["trainer"] = {"sampled_rollouts": trainer.step_log.sampled_rollouts}
    if trainer.dynamic is not None:
        state["meta"]["trainer"]["further_prompts"] = trainer.dynamic.further.taken
    save_state(folder / STATE_FILE, state)
    if trainer.critic is not None:
        trainer.critic.save(folder)


def load_from(folder: Path, trainer: Any) -> None:
    """Continue from `save_into`, at the start of a window, wherever in one this trainer was interrupted before.

    Raises:
        StateMismatchError: it was written under another layer, pooling, feature set or configuration.
    """
    state = load_state(folder / STATE_FILE)
    trainer.estimator.load_state_dict(state, trainer.accelerator.device)
    trainer._step, trainer._buffered_inputs, trainer._parts = 0, None, []
    counters = state["meta"]["trainer"]
    trainer.step_log.sampled_rollouts = counters["sampled_rollouts"]
    if trainer.dynamic is not None:
        trainer.dynamic.further.taken = counters.get("further_prompts", 0)
    if trainer.critic is not None:
        trainer.critic.load(folder)
