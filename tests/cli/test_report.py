"""Reports: what the figures draw, what the sentence claims, and that the page needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import planted_run
from planted_run import STEPS
from poise.core.estimator import CANDIDATES
from poise.report import figures
from poise.report.data import read_run
from poise.report.draw import running_mean, thin
from poise.report.figures import reliability
from poise.report.page import cell, number
from poise.report.summary import sentence
from poise.runs.display import Lines
from poise.runs.folder import RunFolder
from poise.runs.session import _show
from poise.runs.settings import PoiseSettings, RewardSettings, TrainSettings

FIGURES = {"held_out", "reward", "variance", "mixture", "calibration", "error", "tracking", "grad_norm", "policy"}
FIGURES |= {"seconds"}
VOID = {"meta", "br", "img", "hr", "input", "link"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return planted_run.plant(tmp_path / "rising")


def test_tracking_shows_the_ceiling_that_lies_above_what_is_reached(run: RunFolder) -> None:
    """Planted: correlation 0.8 of 0.9 that can be reached, error 0.2."""
    drawn = figures.tracking([read_run(run)])
    assert drawn is not None
    (low_error, high_error), (low, high) = (axes.get_ylim() for axes in drawn.axes)
    assert (low_error, high_error) == pytest.approx((0.0, 0.224))
    assert (low, high) == pytest.approx((0.0, 1.008))
    assert [said.get_text() for said in drawn.axes[1].get_legend().get_texts()] == ["the true pass rates'"]


def test_the_mixture_s_shares_are_stacked(run: RunFolder) -> None:
    """Planted: .4, .3, .2 and .1 at every step. Two runs have no room in one stack."""
    drawn = figures.mixture([read_run(run)])
    assert drawn is not None
    areas = drawn.axes[0].collections
    tops = [float(area.get_paths()[0].vertices[:, 1].max()) for area in areas]
    assert tops == pytest.approx([0.4, 0.7, 0.9, 1.0])
    assert areas[0].get_label() == "probe, from the siblings"
    assert figures.mixture([read_run(run)] * 2) is None
    assert set(figures.MIXED) == set(CANDIDATES)


class Page(HTMLParser):
    """Collects tags, ids and whatever a browser would fetch, and refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.fetched += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "action")]
        self.fetched += [value or "" for name, value in attrs if name.endswith("href") and not value.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_written_and_stands_alone(run: RunFolder, poise: Callable) -> None:
    told = poise("report", str(run.path))
    assert told.status == 0, told.err
    assert told.out.splitlines()[-1] == f"report: {run.report}"
    text = run.report.read_text()
    page = Page(text)
    assert page.tags.count("figure") == len(FIGURES)
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import|https?://(?!www.w3.org/)", text)
    assert "script" not in page.tags  # completions are text, whatever they contain
    assert "alert(1)" in text
    assert page.tags.count("details") == 1 + 6 * 4  # every setting, and four prompts of each of six steps
    assert len(text) < 400_000


def test_figures_follow_the_scheme_of_the_page(run: RunFolder, poise: Callable) -> None:
    assert poise("report", str(run.path)).status == 0
    figures = re.findall(r"<figure><svg.*?</svg>", run.report.read_text(), re.DOTALL)
    for figure in figures:
        assert "var(--c0)" in figure
        assert not set(re.findall(r"#[0-9a-f]{6}\b", figure)), "a colour that does not follow the scheme"
        assert "<style" not in figure
    assert any(">0.400</text>" in figure for figure in figures)  # numbers in figures stay as they are


def test_every_plot_is_there_and_drawn(run: RunFolder, poise: Callable) -> None:
    assert poise("report", str(run.path)).status == 0
    assert {path.stem for path in run.plots.iterdir()} == FIGURES
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


def test_an_evaluation_without_a_verdict_measured_nothing(run: RunFolder, poise: Callable) -> None:
    nothing = {"accuracy": None, "low": None, "high": None, "prompts": 0, "samples": 9, "seconds": 1.0}
    run.evaluations.append({"step": STEPS + 1, **nothing})
    assert poise("report", str(run.path)).status == 0
    summary = json.loads(run.summary.read_text())
    assert summary["held_out"]["after"]["step"] == STEPS
    assert (
        "Held-out accuracy 0.400 [0.350, 0.450] at step 0 and 0.600 [0.550, 0.650] at step 30." in summary["sentence"]
    )
    text = run.report.read_text()
    assert "1 of 3 held-out evaluations had no verification that went through" in text
    assert "no paired difference of the held-out accuracies: there is no evaluation at" in text
    run.evaluations.keep(lambda record: record["accuracy"] is None)
    assert poise("report", str(run.path)).status == 0
    assert json.loads(run.summary.read_text())["held_out"] is None


def test_a_report_that_fails_does_not_spoil_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(paths: list[Path]) -> list[str]:
        raise ZeroDivisionError("of what?")

    display = Lines(STEPS, io.StringIO())
    monkeypatch.setattr("poise.report.write_report", breaks)
    _show(run, display)
    assert display.stream.getvalue().startswith("no report: ZeroDivisionError: of what?; the run is whole")


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


def test_runs_of_one_name_are_told_apart_and_the_folder_one_is_in_has_a_name(
    poise: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("ours", "theirs"):
        other = RunFolder(tmp_path / method / "seed0")
        other.make()
        other.write_settings(TrainSettings())
    assert poise("report", "ours/seed0", "theirs/seed0", "--out", "both.html").status == 0
    assert "<title>POISE: ours/seed0, theirs/seed0</title>" in (tmp_path / "both.html").read_text()
    assert poise("report", "ours/seed0", "./ours/seed0", "--out", ".").status == 0
    assert "<title>POISE: seed0</title>" in (tmp_path / "report.html").read_text()
    monkeypatch.chdir(tmp_path / "ours" / "seed0")
    assert poise("report", ".").status == 0
    assert "<title>POISE: seed0</title>" in Path("report.html").read_text()


def test_a_torn_completion_file_is_noted_and_left_out(run: RunFolder) -> None:
    (run.completions / "step_00030.parquet").write_bytes(b"PAR1 half")
    data = read_run(run)
    baselines, rewards, weights = data.crossed()
    assert set(weights) == {1.0}, "a fit without weights has no such column"
    assert len(baselines) == len(rewards) == 64 * (STEPS - 3)  # two cold steps, one torn
    assert any("step_00030.parquet cannot be read" in note for note in data.notes)


def test_rewards_are_summed_with_their_weights(run: RunFolder) -> None:
    data = read_run(run)
    assert data.reward_of({"prompt": "x", "exact": 1.0, "baseline": 0.3, "extra": 7.0, "advantage": 0.7}) == 1.0
    assert np.isnan(data.reward_of({"exact": None}))
    data.settings = TrainSettings(reward=RewardSettings(reward=("sums", "words"), reward_weights=(2.0, 1.0)))
    assert data.reward_of({"sums": 1.0, "words": None}) == 2.0, "one that did not apply is left out"
    assert np.isnan(data.reward_of({"sums": float("nan"), "words": float("nan")}))


@pytest.mark.parametrize(
    ("poise", "is_weighted"),
    [
        (PoiseSettings(baseline="auto", probe_weights="score"), True),
        (PoiseSettings(baseline="probe", probe_weights="none"), False),
        (PoiseSettings(baseline="tracker", probe_weights="score"), False),  # no probe to have been fitted so
    ],
)
def test_what_was_predicted_is_weighted_where_a_probe_was(
    run: RunFolder, poise: PoiseSettings, is_weighted: bool
) -> None:
    data = read_run(run)
    data.settings = TrainSettings(poise=poise)
    assert data.is_weighted == is_weighted


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 10))
def test_running_mean_is_the_plain_loop(values: list[float], width: int) -> None:
    expected = [np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(running_mean(np.array(values), width), expected, atol=1e-9)


def test_reliability_of_ten_known_tenths() -> None:
    baselines = np.repeat(np.arange(10) / 10, 4)
    rewards = np.tile([0.0, 0.0, 0.0, 1.0], 10)
    shuffled = np.random.default_rng(0).permutation(40)
    predicted, observed, error = reliability(baselines[shuffled], rewards[shuffled], np.ones(40))
    np.testing.assert_allclose(predicted, np.arange(10) / 10)
    np.testing.assert_allclose(observed, 0.25)
    np.testing.assert_allclose(error, np.sqrt(0.25 * 0.75) / 2)
    weights = np.tile([2.0, 1.0, 0.0, 3.0], 10)
    _, observed, error = reliability(baselines[shuffled], rewards[shuffled], weights[shuffled])
    np.testing.assert_allclose(observed, 0.5)
    np.testing.assert_allclose(error, np.sqrt((4 + 1 + 9) / 36 * 0.25))


def test_the_sentence_claims_no_more_than_the_interval() -> None:
    held = {"step": 0, "accuracy": 0.4, "low": 0.35, "high": 0.45}
    found = {
        "model": "m",
        "task": "t",
        "baseline": "probe",
        "is_weighted": False,
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
    late = {**found["last_fifth"], "target": 0.25, "relative": 0.375}
    weighted = sentence({**found, "held_out": None, "is_weighted": True, "last_fifth": late})
    assert weighted.endswith(
        "In the last fifth of the run the mean reward is 0.510, weighted with squared scores 0.250, which the probe "
        "predicted to be 0.500; by the same weights the baselines leave 0.38 of leave-one-out's gradient variance "
        "within prompts."
    )
    chance = {**gap, "low": -0.01, "p_value": 0.06}
    torn = {**gap, "p_value": 0.06}  # the interval excludes zero, the test does not
    assert "beyond chance" in sentence({**found, "held_out": {"before": held, "after": held, "difference": torn}})
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
    assert [cell(value) for value in (0.00123456, 0.5, 12345.678, [0.1, None], True, 3, 0.0)] == [
        "0.00123",
        "0.500",
        "1.23e+04",
        "[0.100, –]",
        "yes",
        "3",
        "0.000",
    ]


def test_long_curves_are_thinned_to_means_of_neighbours() -> None:
    x, y = thin(np.arange(6), np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0]), most=3)
    assert x.tolist() == [0.5, 2.5, 4.5]
    assert y.tolist() == [2.0, 6.0, 10.0]
    x, _ = thin(np.arange(6), np.zeros(6), most=6)
    assert x.tolist() == [0, 1, 2, 3, 4, 5]


def test_runs_with_steps_of_different_size_share_a_rollout_axis(run: RunFolder, tmp_path: Path) -> None:
    from poise.report.figures import _places, _xlabel

    other = RunFolder(tmp_path / "other")
    other.make()
    other.write_settings(TrainSettings())
    for step in (1, 2):
        other.metrics.append({"step": step, "rollouts": 100 * step, "reward": 0.5})
    both = [read_run(run), read_run(other)]
    assert _xlabel(both[:1]) == "step"
    assert _xlabel(both) == "rollouts sampled"
    assert _places(both, both[1], np.array([0, 1, 2])).tolist() == [0, 100, 200]
