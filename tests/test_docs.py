"""The documentation is about this tree: it names every module of core and trainer, and every metric of a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from poise import rewards, tasks
from poise.cli import main
from poise.core import BASELINES, EstimatorConfig, Features, ProbeConfig, Rollouts, ValueEstimator
from poise.core.baselines import BaselineName

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
METRICS = (ROOT / "docs" / "algorithm.md").read_text().partition("## What is measured each step")[2]


@pytest.mark.parametrize("package", ["core", "trl"])
def test_the_architecture_names_every_module(package: str) -> None:
    modules = sorted(path.stem for path in (ROOT / "src" / "poise" / package).glob("[a-z]*.py"))
    written = "core.{}" if package == "core" else "trl/{}.py"
    assert [name for name in modules if f"`{written.format(name)}`" not in ARCHITECTURE] == []


def test_the_architecture_names_no_module_that_is_gone() -> None:
    named = re.findall(r"`(?:poise\.)?(core|trl|verl)[./](\w+)(?:\.py)?`", ARCHITECTURE)
    assert named
    assert [pair for pair in named if not (ROOT / "src" / "poise" / pair[0] / f"{pair[1]}.py").exists()] == []


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_metric_of_a_step_is_explained(baseline: BaselineName) -> None:
    probe = ProbeConfig(alpha=None, weights="score")
    estimator = ValueEstimator(EstimatorConfig(baseline=baseline, probe=probe, cold_start_rows=2))
    rows_B = torch.arange(8)
    for _ in range(3):
        features = Features(torch.randn(8, 4), torch.randn(8, 4), torch.rand(8, 3))
        rewards_B, weights_B = (rows_B % 3 == 0).float(), torch.rand(8)
        batch = Rollouts(
            rewards_B, rows_B // 2, features, weights_B=weights_B, prompts_B=rows_B // 2, values_B=torch.rand(8)
        )
        metrics = estimator.update(estimator.credit(batch))
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"^\| ([^|]+) \|", METRICS, re.M))))
    assert sorted(set(metrics) - explained) == []


def test_every_metric_that_the_trainer_adds_is_explained() -> None:
    """Names in the dictionaries that the trainer's files hand to the log."""
    sources = [path.read_text() for path in (ROOT / "src" / "poise" / "trl").glob("*.py")]
    sources += [(ROOT / "src" / "poise" / "runs" / "drift.py").read_text()]
    names = set(re.findall(r'"((?:critic|sampling|signal|filled|track)_(?:\w+))": ', " ".join(sources)))
    names |= set(re.findall(r'_log\("(\w+)"', " ".join(sources))) - {"prediction"}
    names |= {"capture_seconds", "sampled_rollouts"}
    assert {"critic_loss", "sampling_rounds", "track_seconds", "update_norm"} <= names
    assert sorted(name for name in names if name not in METRICS) == []


DATA = (ROOT / "docs" / "data.md").read_text()


def test_every_reward_and_task_is_listed() -> None:
    known = [*rewards.names(), *(name.removesuffix("...") for name in tasks.names() if name != "hub:...")]
    assert [name for name in known if f"`{name}" not in DATA and not name.startswith("test-")] == []


def test_the_example_of_own_data_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    row, judge = (re.search(rf"```{kind}\n(.*?)```", DATA, re.S)[1] for kind in ("json", "python"))  # pyright: ignore
    (tmp_path / "problems.jsonl").write_text("".join(row.replace("7", str(n)) for n in range(7, 47)))
    (tmp_path / "judge.py").write_text(judge)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "problems.jsonl", "--reward", "judge.py:score", "--prompts-per-step", "8"]
    assert main(["train", "--dry-run", *words]) == 0
    assert "# reward" in capsys.readouterr().out
    assert main(["doctor", *words]) == 0
    assert "reward judge.py:score: 0 for an empty completion, 1 for" in capsys.readouterr().out
