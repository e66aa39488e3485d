"""Generation windows: the micro-batches between two generations, which no checkpoint may fall into."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class WholeWindows(TrainerCallback):
    """Lets a checkpoint fall only between two generations, where resuming is exact.

    TRL saves neither the generated batch nor its place in it. A save that is due in the middle of a window waits for
    its end; the one at the end of training does not wait.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._is_due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._postpone(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._postpone(control)

    def _postpone(self, control: Any) -> Any:
        self._is_due = self._is_due or control.should_save
        is_boundary = self._trainer._step % self._trainer.window == 0
        control.should_save = self._is_due and (is_boundary or control.should_training_stop)
        self._is_due = self._is_due and not control.should_save
        return control
