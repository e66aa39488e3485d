"""What a run folder says, read back: metrics by name, evaluations, and rollouts, whatever of it exists already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from poise.core.baselines import READ_STATES
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

    @property
    def measured(self) -> list[Record]:
        """The held-out evaluations in which some verification went through; the others measured nothing."""
        return [record for record in self.evaluations if record["accuracy"] is not None]

    @property
    def is_weighted(self) -> bool:
        """Whether it has a probe that was fitted with squared scores, and so predicts the reward weighted with them."""
        poise = self.settings.poise
        return poise.baseline in READ_STATES and poise.probe_weights == "score"

    @property
    def rollouts_per_step(self) -> float:
        """Rollouts of a step as made, sampled-and-dropped ones included; as planned before the first step."""
        if self.metrics:
            return self.metrics[-1]["rollouts"] / self.metrics[-1]["step"]
        optimisation = self.settings.optimisation
        return optimisation.prompts_per_step * optimisation.rollouts_per_prompt

    def rollouts_at(self, steps: np.ndarray) -> np.ndarray:
        """Rollouts sampled by the end of each of these steps."""
        known = {0: 0} | {record["step"]: record["rollouts"] for record in self.metrics}
        return np.array([known.get(int(step), int(step) * self.rollouts_per_step) for step in steps], np.float64)

    def rollouts(self, step: int, first: int | None = None) -> list[Rollout]:
        """The rollouts of a step, or its first ones; none, and a note, if the file cannot be read."""
        table = self._read(self.rollout_files[step])
        return [] if table is None else table.slice(0, first).to_pylist()

    def tokens(self, step: int) -> dict[int, list[tuple[str, float]]]:
        """Token texts and entropies by row of the completions file, for the rollouts that have them."""
        path = self.folder.token_file(step)
        table = self._read(path) if path.exists() else None
        rows = [] if table is None else table.to_pylist()
        return {row["row"]: list(zip(row["tokens"], row["nats"], strict=True)) for row in rows}

    def _read(self, path: Path, columns: list[str] | None = None) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path, columns=columns)
        except (OSError, ValueError) as error:
            note = f"{path.parent.name}/{path.name} cannot be read: {error}"
            self.notes += [note] if note not in self.notes else []
            return None

    def reward_of(self, rollout: Rollout) -> float:
        """The reward that the policy was updated with: the weighted sum of the rollout's reward columns."""
        columns = self._reward_columns(list(rollout))
        weights = self.settings.reward.reward_weights or (1.0,) * len(columns)
        if len(weights) != len(columns):
            return math.nan
        # One that did not apply is left out; where one failed, none is a number.
        values = [
            (w, rollout[column]) for w, column in zip(weights, columns, strict=True) if _is_number(rollout[column])
        ]
        return float(sum(weight * value for weight, value in values)) if values else math.nan

    def _reward_columns(self, names: list[str]) -> list[str]:
        rewards = [name for name in names if name not in NOT_REWARDS]
        return rewards[: max(1, len(self.settings.reward.reward))]  # what reward functions log besides comes later

    def crossed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Baseline, reward and weight in the probe's fit of every rollout whose baseline a warm probe had a part in.

        The baseline knows nothing of the rollout itself, so comparing it with the rollout's own reward is a fair test
        of calibration; the prediction from the rollout's own states would not be.
        """
        import pyarrow.parquet

        rows: list[np.ndarray] = []
        for path in self.rollout_files.values():
            try:
                names = pyarrow.parquet.read_schema(path).names
            except (OSError, ValueError):
                names = []  # the reading below notes it
            wanted = [name for name in ("prediction", "baseline", "weight") if name in names]
            wanted += self._reward_columns(names)
            table = self._read(path, wanted)
            if table is None or not {"prediction", "baseline"} <= set(wanted):
                continue
            found = [
                (rollout["baseline"], self.reward_of(rollout), rollout.get("weight", 1.0))
                for rollout in table.to_pylist()
                if _is_number(rollout["prediction"]) and _is_number(rollout["baseline"])
            ]
            rows.append(np.array(found, dtype=np.float64).reshape(-1, 3))
        known = np.concatenate(rows) if rows else np.empty((0, 3))
        known = known[np.isfinite(known).all(1)]
        return known[:, 0], known[:, 1], known[:, 2]


# Columns of a completions file that are not a reward's.
NOT_REWARDS = {"step", "prompt", "completion", "advantage", "prediction", "baseline", "weight", "image", "images"}


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
        name=folder.path.resolve().name,
        folder=folder,
        settings=folder.saved_settings(),
        metrics=folder.metrics.read(),
        evaluations=folder.evaluations.read(),
        rollout_files=dict(sorted(files.items())),
        record=folder.read_record(),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
