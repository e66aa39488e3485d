"""Writes plots, summary and report into run folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from poise.errors import ConfigError
from poise.report.data import RunData, read_run
from poise.report.figures import all_figures
from poise.report.page import CAPTIONS, render
from poise.report.studies import FILE, find_studies
from poise.report.summary import summarise
from poise.report.svg import inline
from poise.runs.folder import RunFolder
from poise.runs.journal import replace_json, replace_text

# Dots per inch: 5.6 inches wide at 200 is 1120 pixels, sharp on a page and on a phone.
_DPI = 200


def write_report(paths: Sequence[Path], out: Path | None = None) -> list[str]:
    """Plots and summary.json in each run folder, and one HTML file for all runs and lab studies.

    Args:
        paths: runs, studies, or folders that hold studies; several runs are drawn into the same plots.
        out: where the HTML file goes, or the folder for it; `report.html` in the first run's or study's folder if None.

    Returns:
        Sentences to show: the summary of each run, which studies there are, and where the report is.

    Raises:
        ConfigError: a folder holds neither a run nor a study, or a study that cannot be read.
    """
    folders = [RunFolder(path) for path in {path.resolve(): path for path in paths}.values()]
    studies = find_studies(paths)
    for folder in folders:
        if not folder.exists and not any(study.path.is_relative_to(folder.path) for study in studies):
            raise ConfigError(
                f"{folder.path} holds no run (no config.toml) and no study (no {FILE}); give the folder that "
                "`poise train --out` or `poise lab ... --out` named"
            )
    runs = [read_run(folder) for folder in folders if folder.exists]
    _tell_apart(runs)
    summaries = [summarise(run) for run in runs]
    for run, summary in zip(runs, summaries, strict=True):
        replace_json(run.folder.summary, {**summary, "versions": run.record.get("versions", {})})
        save_figures(all_figures([run]), run.folder.plots)
    figures = {name: inline(figure, name, CAPTIONS[name]) for name, figure in all_figures(runs).items()}
    out = folders[0].report if out is None else out / "report.html" if out.is_dir() else out
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, render(runs, summaries, figures, studies))
    found = [f"{study.title} in {study.path}" for study in studies]
    return [*(summary["sentence"] for summary in summaries), *found, f"report: {out}"]


def _tell_apart(runs: Sequence[RunData]) -> None:
    """Runs whose folders have one name, such as those of a comparison's methods, are called by their paths."""
    shared = Counter(run.name for run in runs)
    for run in runs:
        run.name = str(run.folder.path) if shared[run.name] > 1 else run.name


def save_figures(figures: dict[str, Figure], folder: Path) -> None:
    """Each figure as a PNG, replaced in one go."""
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        partial = folder / f".{name}.partial"
        figure.savefig(partial, format="png", dpi=_DPI)
        os.replace(partial, folder / f"{name}.png")
