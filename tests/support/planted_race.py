"""Run folders of a comparison with accuracies that a test chose, read back as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from poise.lab.compare_curves import Curve, read_curve
from poise.lab.compare_methods import RACE, Method, Run
from poise.runs.folder import RunFolder
from poise.runs.settings import TrainSettings

STEP = 100  # rollouts
METHODS = {name: Method(name, name.upper(), {}, "test") for name in ("poise", "dapo", "rloo")}


def plant(
    folder: Path,
    method: str,
    seed: int,
    accuracies: Sequence[float],
    arm: str = RACE,
    rate: float = 1e-3,
    norm: float = 0.5,
    how: str = "finished",
) -> Curve:
    """A run that was evaluated after every step of 100 rollouts; the first accuracy is that before it."""
    settings, budget = TrainSettings(), STEP * (len(accuracies) - 1)
    path = folder / arm / method / f"lr{rate:g}-seed{seed}"
    settings = replace(
        settings,
        optimisation=replace(settings.optimisation, rollout_budget=budget),
        run=replace(settings.run, out=str(path)),
    )
    return fill(Run(arm, METHODS[method], rate, seed, settings), accuracies, norm, how)


def fill(run: Run, accuracies: Sequence[float], norm: float = 0.5, how: str = "finished") -> Curve:
    """Writes the folder of a planned run."""
    folder = RunFolder(run.folder)
    folder.make()
    folder.write_settings(run.settings)
    ends = {"began": "2026-11-25T00:00:00+00:00", "ended": "2026-11-25T00:00:10+00:00", "how": how}
    folder.write_record({"sessions": [ends]})
    for step, accuracy in enumerate(accuracies):
        folder.evaluations.append({"step": step, "accuracy": accuracy})
        if step:
            costs = {"rollouts": STEP * step, "tokens": 1000 * step, "seconds": 2.0 * step, "cpu_seconds": 1.5 * step}
            moves = {"grad_norm": 0.1, "entropy": 1.0 / step, "poise/update_norm": norm, "poise/kl_start": 0.01 * step}
            folder.metrics.append({"step": step, "updates": 2 * step, **costs, **moves})
    return read_curve(run)
