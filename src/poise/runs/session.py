"""One session of a run: open or resume its folder, train, evaluate, and write what is left to see."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import torch

from poise.errors import ConfigError, PoiseError
from poise.runs import provenance, tokens
from poise.runs.display import Display, Silent, open_display
from poise.runs.drift import Drift
from poise.runs.engine import engine_config
from poise.runs.folder import Checkpoint, RunFolder, refuse_changes
from poise.runs.heldout import HeldOut
from poise.runs.policy import lora
from poise.runs.prepare import Prepared, prepare
from poise.runs.prompts import total_reward
from poise.runs.recorder import Recorder
from poise.runs.settings import TrainSettings
from poise.runs.tracking import Tracking
from poise.trl.checkpoint import written
from poise.trl.token_sample import TokenSample


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def check(settings: TrainSettings, resume: bool) -> Prepared:
    """Everything that can be found wrong before anything is written or loaded.

    Raises:
        ConfigError: the settings cannot work, or the folder holds another run.
    """
    folder = RunFolder(settings.run.out)
    changes: list[str] = []
    if resume and folder.exists:
        changes = refuse_changes(folder.saved_settings(), settings)
    elif is_main_process():
        folder.refuse_if_used()
    if is_main_process():
        folder.refuse_if_not_writable()
    prepared = prepare(settings)
    engine_config(settings, prepared.plan, folder.checkpoints, prepared.prompts.shuffled)
    prepared.notes[:0] = changes
    return prepared


def train(settings: TrainSettings, resume: bool) -> int:
    """Trains, or continues training, and returns the exit status.

    Raises:
        ConfigError: the settings cannot work, or the folder holds another run.
    """
    folder, prepared = RunFolder(settings.run.out), check(settings, resume)
    is_resumed = resume and folder.exists
    with ExitStack() as stack:
        if is_main_process():
            folder.make()
            stack.enter_context(folder.locked())
        display = open_display(prepared.plan.steps) if is_main_process() else Silent()
        stack.callback(display.close)
        for note in prepared.notes:
            display.note(note)
        return _train(prepared, folder, display, is_resumed)


def _train(prepared: Prepared, folder: RunFolder, display: Display, resumed: bool) -> int:
    if resumed and folder.is_finished and (said := _nothing_left(prepared, folder)):
        display.note(said)
        return 0
    start = _starting_point(folder, display) if resumed else None
    began_at = start.step or 0 if start else 0
    if began_at > prepared.plan.steps:
        display.note(_at_end(prepared, folder, began_at))
        return 0
    if is_main_process():
        folder.write_settings(prepared.settings)
        folder.rewind(began_at)
    session = {"command": provenance.command_line(), "from_step": began_at, "began": _now(), "ended": None, "how": None}
    _record(folder, prepared, session)
    status, how = 1, "failed"
    try:
        trainer = _built(prepared, folder, display, start)
        if start and _at_end(prepared, folder, began_at):  # all that a kill left undone is the final model
            trainer._load_from_checkpoint(str(start.path))
        else:
            trainer.train(resume_from_checkpoint=str(start.path) if start else None)
        if trainer.accelerator.is_main_process:
            _save_model(trainer, folder)
        status, how = 0, "finished"
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"out of memory: {first_line(error)}; {_LESS_MEMORY}") from error
    except KeyboardInterrupt:
        status, how = 130, "interrupted"
        display.note(f"interrupted; poise train --out {folder.path} --resume auto continues")
    finally:
        _record(folder, prepared, {**session, "ended": _now(), "how": how})
    display.close()
    if prepared.settings.run.report:
        _show(folder, display)
    return status


def _nothing_left(prepared: Prepared, folder: RunFolder) -> str:
    """Why a finished run is left as it is, whether its weights are still there or not; empty if it is to go on.

    Raises:
        ConfigError: it is to go on, and has no checkpoint to go on from.
    """
    step = folder.metrics.read()[-1]["step"]
    said = _at_end(prepared, folder, step)
    if not said and all(checkpoint.step is None for checkpoint in folder.all_checkpoints()):
        raise ConfigError(
            f"{folder.path} is finished and holds no checkpoint to go on from after step {step}; choose another --out"
        )
    return said


def _at_end(prepared: Prepared, folder: RunFolder, step: int) -> str:
    """Why a run makes no step after this one; empty if it does."""
    budget, sampled = prepared.settings.optimisation.rollout_budget, folder.rollouts_at(step)
    if step >= prepared.plan.steps:
        return f"{folder.path} has already reached step {step}; a larger --steps continues it"
    if 0 < budget <= sampled:
        return f"{folder.path} has already sampled {sampled} rollouts; a larger --rollout-budget continues it"
    return ""


_LESS_MEMORY = "lower --micro-batch or --max-completion-tokens, or set --gradient-checkpointing or --lora-rank"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _built(prepared: Prepared, folder: RunFolder, display: Display, start: Checkpoint | None) -> Any:
    """The trainer; what the libraries refuse becomes a sentence."""
    try:
        return _build(prepared, folder, display, start)
    except PoiseError:
        raise
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"the trainer cannot be set up: {first_line(error)}") from error


def _starting_point(folder: RunFolder, display: Display) -> Checkpoint | None:
    """The last complete checkpoint; half-written ones are skipped, with a sentence."""
    complete: Checkpoint | None = None
    for checkpoint in folder.all_checkpoints():
        if checkpoint.step is None:
            display.note(f"{checkpoint.path} was not written completely, or is damaged, and is skipped")
        else:
            complete = checkpoint
    if complete is None:
        display.note(f"{folder.path} has no complete checkpoint; the run starts again at step 0")
    else:
        display.note(f"resuming after step {complete.step} from {complete.path}")
    return complete


def _build(prepared: Prepared, folder: RunFolder, display: Display, start: Checkpoint | None) -> Any:
    """The trainer, listened to by the recorder and the held-out evaluation, and silent otherwise."""
    from transformers import PrinterCallback, ProgressCallback

    from poise.trl import PoiseTrainer

    settings = prepared.settings
    seconds = start.seconds if start else 0.0
    sample = TokenSample(tokens.PROMPTS * prepared.plan.rollouts_per_prompt)
    budget = settings.optimisation.rollout_budget
    recorder = Recorder(folder, prepared.plan, display, settings.run.keep_checkpoints, seconds, sample, budget)
    callbacks: list[Any] = [recorder]
    verify = total_reward(prepared.reward_names, settings.reward.reward_weights)
    if prepared.prompts.held_out is not None:
        callbacks.append(HeldOut(prepared.prompts.held_out, verify, settings, prepared.plan, folder, display))
    trainer = PoiseTrainer(
        model=prepared.policy.name,
        reward_funcs=prepared.rewards,
        args=engine_config(settings, prepared.plan, folder.checkpoints, prepared.prompts.shuffled),
        train_dataset=prepared.prompts.train,
        processing_class=prepared.policy.tokenizer,
        peft_config=lora(settings.model, prepared.depth),
        callbacks=callbacks,
    )
    if settings.optimisation.update_norm or settings.evaluation.measure_drift:
        trainer.add_callback(Drift(trainer, settings, prepared.plan))
    trainer.token_sample = sample
    if settings.evaluation.track_every:
        trainer.fresh_values = Tracking(trainer, verify, settings, prepared.plan)
    for silenced in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(silenced)
    return trainer


def _save_model(trainer: Any, folder: RunFolder) -> None:
    """The final policy, complete or not there at all."""
    partial = folder.path / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with written(folder.model):
        trainer.save_model(str(partial))
        shutil.rmtree(folder.model, ignore_errors=True)
        os.replace(partial, folder.model)


def _record(folder: RunFolder, prepared: Prepared, session: dict[str, Any]) -> None:
    """Updates run.json: the last session is replaced if it began when this one did, else this one is added."""
    if not is_main_process():
        return
    record = folder.read_record()
    earlier = [each for each in record["sessions"] if each["began"] != session["began"]]
    record |= {
        "plan": dict(prepared.describe()),
        "notes": prepared.notes,
        "versions": provenance.versions(),
        "git": provenance.git_revision(),
        "device": provenance.device(),
        "sessions": [*earlier, session],
    }
    folder.write_record(record)


def _show(folder: RunFolder, display: Display) -> None:
    """Plots, summary and report from whatever the folder holds; a failure here must not spoil the run."""
    if not is_main_process():
        return
    try:
        from poise.report import write_report

        for sentence in write_report([folder.path]):
            display.note(sentence)
    except ImportError as error:
        display.note(
            f"no plots and no report: {error}; pip install 'poise-rl[report]', then poise report {folder.path}"
        )
    except Exception as error:
        display.note(
            f"no report: {type(error).__name__}: {error}; the run is whole, poise report {folder.path} retries"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
