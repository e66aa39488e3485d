"""Lab studies on the page: folders that hold study.json, with its tables, figures/*.png, and data beside them.

study.json: {"kind": "value", "title": ..., "reading": [sentences], "config": {...}, "versions": {...}, "figures":
[names; all if there is no such key], and the tables: "summary" a list of rows, or "tables" {name: rows}}. A row is one
JSON object; all keys but the tables are optional.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.errors import ConfigError

FILE = "study.json"
_DEPTH = ("", "*/", "*/*/")  # how far below a given folder studies are looked for
# What a page shows of a study; the rest is in its folder.
_ROWS, _COLUMNS, _FIGURES = 60, 12, 12
_WIDTH, _COLOURS = 1000, 64  # of an embedded figure, in pixels
_TITLES = {"value": "Value study", "variance": "Variance study", "compare": "Comparison of methods"}


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: cut to what a page bears; `numeric` columns hold numbers, and are set right."""

    name: str
    columns: list[str]
    rows: list[dict[str, Any]]
    numeric: set[str]


@dataclass
class Study:
    """One study as the page shows it.

    Args:
        figures: name -> data URI.
        notes: what was left out or could not be read.
    """

    path: Path
    kind: str
    title: str
    reading: list[str]
    config: dict[str, Any]
    versions: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_studies(folders: Sequence[Path]) -> list[Study]:
    """Every study in these folders, or up to two levels below them, each once.

    Raises:
        ConfigError: a study.json cannot be read.
    """
    found = {file.resolve(): file for folder in folders for depth in _DEPTH for file in folder.glob(f"{depth}{FILE}")}
    return [read_study(file.parent) for _, file in sorted(found.items())]


def read_study(folder: Path) -> Study:
    """A study from its folder.

    Raises:
        ConfigError: its study.json is no JSON object, or a key in it is of another kind, such as a table without rows.
    """
    try:
        record = json.loads((folder / FILE).read_text("utf-8"))
        tables = {"": record["summary"]} if "summary" in record else {}
        tables |= record.get("tables") or {}
        rows_of = {name: list(_rows(table)) for name, table in tables.items()}
        kind = str(record.get("kind", "study"))
        study = Study(
            path=folder,
            kind=kind,
            title=str(record.get("title") or _TITLES.get(kind, f"Study: {kind}")),
            reading=_sentences(record.get("reading")),
            config=dict(record.get("config") or {}),
            versions=dict(record.get("versions") or {}),
        )
        files = sorted((folder / "figures").glob("*.png"))
        files = [file for file in files if "figures" not in record or file.stem in record["figures"]]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / FILE} is not the record of a study: {error}") from error
    study.tables = [_table(name, rows, study.notes) for name, rows in rows_of.items()]
    _add_figures(study, files)
    return study


def _rows(table: Any) -> list[dict[str, Any]]:
    """A table given as a list of rows, or as one row by name."""
    if isinstance(table, dict):
        table = [
            {"": name, **value} if isinstance(value, dict) else {"": name, "value": value}
            for name, value in table.items()
        ]
    return [dict(row) for row in table]


def _sentences(reading: Any) -> list[str]:
    return [reading] if isinstance(reading, str) else [str(sentence) for sentence in reading or []]


def _table(name: str, rows: list[dict[str, Any]], notes: list[str]) -> Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    which = f"table {name!r}" if name else "the table"
    if len(rows) > _ROWS or len(columns) > _COLUMNS:
        notes.append(f"{which} has {len(rows)} rows of {len(columns)} columns; shown are the first of each")
    numeric = {column for row in rows for column in row if isinstance(row[column], int | float)}
    return Table(name, columns[:_COLUMNS], rows[:_ROWS], numeric)


def _add_figures(study: Study, files: list[Path]) -> None:
    if len(files) > _FIGURES:
        study.notes.append(f"{len(files)} figures in {study.path / 'figures'}; shown are the first {_FIGURES}")
    for file in files[:_FIGURES]:
        try:
            study.figures[file.stem] = small_png(file)
        except (OSError, ValueError) as error:
            study.notes.append(f"{file.name} cannot be read: {error}")


def small_png(file: Path) -> str:
    """A figure as a data URI, scaled down and reduced to few colours: a tenth of the file, and no worse to look at."""
    from PIL import Image

    with Image.open(file) as image:
        image = image.convert("RGB")
        if image.width > _WIDTH:
            image = image.resize((_WIDTH, round(image.height * _WIDTH / image.width)), Image.Resampling.LANCZOS)
        packed = io.BytesIO()
        image.quantize(_COLOURS).save(packed, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"
