"""The plots of a run, or of several side by side. Each function draws one figure; none is drawn without data.

Several runs share a step axis as long as their steps hold equally many rollouts, and a rollout axis otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poise.report import draw
from poise.report.data import RunData
from poise.report.style import PANEL, SOFT, STYLE

_BINS = 10
# What "auto" combines, in words.
MIXED = {
    "probe": "probe, from the siblings",
    "prompt_probe": "probe, from the prompt",
    "leave_one_out": "siblings' mean reward",
    "other_prompts": "other prompts' mean reward",
}


def all_figures(runs: Sequence[RunData]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by the name of its file."""
    drawers: dict[str, Callable[[Sequence[RunData]], Figure | None]] = {
        "held_out": held_out,
        "reward": reward,
        "variance": variance,
        "mixture": mixture,
        "calibration": calibration,
        "error": error,
        "tracking": tracking,
        "grad_norm": grad_norm,
        "policy": policy,
        "seconds": seconds,
    }
    with mpl.rc_context(STYLE):
        drawn = {name: drawer(runs) for name, drawer in drawers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def held_out(runs: Sequence[RunData]) -> Figure | None:
    """Held-out accuracy with its bootstrap interval."""
    if not any(run.measured for run in runs):
        return None
    figure, axes = draw.blank("Held-out accuracy", "mean, 95% interval over prompts", _xlabel(runs))
    for index, run in enumerate(runs):
        places = _places(runs, run, np.array([record["step"] for record in run.measured]))
        mean, low, high = (
            np.array([record[key] for record in run.measured], float) for key in ("accuracy", "low", "high")
        )
        style = draw.look(index)
        axes.errorbar(places, mean, [mean - low, high - mean], marker="o", capsize=3, lw=1.6, ms=4.5, **style)
        for end in sorted({0, len(mean) - 1}) if len(mean) and len(runs) == 1 else []:
            place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "color": draw.colour(index)}
            axes.annotate(f"{mean[end]:.3f}", (places[end], high[end]), **place)
    draw.legend(axes, False)
    return figure


def reward(runs: Sequence[RunData]) -> Figure | None:
    """Mean reward of each step's rollouts, and what the probe predicted for them; of a weighted fit, its target too."""
    if not _has(runs, "reward"):
        return None
    figure, axes = draw.blank("Reward and predicted value", "mean over the step's rollouts", _xlabel(runs))
    is_predicted = _has(runs, "poise/prediction_mean")
    for index, run in enumerate(runs):
        first = index == 0 and is_predicted
        draw.curve(axes, *_xy(runs, run, "reward"), index, "reward" if first else None)
        predicted = {"linestyle": (0, (4, 2)), "color": draw.colour(index if len(runs) > 1 else 1)}
        draw.curve(axes, *_xy(runs, run, "poise/prediction_mean"), index, "predicted" if first else None, **predicted)
        if run.is_weighted:
            # Such a probe predicts the reward weighted with squared scores, and is to be compared with that.
            target = {"linestyle": ":", "color": draw.colour(index)}
            draw.curve(
                axes, *_xy(runs, run, "poise/target_mean"), index, "weighted reward" if first else None, **target
            )
    draw.legend(axes, is_predicted)
    return figure


def variance(runs: Sequence[RunData]) -> Figure | None:
    """What the baseline leaves of the reward's variance, and of the gradient's within prompts (an estimate)."""
    if not _has(runs, "poise/variance_ratio"):
        return None
    names = {"poise/variance_ratio": "Var(A) / Var(r)", "poise/relative_to_leave_one_out": "Σ w A² / leave-one-out's"}
    figure, both = draw.pair("Variance that the baseline leaves", tuple(names.values()), _xlabel(runs))
    for axes, name, other in zip(both, names, ("no baseline: 1", "leave-one-out: 1"), strict=True):
        axes.axhline(1, color=SOFT, lw=1, ls=":", label=other)
        _curves(axes, runs, name)
        draw.legend(axes, True)
        draw.from_zero(axes)
    return figure


