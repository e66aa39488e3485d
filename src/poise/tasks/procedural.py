"""Procedural prompts: any reasoning-gym dataset by name, and the families that the bundled model was made for.

This is where prompts enter the flow when no file or hub dataset is given. Entry i of a reasoning-gym dataset is drawn
from `Random(seed + i)`, so a stream of entries is a starting seed. The two splits never share a question, whatever
the seeds and sizes: their streams start in different halves of the seed space, and a hash of the question says which
split it belongs to, so each stream keeps only the questions of its own split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from datasets import Dataset

from poise.errors import ConfigError

Split = Literal["train", "test"]
Row = dict[str, Any]

PREFIX = "reasoning-gym:"
REWARD = "procedural"

# The bundled families, each a reasoning-gym dataset with the options that the bundled model was trained on.
FAMILIES: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 5, "min_digits": 1, "max_digits": 2},
    "spell_backward": {"min_word_len": 3, "max_word_len": 10},
}
# Families that take turns in one dataset, row by row.
MIXES: dict[str, tuple[str, ...]] = {"tiny": ("chain_sum", "spell_backward")}

DEFAULT_SIZE = {"train": 8192, "test": 512}

# One question in four is held out. Some reasoning-gym datasets seed numpy, which takes 32 bits: each split has
# _STREAMS streams of _STRIDE entries below that.
_HELD_OUT = 4
_STREAMS = 1 << 11
_STRIDE = 1 << 20
# Datasets whose size is not free: one makes all entries at once, one refuses to be larger. Their streams go on in a
# further dataset, with the seed where the last one ended.
_SIZES = {"acre": 128, "word_ladder": 20_000}
# A stream that yields nothing new for this many entries has run out of distinct questions.
_PATIENCE = 2000


def is_procedural(name: str) -> bool:
    """Whether `load_procedural` knows this task name (the dataset behind a "reasoning-gym:" name is not looked up)."""
    return name in FAMILIES or name in MIXES or name.startswith(PREFIX)


def load_procedural(
    name: str, split: Split = "train", size: int | None = None, seed: int = 0, **options: Any
) -> Dataset:
    """Rows of a procedural task: `prompt` (messages), `answer`, `domain` (dataset name), `info` (the entry as JSON).

    Args:
        name: "chain_sum", "spell_backward", "tiny" (both in turn), or "reasoning-gym:NAME".
        split: "train" may repeat a question, "test" never does; no question is in both.
        size: rows; 8192 for train and 512 for test if None.
        seed: another seed gives another stream of the same split.
        options: fields of the reasoning-gym dataset's configuration, over the family's own.

    Raises:
        ConfigError: unknown name, split or option, a size below 1, or fewer distinct test questions than `size`.
    """
    if split not in DEFAULT_SIZE:
        raise ConfigError(f"the splits of {name!r} are 'train' and 'test', got {split!r}")
    size = DEFAULT_SIZE[split] if size is None else size
    if size < 1:
        raise ConfigError(f"a task needs at least one row, got size={size}")
    return Dataset.from_list(list(islice(stream(name, split, seed, **options), size)))


def stream(name: str, split: Split, seed: int = 0, **options: Any) -> Iterator[Row]:
    """The rows of a task without end (or until distinct test questions run out, which raises ConfigError)."""
    if name not in MIXES:
        yield from _rows(name, split, seed, options)
    if options:
        raise ConfigError(
            f"the mix {name!r} takes no options, got {sorted(options)}; name one of {MIXES[name]} instead"
        )
    parts = [_rows(part, split, seed, {}) for part in MIXES[name]]
    while True:
        for rows in parts:
            yield next(rows)


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the test split; depends on nothing but its text."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big") % _HELD_OUT == 0


def first_seed(name: str, split: Split, seed: int) -> int:
    """Where a split's stream starts: test streams lie in the upper half of the seed space, far from every train one."""
    key = hashlib.blake2b(f"{name}/{seed}".encode(), digest_size=8).digest()
    lane = int.from_bytes(key, "big") % _STREAMS
    return (lane + (_STREAMS if split == "test" else 0)) * _STRIDE


def dump_entry(entry: Mapping[str, Any]) -> str:
    """A reasoning-gym entry as JSON that keeps tuples apart from lists: some scorers compare grids of tuples."""
    return json.dumps(_tagged(entry), ensure_ascii=False)


def load_entry(text: str) -> dict[str, Any]:
    """The entry behind `dump_entry`'s JSON, equal to the original."""
    return json.loads(text, object_hook=_untagged)


@lru_cache(maxsize=64)
def dataset(name: str, options: str = "{}") -> Any:
    """A reasoning-gym dataset (also the holder of its scorer) by name, with options as JSON.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such dataset, or refuses an option.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(f"the task {name!r} needs reasoning-gym: pip install 'poise-rl[procedural]'") from error
    if name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no dataset {name!r}; it has {', '.join(sorted(DATASETS))}")
    try:
        return reasoning_gym.create_dataset(
            name, **{"size": _SIZES.get(name, _STRIDE), "seed": 0, **json.loads(options)}
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"reasoning-gym's {name!r} refuses the options {options}: {error}") from error


def _rows(task: str, split: Split, seed: int, options: Mapping[str, Any]) -> Iterator[Row]:
    """One dataset's entries of one split, as rows."""
    name = task.removeprefix(PREFIX)
    if task not in FAMILIES and not task.startswith(PREFIX):
        raise ConfigError(f"no procedural task {task!r}: {', '.join([*FAMILIES, *MIXES])}, or {PREFIX}NAME")
    if reserved := {"seed", "size"} & set(options):
        raise ConfigError(f"{sorted(reserved)} of {task!r} are arguments of their own, not options of the dataset")
    chosen = {**FAMILIES.get(task, {}), **options}
    seen: set[str] = set()
    since_last = 0
    for entry in _entries(name, chosen, first_seed(name, split, seed)):
        question = entry["question"]
        since_last += 1
        if is_held_out(question) == (split == "test") and question not in seen:
            since_last = 0
            if split == "test":
                seen.add(question)
            yield {
                "prompt": [{"role": "user", "content": question}],
                "answer": str(entry["answer"]),
                "domain": name,
                "info": dump_entry({"entry": entry, "dataset": name, "options": chosen}),
            }
        if since_last > _PATIENCE:
            break
    raise ConfigError(
        f"{task!r} ran out of {split} questions{f' after {len(seen)} distinct ones' if seen else ''}; "
        "ask for a smaller size or for options that allow more questions"
    )


def _entries(name: str, options: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """A dataset's entries from a seed on, as many as a stream has."""
    size = _SIZES.get(name, _STRIDE)
    for start in range(0, _STRIDE, size):
        source = dataset(name, json.dumps({**options, "seed": seed + start}, sort_keys=True))
        for index in range(min(size, _STRIDE - start)):
            yield source[index]


def _tagged(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_tagged(item) for item in value]}
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        return {"__items__": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return value


def _untagged(value: dict[str, Any]) -> Any:
    if "__tuple__" in value:
        return tuple(value["__tuple__"])
    if "__items__" in value:
        return dict(value["__items__"])
    return value
