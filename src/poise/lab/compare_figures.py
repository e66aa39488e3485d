"""Pictures of a comparison: accuracy against each cost, areas with intervals, learning rates, step sizes.

A method has the same colour and dashes in every picture: those of its place among the titles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poise.lab.compare_curves import Curve
from poise.lab.compare_stats import Standing, areas_by_rate, grouped, mean_curve
from poise.lab.study import plain
from poise.report.draw import colour, curve, look
from poise.report.style import SIZE, STYLE

_COSTS = {
    "tokens": "tokens trained on",
    "wall_seconds": "wall time, s",
    "cpu_seconds": "processor time, s",
    "updates": "optimiser updates",
}
# More bands than these hide each other; the areas' intervals say the same.
_MOST_BANDS = 6
_MOVES = {"update_norm": "update norm", "grad_norm": "gradient norm", "kl_start": "KL from start", "entropy": "entropy"}


def figures(
    race: Sequence[Curve],
    tuning: Sequence[Curve],
    matched: Sequence[Curve],
    standings: Mapping[str, Sequence[Standing]],
    titles: Mapping[str, str],
) -> dict[str, Figure]:
    """Every figure that there are runs for, by name."""
    titles = {name: plain(title) for name, title in titles.items()}
    with mpl.rc_context(STYLE):
        drawn: dict[str, Figure] = {
            "accuracy": accuracy(race, titles, "Held-out accuracy, mean of the seeds"),
            "costs": costs(race, titles),
            "areas": areas(standings, titles),
            "steps": steps(race, titles),
            "accuracy_against_kl": against_kl(race, titles),
        }
        if tuning:
            drawn["learning_rates"] = learning_rates(tuning, titles)
        if matched:
            drawn["matched"] = accuracy(matched, titles, "Every update of one norm, mean of the seeds")
    return drawn


def accuracy(curves: Sequence[Curve], titles: Mapping[str, str], title: str) -> Figure:
    """Mean accuracy over seeds against rollouts; the band of a few methods is the range of their seeds."""
    figure, axes = _one(title, "rollouts sampled", "held-out accuracy")
    _label_x(axes, "rollouts sampled", 7)
    methods = grouped(curves)
    for name, runs in methods.items():
        _mean(axes, *mean_curve(runs, runs[0].run.budget), _look(name, titles), len(methods) <= _MOST_BANDS)
    return _with_legend(figure, axes)


def costs(curves: Sequence[Curve], titles: Mapping[str, str]) -> Figure:
    """The same against what it cost otherwise; each method up to what its cheapest seed has spent."""
    figure = _four("Held-out accuracy against what it cost, mean of the seeds")
    panels = figure.subplots(2, 2, sharey=True)
    for axes, (axis, label) in zip(panels.flat, _COSTS.items(), strict=True):
        for name, runs in grouped(curves).items():
            end = min(float(run.costs[axis][-1]) for run in runs)
            _mean(axes, *mean_curve(runs, end, axis), _look(name, titles), False)
        _label_x(axes, label)
    panels[0, 0].set_ylabel("held-out accuracy")
    panels[1, 0].set_ylabel("held-out accuracy")
    return _with_legend(figure, panels[0, 0])


def areas(standings: Mapping[str, Sequence[Standing]], titles: Mapping[str, str]) -> Figure:
    """Mean accuracy over the budget with its interval, one row a method, the best on top, one mark an arm."""
    first = sorted(next(iter(standings.values())), key=lambda standing: -standing.area.mean)
    names = [standing.method for standing in first]
    figure = Figure(figsize=(SIZE[0], 1.2 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for arm, (label, found) in enumerate(standings.items()):
        for standing in found:
            place = names.index(standing.method) + 0.18 * (arm - (len(standings) - 1) / 2)
            spread = [[standing.area.mean - standing.area.low], [standing.area.high - standing.area.mean]]
            named = {"label": label} if standing is found[0] else {}
            axes.errorbar(standing.area.mean, place, xerr=spread, fmt="os"[arm], color=colour(arm), capsize=3, **named)
    axes.set_yticks(range(len(names)), [titles[name] for name in names])
    axes.invert_yaxis()
    figure.suptitle("Mean accuracy over the budget (95% over seeds)", weight="bold", fontsize=11)
    axes.set_xlabel("area under accuracy against rollouts / budget")
    return _with_legend(figure, axes) if len(standings) > 1 else figure


def learning_rates(tuning: Sequence[Curve], titles: Mapping[str, str]) -> Figure:
    """Area against learning rate for every method: how much the choice matters to it."""
    figure, axes = _one("Sensitivity to the learning rate (tuning seeds)", "learning rate", "mean accuracy over budget")
    for name, found in areas_by_rate(tuning).items():
        rates = sorted(found)
        axes.plot(rates, [np.mean(found[rate]) for rate in rates], marker="o", **_look(name, titles))
    axes.set_xscale("log")
    tried = sorted({run.run.learning_rate for run in tuning})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.minorticks_off()
    return _with_legend(figure, axes)


def steps(curves: Sequence[Curve], titles: Mapping[str, str]) -> Figure:
    """How far each method moves: norms of updates and gradients, KL from the start, entropy."""
    figure = _four("How far the policies move, mean of the seeds")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (name, label) in zip(panels.flat, _MOVES.items(), strict=True):
        for method, runs in grouped(curves).items():
            curve(axes, *_mean_move(runs, name), _place(method, titles), titles[method])
        axes.set_ylabel(label)
    for axes in panels[1]:
        _label_x(axes, "rollouts sampled")
    return _with_legend(figure, panels[0, 0])


def against_kl(curves: Sequence[Curve], titles: Mapping[str, str]) -> Figure:
    """Accuracy against KL from the start: methods on one line differ in how fast they go, not in where."""
    figure, axes = _one(
        "Accuracy for the distance gone, mean of the seeds", "KL from the starting policy, nats per token", "accuracy"
    )
    for name, runs in grouped(curves).items():
        places, gone = _mean_move(runs, "kl_start")
        if not places.size:
            continue
        reached = np.mean([np.interp(places, run.costs["rollouts"], run.accuracy) for run in runs], axis=0)
        start = np.mean([run.accuracy[0] for run in runs])  # every run begins at distance zero
        axes.plot(np.append(0.0, gone), np.append(start, reached), marker="o", ms=3, lw=1.8, **_look(name, titles))
    return _with_legend(figure, axes)


def _mean_move(runs: Sequence[Curve], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds, at the places of the seed that has fewest."""
    known = [run.moves[name] for run in runs if run.moves[name][0].size]
    if not known:
        return np.empty(0), np.empty(0)
    places = min((places for places, _ in known), key=len)
    return places, np.mean([np.interp(places, *pair) for pair in known], axis=0)


def _mean(axes: Axes, places_X: np.ndarray, accuracy_SX: np.ndarray, style: Mapping[str, Any], has_band: bool) -> None:
    axes.plot(places_X, accuracy_SX.mean(0), lw=1.8, **style)
    if has_band:
        axes.fill_between(places_X, accuracy_SX.min(0), accuracy_SX.max(0), color=style["color"], alpha=0.12, lw=0)


def _look(name: str, titles: Mapping[str, str]) -> dict[str, Any]:
    """Colour, dashes and label of a method."""
    return look(_place(name, titles)) | {"label": titles[name]}


def _place(name: str, titles: Mapping[str, str]) -> int:
    return list(titles).index(name)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """One legend for all panels, below them: a dozen methods would cover the curves."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize="small", handlelength=3
    )
    return figure


def _label_x(axes: Axes, label: str, ticks: int = 4) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(ticks))


def _four(title: str) -> Figure:
    """A square figure for four panels."""
    figure = Figure(figsize=(SIZE[0], SIZE[0]), layout="constrained")
    figure.suptitle(title, weight="bold", fontsize=11)
    return figure


def _one(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes
