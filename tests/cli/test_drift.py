"""Updates of one size, and a run that ends when its rollouts are used up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from poise.runs.folder import RunFolder


def test_every_update_gets_the_norm_that_is_asked_for(workplace, poise: Callable) -> None:
    sizes = ["--update-norm", "0.05", "--warmup-updates", "2", "--measure-drift", "--eval-every", "2"]
    told = poise("train", *workplace.flags, *sizes, "--steps", "4", "--no-report", "--out", "even")
    assert told.status == 0, told.err
    assert not Path("even/report.html").exists()
    records = RunFolder("even").metrics.read()
    # The first update of a warm-up has learning rate 0, the second half of it.
    assert [record["poise/update_norm"] for record in records] == pytest.approx([0.0, 0.025, 0.05, 0.05], abs=1e-6)
    far = [record.get("poise/drift_norm") for record in records]
    assert far[0] is far[2] is None
    assert 0 < far[1] <= 0.025 + 1e-6
    assert far[1] < far[3] <= 0.125 + 1e-6
    assert 0 < records[1]["poise/kl_start"] < records[3]["poise/kl_start"]


def test_a_run_ends_with_its_budget_of_rollouts(workplace, poise: Callable) -> None:
    flags = [*workplace.flags, "--rollout-budget", "40", "--save-every", "2", "--no-report", "--out", "spent"]
    told = poise("train", *flags)
    assert told.status == 0, told.err
    run = RunFolder("spent")
    records = run.metrics.read()
    assert [record["rollouts"] for record in records] == [16, 32, 48]
    assert records[0]["cpu_seconds"] < records[2]["cpu_seconds"]
    assert [record["step"] for record in run.evaluations.read()] == [0, 3]
    assert json.loads(run.record.read_text())["sessions"][-1]["how"] == "finished"
    again = poise("train", "--out", "spent", "--resume", "auto")
    assert "has already sampled 48 rollouts" in again.out
    more = poise("train", "--out", "spent", "--resume", "auto", "--rollout-budget", "64")
    assert more.status == 0, more.err
    assert [record["rollouts"] for record in run.metrics.read()] == [16, 32, 48, 64]
    assert run.metrics.read()[:3] == records, "they are not made again: the budget's end is saved as well"
