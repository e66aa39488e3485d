"""What the runs of a comparison say: accuracy against what it cost, and how the policy moved, read from run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.errors import ConfigError
from poise.lab.compare_methods import Run
from poise.runs.folder import RunFolder

# Cost axis -> key of a metrics record, all cumulative.
COSTS = {
    "rollouts": "rollouts",
    "tokens": "tokens",
    "wall_seconds": "seconds",
    "cpu_seconds": "cpu_seconds",
    "updates": "updates",
}
# How the policy moves, step by step.
MOVES = {
    "grad_norm": "grad_norm",
    "update_norm": "poise/update_norm",
    "kl_start": "poise/kl_start",
    "entropy": "entropy",
    "variance_ratio": "poise/variance_ratio",
    "reward": "reward",
}


@dataclass(frozen=True)
class Curve:
    """One run.

    Args:
        accuracy: held-out accuracy at each evaluation, the one before the first step included.
        costs: what had been spent at each evaluation, by cost axis.
        moves: (rollouts, value) of each step that has the value, by name.
    """

    run: Run
    accuracy: np.ndarray
    costs: dict[str, np.ndarray]
    moves: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def area(self) -> float:
        """Mean accuracy over the budget: the area under accuracy against rollouts, divided by the budget."""
        return area(self.costs["rollouts"], self.accuracy, self.run.budget)

    @property
    def overshoot(self) -> float:
        """Rollouts sampled beyond the budget: a method that drops prompts samples until it has a whole step."""
        return max(0.0, float(self.costs["rollouts"][-1]) - self.run.budget)

    def final(self, count: int) -> float:
        """Mean of the last `count` evaluations within the budget, the one before the first step never among them."""
        return float(cut(self.costs["rollouts"], self.accuracy, self.run.budget)[1:][-count:].mean())

    def move(self, name: str) -> float:
        """Mean of a move over the steps; NaN if it was never logged."""
        values = self.moves[name][1]
        return float(values.mean()) if values.size else float("nan")

    def move_at(self, name: str, place: int) -> float:
        """A move at one step, counted from the first or from the last; NaN if it was never logged."""
        values = self.moves[name][1]
        return float(values[place]) if values.size else float("nan")


def read_curve(run: Run) -> Curve:
    """The curve of a finished run.

    Raises:
        ConfigError: the folder lacks evaluations.
    """
    folder = RunFolder(run.folder)
    metrics, evaluations = folder.metrics.read(), folder.evaluations.read()
    if len(evaluations) < 2:
        raise ConfigError(f"{folder.path} has {len(evaluations)} held-out evaluations; at least two are needed")
    by_step: dict[int, dict[str, Any]] = {0: {}} | {record["step"]: record for record in metrics}
    spent = [by_step[record["step"]] for record in evaluations]
    return Curve(
        run=run,
        accuracy=np.array([record["accuracy"] for record in evaluations], float),
        costs={axis: np.array([record.get(key) or 0 for record in spent], float) for axis, key in COSTS.items()},
        moves={name: _series(metrics, key) for name, key in MOVES.items()},
    )


def judges(run: Run) -> frozenset[str]:
    """Keys of the held-out prompts that a run is judged by; none if its first evaluation is not on file."""
    file = RunFolder(run.folder).evaluation_file(0)
    if not file.exists():
        return frozenset()
    return frozenset(result["key"] for result in json.loads(file.read_text("utf-8"))["results"])


def _series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    known = [(record["rollouts"], record[key]) for record in metrics if record.get(key) is not None]
    rollouts, values = zip(*known, strict=True) if known else ((), ())
    return np.array(rollouts, float), np.array(values, float)


def area(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """Mean of the piecewise linear curve through (x, y) over [0, end]; beyond its last point it is flat.

    >>> area(np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.0]), 4.0)
    0.75
    >>> area(np.array([0.0, 2.0, 6.0]), np.array([0.0, 1.0, 1.0]), 4.0)
    0.75
    """
    places = np.union1d(x[x <= end], [0.0, end])
    return float(np.trapezoid(np.interp(places, x, y), places) / end)


def cut(x: np.ndarray, y: np.ndarray, end: float) -> np.ndarray:
    """The curve's values up to `end`; of a curve that goes on beyond it, the last is the interpolated one there.

    >>> cut(np.array([0.0, 2.0, 6.0]), np.array([0.0, 1.0, 3.0]), 4.0).tolist()
    [0.0, 1.0, 2.0]
    >>> cut(np.array([0.0, 2.0, 3.0]), np.array([0.0, 1.0, 3.0]), 4.0).tolist()
    [0.0, 1.0, 3.0]
    """
    return y if x[-1] <= end else np.append(y[x < end], np.interp(end, x, y))


def crossing(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """Where the piecewise linear curve through (x, y) first reaches the target; infinity if it does not.

    >>> crossing(np.array([0.0, 100.0, 200.0]), np.array([0.25, 0.75, 0.5]), 0.5)
    50.0
    >>> crossing(np.array([0.0, 100.0]), np.array([0.2, 0.4]), 0.5)
    inf
    """
    reached = np.flatnonzero(y >= target)
    if reached.size == 0:
        return float("inf")
    place = int(reached[0])
    if place == 0:
        return float(x[0])
    share = (target - y[place - 1]) / (y[place] - y[place - 1])
    return float(x[place - 1] + share * (x[place] - x[place - 1]))


def table(curves: Sequence[Curve]) -> dict[str, list[Any]]:
    """Every evaluation of every run, a row each, for a parquet file."""
    rows: dict[str, list[Any]] = {name: [] for name in ("arm", "method", "learning_rate", "seed", "accuracy", *COSTS)}
    for curve in curves:
        count = len(curve.accuracy)
        rows["arm"] += [curve.run.arm] * count
        rows["method"] += [curve.run.method.name] * count
        rows["learning_rate"] += [curve.run.learning_rate] * count
        rows["seed"] += [curve.run.seed] * count
        rows["accuracy"] += curve.accuracy.tolist()
        for axis in COSTS:
            rows[axis] += curve.costs[axis].tolist()
    return rows