def mixture(runs: Sequence[RunData]) -> Figure | None:
    """What a self-choosing baseline was made of, step by step; of a single run."""
    if len(runs) > 1 or not _has(runs, "poise/mix_probe"):
        return None
    figure, axes = draw.blank("What the baseline was made of", "weight", _xlabel(runs))
    shares = [draw.thin(*_xy(runs, runs[0], f"poise/mix_{name}")) for name in MIXED]
    colours = [draw.colour(index) for index in range(len(shares))]
    axes.stackplot(shares[0][0], *(values for _, values in shares), labels=MIXED.values(), colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.margins(x=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def calibration(runs: Sequence[RunData]) -> Figure | None:
    """Reliability: mean reward, weighted as in the fit, of rollouts whose baseline was about the same."""
    found = [(index, *run.crossed()) for index, run in enumerate(runs)]
    found = [one for one in found if len(one[1]) >= _BINS]
    if not found:
        return None
    figure = Figure(figsize=PANEL, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    everything = np.concatenate([np.concatenate([baselines, rewards]) for _, baselines, rewards, _ in found])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color=SOFT, lw=1, ls=":", label="calibrated")
    for index, baselines, rewards, weights in found:
        predicted, observed, error = reliability(baselines, rewards, weights)
        style = draw.look(index)
        axes.errorbar(predicted, observed, 1.96 * error, marker="o", capsize=3, lw=1.5, ms=4, **style)
        counts.hist(baselines, bins=30, color=draw.colour(index), alpha=0.6)
    axes.set_title("Calibration of the baseline")
    axes.set_ylabel("mean reward, weighted" if any(run.is_weighted for run in runs) else "mean reward")
    counts.set_ylabel("rollouts")
    counts.set_xlabel("baseline, predicted without the rollout itself")
    draw.legend(axes, True)
    return figure


def reliability(
    baselines: np.ndarray, rewards: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean baseline, mean reward and its standard error in equally filled bins of the baseline."""
    order = np.argsort(baselines, kind="stable")
    found = []
    for group in np.array_split(order, _BINS):
        total = weights[group].sum()
        share = weights[group] / total if total > 0 else np.full(len(group), 1 / len(group))
        mean = share @ rewards[group]
        error = np.sqrt(share**2 @ (rewards[group] - mean) ** 2)
        found.append((share @ baselines[group], mean, error))
    predicted, observed, error = np.array(found).T
    return predicted, observed, error


def error(runs: Sequence[RunData]) -> Figure | None:
    """Mean absolute error and correlation of the predictions with their online target."""
    return _two(
        runs,
        ("poise/mae", "poise/pearson"),
        "Predictions against the step's own rewards",
        ("mean abs. error", "Pearson r"),
    )


def tracking(runs: Sequence[RunData]) -> Figure | None:
    """The same against the mean of fresh rollouts, where the run was tracked; dotted: what such a mean allows."""
    figure = _two(
        runs,
        ("poise/track_mae", "poise/track_pearson"),
        "Baselines against fresh rollouts of the policy",
        ("mean abs. error", "Pearson r"),
        marker="o",
    )
    if figure is not None:
        for index, run in enumerate(runs):
            label = "the true pass rates'" if index == 0 else None
            draw.curve(figure.axes[1], *_xy(runs, run, "poise/track_ceiling"), index, label, linestyle=":")
        draw.legend(figure.axes[1], True)
        draw.from_zero(figure.axes[1])
    return figure


def grad_norm(runs: Sequence[RunData]) -> Figure | None:
    """Norm of the policy gradient before clipping."""
    if not _has(runs, "grad_norm"):
        return None
    figure, axes = draw.blank("Gradient norm", "L2, before clipping", _xlabel(runs))
    _curves(axes, runs, "grad_norm")
    draw.from_zero(axes)
    return figure


def policy(runs: Sequence[RunData]) -> Figure | None:
    """Entropy and length: the two curves that show a collapsing policy first."""
    names = ("entropy", "completions/mean_length")
    return _two(runs, names, "The policy", ("entropy, nats/token", "tokens/completion"))


def seconds(runs: Sequence[RunData]) -> Figure | None:
    """Wall time of each step."""
    if not _has(runs, "step_seconds"):
        return None
    figure, axes = draw.blank("Time per step", "seconds", _xlabel(runs))
    _curves(axes, runs, "step_seconds")
    draw.from_zero(axes)
    return figure


def _two(
    runs: Sequence[RunData], names: tuple[str, str], title: str, ylabels: tuple[str, str], **style: object
) -> Figure | None:
    if not _has(runs, names[0]):
        return None
    figure, both = draw.pair(title, ylabels, _xlabel(runs))
    for axes, name in zip(both, names, strict=True):
        _curves(axes, runs, name, **style)
        draw.from_zero(axes)
    return figure


def _curves(axes: Axes, runs: Sequence[RunData], name: str, **style: object) -> None:
    for index, run in enumerate(runs):
        draw.curve(axes, *_xy(runs, run, name), index, **style)


def _has(runs: Sequence[RunData], name: str) -> bool:
    return any(run.series(name)[0].size for run in runs)


def _xlabel(runs: Sequence[RunData]) -> str:
    return "step" if _is_by_step(runs) else "rollouts sampled"


def _is_by_step(runs: Sequence[RunData]) -> bool:
    return len({run.rollouts_per_step for run in runs}) < 2


def _xy(runs: Sequence[RunData], run: RunData, name: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = run.series(name)
    return _places(runs, run, steps), values


def _places(runs: Sequence[RunData], run: RunData, steps: np.ndarray) -> np.ndarray:
    return steps if _is_by_step(runs) else run.rollouts_at(steps)
