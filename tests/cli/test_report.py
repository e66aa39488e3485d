"""Reports: what the figures draw, what the sentence claims, and that the page needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poise.report.data import read_run
from poise.report.figures import reliability, running_mean
from poise.report.page import number, text_of
from poise.report.summary import sentence
from poise.runs.folder import RunFolder
from poise.runs.settings import TrainSettings

STEPS = 30


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder as training leaves it: rewards rise, the probe is calibrated."""
    folder = RunFolder(tmp_path / "rising")
    folder.make()
    folder.write_settings(TrainSettings())
    rng = np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        baseline = rng.random(64)
        reward = (rng.random(64) < baseline).astype(float)
        record = {
            "step": step,
            "rollouts": 64 * step,
            "seconds": 2.0 * step,
            "step_seconds": 2.0,
            "grad_norm": 1 / step,
        }
        record |= {"reward": step / STEPS, "poise/prediction_mean": step / STEPS if step > 2 else None, "entropy": 1.0}
        folder.metrics.append({**record, "poise/variance_ratio": 0.7, "completions/mean_length": 50.0})
        columns = {
            "step": [step] * 64,
            "prompt": [[{"role": "user", "content": "<b>2 & 2</b>"}]] * 64,
            "completion": [[{"role": "assistant", "content": "<script>alert(1)</script>"}]] * 64,
            "exact": reward,
            "prediction": baseline if step > 2 else [float("nan")] * 64,
            "baseline": baseline,
            "advantage": reward - baseline,
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), folder.completions / f"step_{step:05d}.parquet")
    for step, accuracy in ((0, 0.4), (STEPS, 0.6)):
        ends = {"low": accuracy - 0.05, "high": accuracy + 0.05}
        folder.evaluations.append(
            {"step": step, "accuracy": accuracy, **ends, "prompts": 9, "samples": 9, "seconds": 1.0}
        )
    folder.write_record({"sessions": [], "versions": {"torch": "2.13.0"}, "git": None, "device": None})
    return folder


class Page(HTMLParser):
    """Collects tags and whatever a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_a_report_is_written_and_stands_alone(run: RunFolder, poise: Callable) -> None:
    told = poise("report", str(run.path))
    assert told.status == 0, told.err
    assert told.out.splitlines()[-1] == f"report: {run.report}"
    text = run.report.read_text()
    page = Page(text)
    assert page.tags.count("img") == 6
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in page.fetched)
    assert not re.search(r"url\(|@import|https?://", text.split("</style>")[0])
    assert "script" not in page.tags  # completions are text, whatever they contain
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<h2>Rollouts</h2>" in text
    assert page.tags.count("details") > 20


def test_every_plot_is_there_and_drawn(run: RunFolder, poise: Callable) -> None:
    assert poise("report", str(run.path)).status == 0
    names = {path.stem for path in run.plots.iterdir()}
    assert names == {"held_out", "reward", "variance", "calibration", "grad_norm", "policy"}
    for path in run.plots.iterdir():
        with Image.open(path) as image:
            assert image.width >= 1000
            assert np.asarray(image.convert("L")).std() > 5, path


def test_the_summary_is_what_the_files_say(run: RunFolder, poise: Callable) -> None:
    assert poise("report", str(run.path)).status == 0
    summary = json.loads(run.summary.read_text())
    assert summary["steps"] == STEPS
    assert summary["rollouts"] == 64 * STEPS
    assert summary["last_fifth"]["reward"] == pytest.approx(np.mean([26, 27, 28, 29, 30]) / 30, rel=0.03)
    assert summary["last_fifth"]["variance_ratio"] == pytest.approx(0.7)
    assert summary["held_out"]["after"]["accuracy"] == 0.6


def test_several_runs_share_one_page(run: RunFolder, poise: Callable, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "empty")
    other.make()
    other.write_settings(TrainSettings())
    told = poise("report", str(run.path), str(other.path), "--out", str(tmp_path / "both.html"))
    assert told.status == 0, told.err
    text = (tmp_path / "both.html").read_text()
    assert "Side by side" in text
    assert "rising" in text
    assert "empty" in text
    assert not run.report.exists()


def test_a_torn_completion_file_is_noted_and_left_out(run: RunFolder) -> None:
    (run.completions / "step_00030.parquet").write_bytes(b"PAR1 half")
    data = read_run(run)
    baselines, rewards = data.crossed()
    assert len(baselines) == len(rewards) == 64 * (STEPS - 3)  # two cold steps, one torn
    assert any("step_00030.parquet cannot be read" in note for note in data.notes)


def test_rewards_are_summed_with_their_weights(run: RunFolder) -> None:
    data = read_run(run)
    assert data.reward_of({"prompt": "x", "exact": 1.0, "baseline": 0.3, "extra": 7.0, "advantage": 0.7}) == 1.0
    assert np.isnan(data.reward_of({"exact": None}))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 10))
def test_running_mean_is_the_plain_loop(values: list[float], width: int) -> None:
    expected = [np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(running_mean(np.array(values), width), expected, atol=1e-9)


def test_reliability_of_ten_known_tenths() -> None:
    baselines = np.repeat(np.arange(10) / 10, 4)
    rewards = np.tile([0.0, 0.0, 0.0, 1.0], 10)
    shuffled = np.random.default_rng(0).permutation(40)
    predicted, observed, error = reliability(baselines[shuffled], rewards[shuffled])
    np.testing.assert_allclose(predicted, np.arange(10) / 10)
    np.testing.assert_allclose(observed, 0.25)
    np.testing.assert_allclose(error, np.sqrt(0.25 * 0.75) / 2)


def test_the_sentence_claims_no_more_than_the_interval() -> None:
    held = {"step": 0, "accuracy": 0.4, "low": 0.35, "high": 0.45}
    found = {
        "model": "m",
        "task": "t",
        "baseline": "probe",
        "steps": 9,
        "planned_steps": 9,
        "rollouts": 1234,
        "seconds": 90.0,
        "status": "finished",
        "last_fifth": {"variance_ratio": 0.7, "predicted": 0.5, "reward": 0.51},
    }
    gap = {"mean": 0.1, "low": 0.05, "high": 0.15, "p_value": 0.0004, "prompts": 9}
    rose = sentence({**found, "held_out": {"before": held, "after": {**held, "accuracy": 0.5}, "difference": gap}})
    assert rose == (
        "m trained on t with the probe baseline: 9 steps, 1,234 rollouts, 1.5 minutes of training. Held-out accuracy "
        "rose from 0.400 [0.350, 0.450] to 0.500 [0.350, 0.450]: +0.100 [+0.050, +0.150], p < 0.001, paired over 9 "
        "prompts. In the last fifth of the run Var(A)/Var(r) is 0.70, the mean reward 0.510 and its prediction 0.500."
    )
    chance = {**gap, "low": -0.01, "p_value": 0.06}
    unsure = sentence({**found, "held_out": {"before": held, "after": held, "difference": chance}})
    assert "did not change beyond chance, from" in unsure
    worse = {**gap, "mean": -0.1, "low": -0.15, "high": -0.05}
    assert "accuracy fell from" in sentence({**found, "held_out": {"before": held, "after": held, "difference": worse}})


def test_cells_and_messages() -> None:
    assert [number(value) for value in (0.12345, 7, 12345, None, float("nan"), "x")] == [
        "0.123",
        "7",
        "12,345",
        "–",
        "–",
        "x",
    ]
    assert text_of([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "system: a\n\nuser: b"
