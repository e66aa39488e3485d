"""What is shown while a run trains: a line whose form is a promise, and a table on a terminal."""

from __future__ import annotations

import io
import math

from rich.console import Console

from poise.runs.display import Lines, LiveTable, evaluation_line, step_line

RECORD = {
    "step": 12,
    "rollouts": 1536,
    "step_seconds": 2.3456,
    "reward": 0.52344,
    "grad_norm": 1.25,
    "entropy": 0.4,
    "completions/mean_length": 61.25,
    "poise/prediction_mean": 0.51,
    "poise/target_mean": 0.5,
    "poise/variance_ratio": math.nan,
}
EVALUATION = {"step": 8, "accuracy": 0.5, "low": 0.4375, "high": 0.5625, "prompts": 256, "samples": 512, "seconds": 3.0}


def test_the_line_of_a_step_is_stable() -> None:
    assert step_line(RECORD, 40) == (
        "step=12/40 reward=0.5234 predicted=0.5100 variance_ratio=- grad_norm=1.2500 entropy=0.4000 length=61.2 "
        "seconds=2.35 rollouts=1536 target=0.5000"
    )


def test_a_step_without_optional_metrics_keeps_its_keys() -> None:
    bare = step_line({"step": 1, "rollouts": 2, "reward": None}, 3)
    keys = [pair.partition("=")[0] for pair in bare.split()]
    assert keys == [pair.partition("=")[0] for pair in step_line(RECORD, 40).split()]


def test_the_line_of_an_evaluation_is_stable() -> None:
    assert evaluation_line(EVALUATION) == (
        "held-out step=8 accuracy=0.5000 low=0.4375 high=0.5625 prompts=256 samples=512 seconds=3.00"
    )


def test_lines_go_out_one_by_one() -> None:
    stream = io.StringIO()
    lines = Lines(40, stream)
    lines.note("a note")
    lines.step(RECORD)
    lines.evaluation(EVALUATION)
    lines.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["a", "step=12/40", "held-out"]


def test_the_live_table_shows_the_last_steps() -> None:
    screen = io.StringIO()
    table = LiveTable(40, Console(file=screen, force_terminal=True, width=120))
    table.note("a note with [brackets]")
    for step in range(1, 20):
        table.step({**RECORD, "step": step})
    table.evaluation(EVALUATION)
    table.close()
    assert "a note with [brackets]" in screen.getvalue()
    plain = Console(file=io.StringIO(), width=120)
    plain.print(table.draw())
    shown = plain.file.getvalue()  # pyright: ignore
    assert "step 19 of 40" in shown
    assert "accuracy=0.5000" in shown
    assert shown.count("1.2500") == 12  # the last dozen
