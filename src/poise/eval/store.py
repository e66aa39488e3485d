"""Samples on disk: one JSON line a finished prompt, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poise.errors import StateMismatchError
from poise.eval.sampling import Completion


def prompt_key(example: Mapping[str, Any]) -> str:
    """A hash of a row's prompt and answer, by which the same prompt is found again in another run."""
    text = json.dumps([example["prompt"], example.get("answer", "")], ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class SampleStore:
    """An append-only file of finished prompts, opened under the settings that made them.

    Args:
        path: the JSONL file; None keeps samples in memory only.
        settings: everything that changes the samples; a file written under other settings is refused.

    Raises:
        StateMismatchError: the file was written under other settings, which are named.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(settings, default=str))
        self.completions: dict[int, list[Completion]] = {}
        if self.path is not None and self.path.is_file() and self.path.stat().st_size > 0:
            self._read(self.path)
        elif self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"settings": self.settings})

    @property
    def done(self) -> frozenset[int]:
        return frozenset(self.completions)

    def add(self, index: int, completions: list[Completion]) -> None:
        self.completions[index] = completions
        self._append({"index": index, "completions": [asdict(completion) for completion in completions]})

    def _append(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _read(self, path: Path) -> None:
        try:
            self._take(path)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, StateMismatchError):
                raise
            raise StateMismatchError(
                f"{path} holds no samples that can be read ({error}); evaluate into another folder, or delete the file"
            ) from error

    def _take(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        whole, rest = lines[:-1], lines[-1]
        if rest:
            # Killed in the middle of a line: that prompt is not finished.
            path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        if not whole:
            self._append({"settings": self.settings})
            return
        self._check(json.loads(whole[0])["settings"], path)
        for line in whole[1:]:
            record = json.loads(line)
            self.completions[record["index"]] = [Completion(**fields) for fields in record["completions"]]

    def _check(self, written: Mapping[str, Any], path: Path) -> None:
        keys = sorted({*written, *self.settings})
        other = [
            f"{key} was {written.get(key)!r} and is {self.settings.get(key)!r}"
            for key in keys
            if written.get(key) != self.settings.get(key)
        ]
        if other:
            raise StateMismatchError(
                f"{path} holds samples made under other settings ({'; '.join(other)}); "
                "evaluate into another folder, or delete the file"
            )
