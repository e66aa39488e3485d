"""A named source: published data, on the hub or in local files, in the shared form and its published template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from poise.errors import ConfigError
from poise.tasks.files import from_hub, read_file
from poise.tasks.registry import Task
from poise.tasks.rows import draw, row, to_dataset
from poise.tasks.select import contamination, deduplicate, split_by_hash
from poise.tasks.templates import prompt_of

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a source's converter makes of one raw record.

    Args:
        question: the bare problem.
        answer: the ground truth in the form that the source's reward wants.
        domain: domain of the row; the source's own if None.
        info: everything else worth keeping.
    """

    question: str
    answer: str
    domain: str | None = None
    info: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a named task comes from and how its records are read.

    Args:
        name: the task's name.
        convert: one raw record to a Problem, to several, or to None to leave it out.
        reward: name of the reward that verifies it.
        domain: domain of its rows.
        template: published template (see `templates`).
        hub: (repository, config) on the hub; None if it has no known home there.
        splits: hub split of "train" and "test"; a split that is missing is made by hash from the other one.
        files: patterns of local file names, by split ("train" and "test"); under "all" if there is one file for both.
        near_copies: its problems are often copies of each other but for a word, so training rows that share a run of
            13 words with a held-out row are dropped.
        evaluation_only: all rows are "test", and asking for "train" is an error.
        about: one line for listings.
    """

    name: str
    convert: Callable[[Record], Problem | list[Problem] | None]
    reward: str = "math"
    domain: str = "math"
    template: str = "dapo"
    hub: tuple[str, str | None] | None = None
    splits: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, ...]] | None = None
    near_copies: bool = False
    evaluation_only: bool = False
    about: str = ""

    def task(self) -> Task:
        """The task that `load_task` finds under this name."""

        def load(
            split: str,
            size: int | None,
            seed: int,
            path: str | None = None,
            template: str = self.template,
            chat: bool = True,
            system: str | None = None,
            held_out: float = 0.1,
            revision: str | None = None,
        ) -> Dataset:
            if self.evaluation_only and split == "train":
                raise ConfigError(f"{self.name!r} is for evaluation only; ask for the split 'test'")
            records, own_split = self._records(split, path, revision)
            rows = deduplicate(self._rows(records, template, chat, system))
            if not own_split:
                rows = self._split(rows, split, held_out)
            return draw(to_dataset(rows), size, seed)

        return Task(self.name, load, self.reward, self.about)

    def _split(self, rows: list[Mapping[str, Any]], split: str, share: float) -> list[Mapping[str, Any]]:
        chosen = split_by_hash(rows, split, share)
        if split == "test" or not self.near_copies:
            return chosen
        copies = contamination(chosen, [split_by_hash(rows, "test", share)]).rows
        return [row for index, row in enumerate(chosen) if index not in copies]

    def _records(self, split: str, path: str | None, revision: str | None) -> tuple[Iterable[Record], bool]:
        """Raw records, and whether the source itself keeps this split apart."""
        if path is not None:
            return self._local(split, Path(path))
        if self.hub is None:
            raise ConfigError(f"{self.name!r} has no known home on the hub; give the place of its files as 'path'")
        splits = self.splits or {"train": "train"}
        own_split = self.evaluation_only or len(splits) == 2
        repository, config = self.hub
        return from_hub(repository, config, splits.get(split) or next(iter(splits.values())), revision), own_split

    def _local(self, split: str, path: Path) -> tuple[Iterable[Record], bool]:
        patterns = self.files or {"all": (f"{self.name}*",)}
        if path.is_file():
            is_test = any(path.match(pattern) for pattern in patterns.get("test", ()))
            if is_test and split == "train":
                raise ConfigError(f"{path} is by its name the test split of {self.name!r}; train on its folder")
            return read_file(path), is_test or self.evaluation_only
        if not path.is_dir():
            raise ConfigError(f"the path of {self.name!r} is neither a file nor a folder: {path}")
        found = {
            key: sorted({file for pattern in wanted for file in path.glob(pattern) if file.is_file()})
            for key, wanted in patterns.items()
        }
        # A file for both splits is not read beside one of either split, which may hold its rows.
        key = "all" if "all" in found and not (found.get("train") or found.get("test")) else split
        if not found[key]:
            raise ConfigError(f"{path} holds no file of {self.name!r} (looked for {', '.join(patterns[key])})")
        return [record for file in found[key] for record in read_file(file)], key == split or self.evaluation_only

    def _rows(self, records: Iterable[Record], template: str, chat: bool, system: str | None) -> list[dict[str, Any]]:
        rows = []
        for number, record in enumerate(records, start=1):
            try:
                made = self.convert(record)
            except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                raise ConfigError(
                    f"record {number} does not have the schema of {self.name!r}: {type(error).__name__}: {error}; "
                    f"its fields are {', '.join(map(str, record))}"
                ) from error
            for problem in made if isinstance(made, list) else [made] if made is not None else []:
                info = {**(problem.info or {}), "source": self.name, "question": problem.question}
                prompt = prompt_of(problem.question, template, chat, system)
                rows.append(row(prompt, problem.answer, problem.domain or self.domain, info, problem.question))
        return rows
