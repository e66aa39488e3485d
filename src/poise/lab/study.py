"""A study's folder: what a command found, as data, pictures and one fragment of HTML.

study.json          kind, sentences, tables, rows (every figure with its interval), config, versions, command
section.html        the same for a reader: one <section> that stands alone, for a page to include
figures/NAME.png    the pictures of the section
*.parquet           what the rows were computed from
rollouts/, ...      finished chunks, from which a killed study goes on; may be deleted afterwards
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from poise.report.write import save_figures
from poise.runs.journal import replace_json
from poise.runs.provenance import command_line, device, git_revision, versions

SCHEMA = 1


@dataclass(frozen=True)
class Shown:
    """A table for a reader: cells are text, the first column names the row. A page shows the first 60 rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass
class Study:
    """What a study found.

    Args:
        kind: "value", "variance" or "compare".
        title: one line.
        sentences: the plain reading, each with its numbers.
        tables: for a reader.
        figures: by name.
        rows: every figure with its interval, for a program.
        facts: single numbers that sentences and tables rest on.
    """

    kind: str
    title: str
    sentences: list[str]
    tables: list[Shown]
    figures: dict[str, Figure]
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def write_study(study: Study, folder: Path, settings: Any, seconds: float) -> None:
    """Writes study.json and figures/ into the folder, each in one go."""
    record = {
        "schema": SCHEMA,
        "kind": study.kind,
        "title": study.title,
        "reading": study.sentences,
        "facts": study.facts,
        "tables": {
            table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in study.tables
        },
        "figures": sorted(study.figures),
        "rows": study.rows,
        "config": asdict(settings),
        "command": command_line(),
        "versions": versions(),
        "git": git_revision(),
        "device": device(),
        "seconds_of_this_session": round(seconds, 1),
    }
    save_figures(study.figures, folder / "figures")
    replace_json(folder / "study.json", record)


def show(study: Study, folder: Path, console: Console) -> None:
    """Prints the first table, the reading, and where everything is."""
    for shown in study.tables[:1]:
        table = Table(title=shown.title, title_justify="left")
        for place, column in enumerate(shown.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)
    for sentence in study.sentences:
        console.print(sentence, highlight=False, markup=False)
    console.print(f"written to {folder}: study.json, figures/", highlight=False)


class Steps:
    """Progress of a study: a bar for each of its steps on a terminal, one line a step anywhere else."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Any]:
        """One step; yields a function that is called with what has been done since the last call."""
        task, began = self.progress.add_task(name, total=total), time.perf_counter()
        yield lambda done=1: self.progress.advance(task, done)
        self.progress.remove_task(task)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {total}, {time.perf_counter() - began:.1f} s", highlight=False)


def left_out(asked: int, known: int) -> list[str]:
    """Says how many held-out prompts a study lost to its reward, if any."""
    if known == asked:
        return []
    return [f"{asked - known} of {asked} held-out prompts were left out: the reward failed on a rollout of theirs."]


def number(estimate: Mapping[str, float], digits: int = 3) -> str:
    """A value with its interval."""
    kind = f"z.{digits}f"  # z: no "-0.000"
    return f"{estimate['mean']:{kind}} [{estimate['low']:{kind}}, {estimate['high']:{kind}}]"


def plain(text: str) -> str:
    """A user's text as matplotlib shows it unchanged: dollars are no mathematics, and legends skip no underscore."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def rows_where(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
