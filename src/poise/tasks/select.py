"""Which rows may be used for what: no duplicates, no overlong prompts, no prompt on both sides, no evaluation leak.

These are pure functions on lists or Datasets, applied between a source and the shared form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from poise.errors import ConfigError
from poise.tasks.rows import Prompt, question_text
from poise.tasks.templates import filled_chat

Rows = Iterable[Mapping[str, Any]]
_WORD = re.compile(r"\w+")
# What tells two problems apart: numbers with their points, words, and any sign that is not prose punctuation.
_TELLING = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|[^\w\s.,;:?!'\"`$“”‘’…]")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation: what two copies of a problem have in common.

    >>> words("Sara 's dog, aged 3 .")
    ['sara', 's', 'dog', 'aged', '3']
    """
    return _WORD.findall(text.casefold())


def fingerprint(text: str) -> int:
    """A 64-bit hash of a text's words; equal for copies that differ in case, spacing or punctuation only."""
    return int.from_bytes(hashlib.blake2b(" ".join(words(text)).encode(), digest_size=8).digest(), "big")


def held_out(text: str, share: float) -> bool:
    """Whether a problem belongs to the held-out split; the same on every machine, whatever else is in the data.

    Args:
        text: the bare problem.
        share: fraction of all problems to hold out, in [0, 1].
    """
    return fingerprint(text) < share * 2**64


def split_by_hash(rows: Sequence[Mapping[str, Any]], split: str, share: float) -> list[Mapping[str, Any]]:
    """The rows of one split ("train" or "test") when a source has only one; `share` of the problems are held out."""
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ConfigError(f"the held-out share must be a number between 0 and 1, got {share!r}")
    return [row for row in rows if held_out(question_text(row), share) == (split == "test")]


def deduplicate(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose problem has not been seen before, in order; case, spacing and punctuation make no difference.

    Signs do: `3 + 4` and `3 - 4` have the same words and are two problems.
    """
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(_TELLING.findall(question_text(row).casefold())), row)
    return list(first.values())


def prompt_tokens(tokenizer: Any, prompt: Prompt) -> int:
    """Length of a prompt in tokens as the policy will see it, chat template included."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer(filled_chat(tokenizer, prompt), add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Contamination:
    """Which training rows repeat an evaluation problem.

    Args:
        exact: indices of training rows whose words are those of an evaluation problem.
        overlapping: indices of the other rows that share a run of words with one.
        checked: number of training rows looked at.
    """

    exact: tuple[int, ...]
    overlapping: tuple[int, ...]
    checked: int

    @property
    def rows(self) -> set[int]:
        return {*self.exact, *self.overlapping}


def contamination(train: Rows, evaluation: Iterable[Rows], run: int = 13) -> Contamination:
    """Compares the problems of a training set with those of evaluation sets.

    Args:
        train, evaluation: Datasets or lists of rows in the shared form; templates are left out of the comparison.
        run: length of a shared run of words that counts as overlap (13, as in Brown et al. 2020, appendix C). An
            evaluation problem shorter than that is compared as a whole only.
    """
    problems = [question_text(row) for dataset in evaluation for row in dataset]
    copies = {fingerprint(problem) for problem in problems}
    runs = {gram for problem in problems for gram in _runs(problem, run)}
    exact, overlapping, index = [], [], -1
    for index, row in enumerate(train):
        problem = question_text(row)
        if fingerprint(problem) in copies:
            exact.append(index)
        elif not runs.isdisjoint(_runs(problem, run)):
            overlapping.append(index)
    return Contamination(tuple(exact), tuple(overlapping), checked=index + 1)


def without(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    """The dataset without the rows of these indices."""
    dropped = set(rows)
    return dataset.select([index for index in range(len(dataset)) if index not in dropped])


def _runs(text: str, length: int) -> Iterable[tuple[str, ...]]:
    said = words(text)
    return (tuple(said[start : start + length]) for start in range(len(said) - length + 1))
