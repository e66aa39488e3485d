"""Generation windows: the micro-batches between two generations, which no checkpoint may fall into."""

from __future__ import annotations

from typing import Any


class WholeWindows:
    """Lets a checkpoint fall only between two generations, where resuming is exact.

    TRL saves neither the generated batch nor its place in it. A save that is due in the middle of a window waits for
    its end; the one at the end of training does not wait. Where the best model is to be loaded in the end, evaluations
    wait as well: what was evaluated must be what is saved.

    Args:
        trainer: a PoiseTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._is_due = {"should_save": False, "should_evaluate": False}

    def postpone(self, control: Any) -> None:
        """To be asked after every callback has said what it wants, whatever their order."""
        is_boundary = self._trainer._step % self._trainer.window == 0 or control.should_training_stop
        judges = self._trainer.args.load_best_model_at_end
        for flag in ("should_save", "should_evaluate") if judges else ("should_save",):
            is_due = self._is_due[flag] or getattr(control, flag)
            setattr(control, flag, is_due and is_boundary)
            self._is_due[flag] = is_due and not is_boundary
