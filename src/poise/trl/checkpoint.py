"""What a checkpoint of TRL's lacks: the estimator, the counters, the critic and a moving reference, where there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from poise.core import load_state, save_state
from poise.errors import SaveError, StateMismatchError

STATE_FILE = "poise.safetensors"
REFERENCE_FILE = "reference.safetensors"


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
    state["meta"]["trainer"] = {
        "sampled_rollouts": trainer.step_log.sampled_rollouts,
        "failed_batches": trainer.failed_batches,
    }
    if trainer.dynamic is not None:
        state["meta"]["trainer"]["further_prompts"] = trainer.dynamic.further.taken
    save_state(folder / STATE_FILE, state)
    if trainer.critic is not None:
        trainer.critic.save(folder)
    if (reference := _moving_reference(trainer)) is not None:
        weights = {name: value.detach().cpu().contiguous() for name, value in reference.named_parameters()}
        save_state(folder / REFERENCE_FILE, {"tensors": weights, "meta": {}})


def load_from(folder: Path, trainer: Any) -> None:
    """Continue from `save_into`, at the start of a window, wherever in one this trainer was interrupted before.

    Raises:
        StateMismatchError: it was written under another layer, pooling, feature set or configuration, or holds no
            reference model where one is to be moved.
    """
    state = load_state(folder / STATE_FILE)
    trainer.estimator.load_state_dict(state, trainer.accelerator.device)
    trainer._step, trainer._buffered_inputs, trainer._parts = 0, None, []
    counters = state["meta"]["trainer"]
    trainer.step_log.sampled_rollouts = counters["sampled_rollouts"]
    trainer.failed_batches = counters.get("failed_batches", 0)
    if trainer.dynamic is not None:
        trainer.dynamic.further.taken = counters.get("further_prompts", 0)
    if trainer.critic is not None:
        trainer.critic.load(folder)
    if (reference := _moving_reference(trainer)) is not None:
        _load_reference(folder / REFERENCE_FILE, reference)


def _moving_reference(trainer: Any) -> torch.nn.Module | None:
    """TRL's reference model, where `sync_ref_model` moves it and every process holds all of it."""
    if not trainer.args.sync_ref_model or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    return trainer.accelerator.unwrap_model(trainer.ref_model)


def _load_reference(file: Path, reference: torch.nn.Module) -> None:
    if not file.exists():
        raise StateMismatchError(
            f"{file.parent} holds no {file.name}: its run did not move the reference model; turn sync_ref_model off, "
            "or start a new run"
        )
    weights = load_state(file)["tensors"]
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(weights[name])
