"""Writes plots, summary and report into run folders."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from poise.report.data import read_run
from poise.report.figures import all_figures
from poise.report.page import render
from poise.report.summary import summarise
from poise.runs.folder import RunFolder
from poise.runs.journal import replace_json, replace_text

# Dots per inch: 7 inches wide at 160 is 1120 pixels, sharp on a page and on a phone.
_DPI = 160


def write_report(folders: Sequence[RunFolder], out: Path | None = None) -> list[str]:
    """Plots and summary.json in each folder, and one HTML file for all of them.

    Args:
        folders: runs to report on; several are drawn into the same plots.
        out: where the HTML file goes; `report.html` in the first folder if None.

    Returns:
        Sentences to show: the summary of each run, and where the report is.

    Raises:
        ConfigError: a folder holds no run.
    """
    runs = [read_run(folder) for folder in folders]
    summaries = [summarise(run) for run in runs]
    for run, summary in zip(runs, summaries, strict=True):
        replace_json(run.folder.summary, {**summary, "versions": run.record.get("versions", {})})
        save_figures(all_figures([run]), run.folder.plots)
    figures = {name: as_data_uri(figure) for name, figure in all_figures(runs).items()}
    out = out or folders[0].report
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, render(runs, summaries, figures))
    return [*(summary["sentence"] for summary in summaries), f"report: {out}"]


def save_figures(figures: dict[str, Figure], folder: Path) -> None:
    """Each figure as a PNG, replaced in one go."""
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        partial = folder / f".{name}.partial"
        figure.savefig(partial, format="png", dpi=_DPI)
        os.replace(partial, folder / f"{name}.png")


def as_data_uri(figure: Figure) -> str:
    """A figure as an SVG that can stand in an HTML file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"
