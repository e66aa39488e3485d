"""What a run folder says, read back: metrics by name, evaluations, and rollouts, whatever of it exists already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import ConfigError
from poise.runs.folder import RunFolder
from poise.runs.settings import TrainSettings

Record = dict[str, Any]
Rollout = dict[str, Any]


@dataclass
class RunData:
    """One run as its folder tells it.

    Args:
        name: the folder's name, which labels curves.
        metrics: one record a step.
        evaluations: one record a held-out evaluation.
        rollout_files: completions by step.
        record: run.json.
        notes: what could not be read.
    """

    name: str
    folder: RunFolder
    settings: TrainSettings
    metrics: list[Record]
    evaluations: list[Record]
    rollout_files: dict[int, Path]
    record: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, steps without a finite value left out."""
        known = [(record["step"], record[name]) for record in self.metrics if _is_number(record.get(name))]
        steps, values = zip(*known, strict=True) if known else ((), ())
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def late(self, name: str) -> float | None:
        """Mean of a metric over the last fifth of the steps; None if it was never finite there."""
        steps, values = self.series(name)
        last = self.metrics[-1]["step"] if self.metrics else 0
        chosen = values[steps > last - max(1, math.ceil(last / 5))]
        return float(chosen.mean()) if chosen.size else None

    def rollouts(self, step: int) -> list[Rollout]:
        """Every rollout of a step; none, and a note, if the file cannot be read."""
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(self.rollout_files[step]).to_pylist()
        except (OSError, ValueError) as error:
            self.notes.append(f"{self.rollout_files[step].name} cannot be read: {error}")
            return []

    def reward_of(self, rollout: Rollout) -> float:
        """The reward that the policy was updated with: the weighted sum of the rollout's reward columns."""
        names = [key for key in rollout if key not in NOT_REWARDS]
        columns = names[: max(1, len(self.settings.reward.reward))]  # what reward functions log besides comes later
        weights = self.settings.reward.reward_weights or (1.0,) * len(columns)
        values = [rollout[column] for column in columns]
        if len(weights) != len(columns) or not all(map(_is_number, values)):
            return math.nan
        return float(sum(weight * value for weight, value in zip(weights, values, strict=True)))

    def crossed(self) -> tuple[np.ndarray, np.ndarray]:
        """Baseline and reward of every rollout whose baseline came from the probe.

        The baseline is predicted from the *other* rollouts of the prompt, so comparing it with the rollout's own
        reward is a fair test of calibration; the prediction from the rollout's own states would not be.
        """

        pairs: list[np.ndarray] = []
        for step in self.rollout_files:
            columns = self.rollouts(step)
            found = [
                (rollout["baseline"], self.reward_of(rollout))
                for rollout in columns
                if _is_number(rollout.get("prediction")) and _is_number(rollout.get("baseline"))
            ]
            pairs.append(np.array(found, dtype=np.float64).reshape(-1, 2))
        both = np.concatenate(pairs) if pairs else np.empty((0, 2))
        both = both[np.isfinite(both).all(1)]
        return both[:, 0], both[:, 1]


# Columns of a completions file that are not a reward's.
NOT_REWARDS = {"step", "prompt", "completion", "advantage", "prediction", "baseline", "image", "images"}


def read_run(folder: RunFolder) -> RunData:
    """Everything a run folder holds.

    Raises:
        ConfigError: there is no run in it.
    """
    if not folder.exists:
        raise ConfigError(
            f"{folder.path} holds no run (no config.toml); give the folder that `poise train --out` named"
        )
    files = {int(path.stem.removeprefix("step_")): path for path in folder.completions.glob("step_*.parquet")}
    return RunData(
        name=folder.path.name,
        folder=folder,
        settings=folder.saved_settings(),
        metrics=folder.metrics.read(),
        evaluations=folder.evaluations.read(),
        rollout_files=dict(sorted(files.items())),
        record=folder.read_record(),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
