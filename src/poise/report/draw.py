"""Lines and axes that the figures of runs share."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poise.report.style import COLOURS, PANEL

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # once the colours are used up
# Curves of long runs are thinned to about so many points; nobody sees more, and the page stays small.
MOST_POINTS = 300


def blank(title: str, ylabel: str, xlabel: str) -> tuple[Figure, Axes]:
    """A figure with one set of axes."""
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    label_x(axes, xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def pair(title: str, ylabels: tuple[str, str], xlabel: str) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure with two sets of axes, one above the other, that share x."""
    figure = Figure(figsize=PANEL, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.set_title(title)
    top.set_ylabel(ylabels[0])
    bottom.set_ylabel(ylabels[1])
    label_x(bottom, xlabel)
    return figure, (top, bottom)


def label_x(axes: Axes, xlabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def colour(index: int) -> str:
    """Colour of the index-th run."""
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> object:
    """Line style of the index-th run: solid until the colours are used up."""
    return _DASHES[index // len(COLOURS) % len(_DASHES)]


def look(index: int) -> dict[str, object]:
    """Both, as arguments of a line."""
    return {"color": colour(index), "linestyle": dashes(index)}


def curve(axes: Axes, x: np.ndarray, y: np.ndarray, index: int, label: str | None = None, **style: object) -> None:
    """The values faintly, and their running mean over a twentieth of the run boldly; short runs plainly."""
    style = look(index) | style
    width = len(y) // 20
    if width < 2:
        axes.plot(x, y, lw=1.6, label=label, **style)
        return
    axes.plot(*thin(x, y), lw=0.8, alpha=0.3, **style)
    axes.plot(*thin(x, running_mean(y, width)), lw=1.8, label=label, **style)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` values at each place; of fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(0, stops - width)
    return (sums[stops] - sums[starts]) / (stops - starts)


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means of neighbours, at the mean of their places."""
    if len(x) <= most:
        return x, y
    blocks = np.array_split(np.arange(len(x)), most)
    return np.array([x[block].mean() for block in blocks]), np.array([y[block].mean() for block in blocks])


def from_zero(axes: Axes) -> None:
    """Shows all of the values and zero, with room above the highest, however little the values differ."""
    low, high = min(0.0, axes.dataLim.y0), axes.dataLim.y1
    room = 0.12 * (high - low)
    if room > 0:
        axes.set_ylim(low - room if low < 0 else 0.0, high + room)


def legend(axes: Axes, is_needed: bool) -> None:
    axes.margins(y=0.12)
    if is_needed:
        axes.legend(fontsize="small")
