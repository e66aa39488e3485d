"""The plots of a run, or of several side by side. Each function draws one figure; none is drawn without data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poise.report.data import RunData
from poise.report.style import COLOURS, SIZE, STYLE

_BINS = 10


def all_figures(runs: Sequence[RunData]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by the name of its file."""
    drawers: dict[str, Callable[[Sequence[RunData]], Figure | None]] = {
        "held_out": held_out,
        "reward": reward,
        "variance": variance,
        "calibration": calibration,
        "grad_norm": grad_norm,
        "policy": policy,
    }
    with mpl.rc_context(STYLE):
        drawn = {name: draw(runs) for name, draw in drawers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def held_out(runs: Sequence[RunData]) -> Figure | None:
    """Held-out accuracy with its bootstrap interval."""
    if not any(run.evaluations for run in runs):
        return None
    figure, axes = _blank("Held-out accuracy (mean, 95% bootstrap interval over prompts)", "accuracy")
    for run, colour in zip(runs, _cycle(runs), strict=True):
        steps = [record["step"] for record in run.evaluations]
        mean = np.array([record["accuracy"] for record in run.evaluations], dtype=float)
        low = np.array([record["low"] for record in run.evaluations], dtype=float)
        high = np.array([record["high"] for record in run.evaluations], dtype=float)
        spread = [mean - low, high - mean]
        axes.errorbar(steps, mean, spread, fmt="o-", color=colour, capsize=4, lw=1.8, ms=6, label=run.name)
        ends = sorted({0, len(steps) - 1}) if steps and len(runs) == 1 else []
        for end in ends:
            place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "color": colour}
            axes.annotate(f"{mean[end]:.3f}", (steps[end], high[end]), **place)
    return _finish(figure, axes, legend=len(runs) > 1)


def reward(runs: Sequence[RunData]) -> Figure | None:
    """Mean reward of each step's rollouts, and what the probe predicted for them."""
    if not any(run.series("reward")[0].size for run in runs):
        return None
    figure, axes = _blank("Reward and predicted value", "mean over the step's rollouts (reward scale)")
    for run, colour in zip(runs, _cycle(runs), strict=True):
        label = f"{run.name}: " if len(runs) > 1 else ""
        _curve(axes, *run.series("reward"), colour, f"{label}reward")
        predicted_colour = colour if len(runs) > 1 else COLOURS[1]
        _curve(axes, *run.series("poise/prediction_mean"), predicted_colour, f"{label}predicted", dashed=True)
    return _finish(figure, axes, legend=True)


def variance(runs: Sequence[RunData]) -> Figure | None:
    """Var(A)/Var(r): how much of the reward's variance the baseline leaves."""
    if not any(run.series("poise/variance_ratio")[0].size for run in runs):
        return None
    figure, axes = _blank("Variance that the baseline leaves", "Var(advantage) / Var(reward)")
    axes.axhline(1, color="#777777", lw=1, ls=":", label="no baseline: 1")
    for run, colour in zip(runs, _cycle(runs), strict=True):
        _curve(axes, *run.series("poise/variance_ratio"), colour, run.name)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, legend=True)


def calibration(runs: Sequence[RunData]) -> Figure | None:
    """Reliability: mean reward among rollouts whose baseline was predicted to be about the same."""
    found = [(run, *run.crossed()) for run in runs]
    found = [(run, baselines, rewards) for run, baselines, rewards in found if len(baselines) >= _BINS]
    if not found:
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    everything = np.concatenate([np.concatenate([baselines, rewards]) for _, baselines, rewards in found])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color="#777777", lw=1, ls=":", label="calibrated")
    for (run, baselines, rewards), colour in zip(found, _cycle(found), strict=True):
        predicted, observed, error = reliability(baselines, rewards)
        axes.errorbar(
            predicted, observed, 1.96 * error, fmt="o-", color=colour, capsize=3, lw=1.5, ms=5, label=run.name
        )
        counts.hist(baselines, bins=40, color=colour, alpha=0.6)
    axes.set_title("Calibration of the baseline (tenths of the rollouts, 95% interval)")
    axes.set_ylabel("mean reward of those rollouts")
    counts.set_ylabel("rollouts")
    counts.set_xlabel("baseline predicted from the other rollout of the prompt (reward scale)")
    axes.legend(loc="upper left")
    return figure


def reliability(baselines: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean baseline, mean reward and its standard error in equally filled bins of the baseline."""
    order = np.argsort(baselines, kind="stable")
    groups = np.array_split(order, _BINS)
    predicted = np.array([baselines[group].mean() for group in groups])
    observed = np.array([rewards[group].mean() for group in groups])
    error = np.array([rewards[group].std() / np.sqrt(len(group)) for group in groups])
    return predicted, observed, error


def grad_norm(runs: Sequence[RunData]) -> Figure | None:
    """Norm of the policy gradient before clipping."""
    if not any(run.series("grad_norm")[0].size for run in runs):
        return None
    figure, axes = _blank("Gradient norm (before clipping)", "L2 norm")
    for run, colour in zip(runs, _cycle(runs), strict=True):
        _curve(axes, *run.series("grad_norm"), colour, run.name)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, legend=len(runs) > 1)


def policy(runs: Sequence[RunData]) -> Figure | None:
    """Entropy and length: the two curves that show a collapsing policy first."""
    if not any(run.series("entropy")[0].size for run in runs):
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for run, colour in zip(runs, _cycle(runs), strict=True):
        _curve(top, *run.series("entropy"), colour, run.name)
        _curve(bottom, *run.series("completions/mean_length"), colour, run.name)
    top.set_title("The policy: entropy and length of its completions")
    top.set_ylabel("entropy (nats per token)")
    bottom.set_ylabel("length (tokens)")
    bottom.set_xlabel("step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (top, bottom):
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        top.legend()
    return figure


def _blank(title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _finish(figure: Figure, axes: Axes, legend: bool) -> Figure:
    axes.margins(y=0.12)
    if legend:
        axes.legend()
    return figure


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str, dashed: bool = False) -> None:
    """The values faintly, and their running mean over a twentieth of the run boldly; short runs plainly."""
    width = len(values) // 20
    style = "--" if dashed else "-"
    if width < 2:
        axes.plot(steps, values, style, color=colour, lw=1.6, label=label)
        return
    axes.plot(steps, values, style, color=colour, lw=0.8, alpha=0.3)
    axes.plot(steps, running_mean(values, width), style, color=colour, lw=2, label=f"{label} (mean of {width} steps)")


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` values at each place; of fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(0, stops - width)
    return (sums[stops] - sums[starts]) / (stops - starts)


def _cycle(items: Sequence[object]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(items))]
