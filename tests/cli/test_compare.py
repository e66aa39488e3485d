"""`poise lab compare` as a user calls it: real runs of a random policy, killed, resumed, and reported."""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from poise.lab import compare_queue
from poise.runs.folder import RunFolder

METHODS = """
[mine]
title = "no baseline"
poise.baseline = "none"
"""


@pytest.fixture
def flags(workplace, tmp_path: Path) -> list[str]:
    """Two methods, one seed, two steps of 16 rollouts."""
    (tmp_path / "mine.toml").write_text(METHODS)
    (tmp_path / "base.toml").write_text(
        f'model.model = "{workplace.folder}/policy"\ndata.data = "{workplace.folder}/sums.jsonl"\n'
        f'reward.reward = ["{workplace.folder}/rewards.py:digits"]\ngeneration.max_completion_tokens = 10\n'
        "poise.cold_start_rows = 16\npoise.prompt_components = 4\npoise.reasoning_components = 4\n"
    )
    files = ["--base", "base.toml", "--methods", "mine.toml", "--only", "mine", "rloo-2", "--reference", "rloo-2"]
    sizes = ["--rollouts", "32", "--rollouts-per-step", "16", "--evaluations", "2", "--train-size", "16"]
    return [*files, *sizes, "--quick", "--held-out", "8", "--seeds", "1", "--out", "race"]


def test_a_dry_run_says_what_would_run(flags: list[str], poise: Callable) -> None:
    told = poise("lab", "compare", *flags, "--dry-run", "--jobs", "2")
    assert told.status == 0, told.err
    assert told.out == "2 runs, 64 rollouts, 2 at a time, in race\n"
    assert not Path("race").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # four runs in processes of their own; 30 seconds on an idle machine
def test_a_comparison_is_made_resumed_and_reported(flags: list[str], poise: Callable, monkeypatch) -> None:
    start = compare_queue._start
    started: list[str] = []

    def killing(run, jobs):
        job = start(run, jobs)
        started.append(run.method.name)
        if started == ["rloo-2"]:  # the first of all, in the order of the tables
            job[1].send_signal(signal.SIGKILL)
        return job

    monkeypatch.setattr(compare_queue, "_start", killing)
    told = poise("lab", "compare", *flags, "--matched", "--jobs", "2")
    assert told.status == 1
    assert "1 of 2 runs failed, the first one, race/race/rloo-2/lr0.0003-seed0, with: killed by signal 9" in told.err
    assert told.err.count("\n") == 1

    told = poise("lab", "compare", *flags, "--matched", "--jobs", "2")
    assert told.status == 0, told.err
    assert started == ["rloo-2", "mine", "rloo-2", "rloo-2", "mine"]  # the finished one is not made again
    study = json.loads(Path("race/study.json").read_text())
    assert study["kind"] == "compare"
    assert study["facts"]["matched_update_norm"] > 0
    assert {(row["arm"], row["method"]) for row in study["rows"]} == {
        (arm, method) for arm in ("race", "matched") for method in ("rloo-2", "mine")
    }
    rows = pyarrow.parquet.read_table("race/curves.parquet").to_pylist()
    assert [row["rollouts"] for row in rows if row["method"] == "mine"] == [0, 16, 32] * 2
    norm = study["facts"]["matched_update_norm"]
    assert norm == float(f"{statistics.mean(study['facts']['own_update_norms'].values()):.3g}")  # the median of two
    matched = RunFolder(f"race/matched/mine/norm{norm:g}-lr0.0003-seed0")
    assert not matched.model.exists()
    norms = [record["poise/update_norm"] for record in matched.metrics.read()]
    assert norms == pytest.approx([norm] * 2, rel=1e-6)

    again = poise("lab", "compare", *flags, "--matched")
    assert again.status == 0
    assert len(started) == 5
    shown = poise("report", "race", "--out", "page.html")
    assert shown.status == 0, shown.err
    page = Path("page.html").read_text()
    assert "no baseline" in page
    assert page.count("data:image/png") == len(list(Path("race/figures").iterdir()))


WRONG = [
    (["--only", "pose"], "no method is called 'pose'; did you mean 'poise'?"),
    (["--learning-rates", "0"], "poise: --learning-rates takes positive numbers"),
    (["--update-norm", "0.3"], "poise: --update-norm 0.3 is that of the matched arm; add --matched (see poise lab"),
    (["--train-size", "3", "--dry-run"], "3 training prompts are fewer than the 8 of one step"),
    (["--rollouts", "30"], "is no multiple of --rollouts-per-step"),
    (["--methods", "none.toml"], "there is no configuration file none.toml"),
    (["--base", "none.toml"], "there is no configuration file none.toml"),
    (["--sedes", "3"], "unknown flag --sedes; did you mean '--seeds'?"),
    (["--reference", "ppo"], "the reference ppo does not race"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_input_is_one_sentence(words: list[str], said: str, flags: list[str], poise: Callable) -> None:
    told = poise("lab", "compare", *flags, *words)
    assert told.status in (1, 2)
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not Path("race").exists()
