"""Baselines against fresh rollouts: the numbers, and that every row meets its own prompt's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_policy
from poise.trl.fresh import FreshValues, track_metrics


def test_metrics_of_four_rollouts() -> None:
    baselines_B = torch.tensor([0.0, 0.5, 0.5, 1.0])
    fresh_B2 = torch.tensor([[0.25, 0.02], [0.25, 0.02], [0.75, 0.01], [0.75, 0.01]], dtype=torch.float64)
    found = track_metrics(baselines_B, fresh_B2)
    assert found["track_mae"] == pytest.approx(0.25)
    assert found["track_bias"] == pytest.approx(0.0)
    assert found["track_pearson"] == pytest.approx(0.5**0.5)
    assert found["track_ceiling"] == pytest.approx(math.sqrt((0.0625 - 0.015) / 0.0625))


def test_prompts_that_nothing_is_known_of_do_not_count() -> None:
    fresh_B2 = torch.tensor([[0.25, 0.0], [math.nan, math.nan], [0.75, 0.0]], dtype=torch.float64)
    found = track_metrics(torch.tensor([0.25, 9.0, 0.75]), fresh_B2)
    assert found["track_mae"] == 0.0
    assert found["track_pearson"] == pytest.approx(1.0)
    assert found["track_ceiling"] == pytest.approx(1.0)
    nothing = track_metrics(torch.tensor([0.5]), torch.tensor([[math.nan, math.nan]], dtype=torch.float64))
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize("mode", tiny_policy.LAYOUTS)
def test_every_row_meets_its_own_prompt(mode: str, tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, max_steps=4, **tiny_policy.LAYOUTS[mode])
    seen: list[float] = []

    def fresh(rows: Sequence[Mapping[str, Any]]) -> FreshValues:
        means = [int(row["target"]) / 40 for row in rows]
        seen[:] = means
        return FreshValues(means, [0.0] * len(rows), 3 * len(rows), 0.5)

    trainer.fresh_values = fresh
    trainer.train()
    [*_, last] = [record for record in trainer.state.log_history if "poise/track_mae" in record]
    baselines = list(trainer._logs["extra"]["baseline"])
    assert len(seen) == len(baselines)
    assert last["poise/track_rollouts"] == 3 * len(seen)
    expected = sum(abs(baseline - mean) for baseline, mean in zip(baselines, seen, strict=True)) / len(seen)
    assert last["poise/track_mae"] == pytest.approx(expected, abs=1e-6)
