"""Reading raw records, before any task gives them the shared form: a local file, or one split of a hub dataset."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from poise.errors import ConfigError

KINDS = (".jsonl", ".json", ".parquet", ".csv")
_ENCODING = "utf-8-sig"  # spreadsheets begin a file with a mark of its byte order


def read_file(path: str | Path) -> list[dict[str, Any]]:
    """The records of a .jsonl, .json (a list), .parquet or .csv file.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    if "://" in str(path):
        raise ConfigError(f"{path} is an address; download it, or name a hub dataset as owner/name")
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if path.suffix not in KINDS:
        raise ConfigError(f"{path} is of no known kind; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        records = _read(path)
    except ConfigError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are among them
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ConfigError(f"record {number} of {path} is {record!r:.60}, not an object with named fields")
    return records


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="", encoding=_ENCODING) as file:
            reader = csv.DictReader(file)
            records = list(reader)
        names = [name for name in reader.fieldnames or () if name]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{path} has two columns {twice!r}; rename or drop one of them")
        for number, record in enumerate(records, start=1):
            if None in record:
                raise ConfigError(
                    f"record {number} of {path} has more values than the first line has names: {record[None]!r:.60}; "
                    "put values that hold commas between double quotes"
                )
        return records
    return _read_json(path)


def from_hub(repository: str, config: str | None, split: str, revision: str | None = None) -> Dataset:
    """One split of a hub dataset.

    Raises:
        ConfigError: it cannot be loaded; the hub's own words are quoted.
    """
    try:
        return load_dataset(repository, config, split=split, revision=revision)
    except Exception as error:
        named = f"{repository} ({config})" if config else repository
        raise ConfigError(
            f"cannot load the split {split!r} of {named} from the hub: {type(error).__name__}: {error}; "
            "without a network, download its files and give their place as the option 'path'"
        ) from error


def as_answer(value: Any) -> str:
    """A ground truth as text: whole floats lose their `.0`, structures become JSON, what is missing becomes empty.

    >>> as_answer(27.0), as_answer(3.5), as_answer(["a"]), as_answer(None)
    ('27', '3.5', '["a"]', '')
    """
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def is_text(value: Any) -> bool:
    """Whether `as_answer` says a value as it is: it is a text, or missing."""
    return isinstance(value, str) or _is_missing(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))  # tables mark what is missing by NaN


def _read_json(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding=_ENCODING)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return json.loads(text)
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                known = "; a .json file holds a list of records, or one record a line" if path.suffix == ".json" else ""
                raise ConfigError(f"line {number} of {path} is not JSON: {error}{known}") from error
    return records
