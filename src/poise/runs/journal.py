"""Files that survive a kill at any moment: JSONL that is appended and flushed, text that is replaced in one go."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from poise.errors import ConfigError

Record = dict[str, Any]


class Journal:
    """One JSON object a line, in the order things happened. A line torn by a kill is ignored when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record; when this returns, the operating system has it."""
        line = json.dumps(finite(record), ensure_ascii=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def read(self) -> list[Record]:
        """Every whole record. A line torn by a kill can only be the last one; it is left out.

        Raises:
            ConfigError: another line is no record: the file was damaged by something else.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8", errors="replace").removesuffix("\n").split("\n")
        records: list[Record] = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise ConfigError(
                        f"line {number} of {self.path} is damaged ({error}); mend it or take it out"
                    ) from error
        return records

    def keep(self, wanted: Callable[[Record], bool]) -> int:
        """Drops the records that are not wanted, and a torn line; returns how many records were dropped."""
        records = self.read()
        kept = [record for record in records if wanted(record)]
        replace_text(self.path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        return len(records) - len(kept)


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def replace_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `replace_json` wrote.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); mend it, or give another folder") from error


def finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON cannot say, and plain numbers for numpy's and torch's."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if not isinstance(value, str | bool | int | float | None) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
