"""The one form of a dataset row that the whole flow reads: prompt, answer, domain, info.

Every task ends here, so that rewards, training and evaluation need not know where prompts come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from poise.errors import ConfigError

COLUMNS = ("prompt", "answer", "domain", "info")
Message = dict[str, str]
Prompt = str | list[Message]
# Where `info` keeps the bare problem; no column of a user's own gets here.
_QUESTION = "_question"


def row(
    prompt: Prompt,
    answer: str,
    domain: str = "math",
    info: Mapping[str, Any] | None = None,
    question: str | None = None,
) -> dict[str, Any]:
    """One row in the shared form; `info` is stored as JSON, with the bare problem where the prompt says more."""
    info = {key: value for key, value in (info or {}).items() if key != _QUESTION}
    info |= {} if question is None else {_QUESTION: question}
    return {
        "prompt": prompt,
        "answer": answer,
        "domain": domain,
        "info": json.dumps(info, ensure_ascii=False, sort_keys=True, default=str),
    }


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """A Dataset of rows in the shared form, with fixed column types.

    Raises:
        ConfigError: there is no row, or prompts mix plain text and messages.
    """
    rows = list(rows)
    if not rows:
        raise ConfigError("no row is left: the file is empty, or every row was filtered out")
    plain = {isinstance(each["prompt"], str) for each in rows}
    if len(plain) > 1:
        raise ConfigError("some prompts are text and some are lists of messages; a task needs one form")
    prompt = Value("string") if plain == {True} else List({"role": Value("string"), "content": Value("string")})
    features = Features(
        {"prompt": prompt, "answer": Value("string"), "domain": Value("string"), "info": Value("string")}
    )
    return Dataset.from_list([{key: each[key] for key in COLUMNS} for each in rows], features=features)


def draw(dataset: Dataset, size: int | None, seed: int) -> Dataset:
    """`size` rows drawn without replacement, the same ones for the same seed; all rows in their order if None.

    Raises:
        ConfigError: fewer rows exist than are asked for, or the seed is below 0.
    """
    if size is None:
        return dataset
    if seed < 0:
        raise ConfigError(f"the seed that draws rows must be at least 0, got {seed}")
    if not 0 < size <= len(dataset):
        raise ConfigError(
            f"asked for {size} rows, and the task has {len(dataset)}; ask for fewer, or leave the size out"
        )
    return dataset.select(np.random.default_rng(seed).permutation(len(dataset))[:size].tolist())


def prompt_text(prompt: Prompt) -> str:
    """What a prompt says, as one text: messages are joined by blank lines.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}])
    'Be brief.\\n\\n2 + 2?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(message.get("content") or "") for message in prompt)


def question_text(example: Mapping[str, Any]) -> str:
    """The bare problem of a row, without the template around it, where the task kept it; else the whole prompt."""
    kept = json.loads(example.get("info") or "{}").get(_QUESTION)
    return kept if isinstance(kept, str) else prompt_text(example["prompt"])
