"""Names of tasks: from a name to a Dataset in the shared form, and to the reward that verifies it.

The first step of the flow. A name is a built-in task ("gsm8k"), a procedural one ("chain_sum", "reasoning-gym:..."), a
local file ("problems.jsonl") or a dataset on the hub ("hub:owner/name").
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from poise.errors import ConfigError
from poise.rewards.imports import nearest
from poise.tasks.files import KINDS

SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Task:
    """A named source of prompts.

    Args:
        name: what users type.
        load: `(split, size, seed, **options) -> Dataset` in the shared form.
        reward: name of the reward that verifies its rows.
        about: one line for listings.
    """

    name: str
    load: Callable[..., Dataset]
    reward: str
    about: str = ""


_TASKS: dict[str, Task] = {}
_FAMILIES: dict[str, Callable[[str], Task]] = {}
# The module that calls `register` and `register_family` when imported, which happens at the first look-up.
_BUILT_IN = "poise.tasks.named"


def register(task: Task) -> None:
    """Adds a task under its name.

    Raises:
        ConfigError: the name is taken by another task.
    """
    if _TASKS.get(task.name, task) != task:
        raise ConfigError(f"the task name {task.name!r} is already taken; choose another name")
    _TASKS[task.name] = task


def register_family(prefix: str, make: Callable[[str], Task]) -> None:
    """Adds all tasks whose name starts with a prefix (such as "reasoning-gym:"); `make` gets the whole name."""
    _FAMILIES[prefix] = make


def names() -> list[str]:
    """Every registered task name, sorted; families are listed as their prefix and an ellipsis."""
    importlib.import_module(_BUILT_IN)
    return sorted([*_TASKS, *(f"{prefix}..." for prefix in _FAMILIES)])


def find(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigError: nothing has that name; the nearest one is named.
    """
    if name not in _TASKS:
        importlib.import_module(_BUILT_IN)  # another thread that comes in now waits until it is whole
    if name in _TASKS:
        return _TASKS[name]
    for prefix, make in _FAMILIES.items():
        if name.startswith(prefix):
            return make(name)
    if name.endswith(KINDS) or Path(name).exists():
        from poise.tasks.local import file_task

        return file_task(name)
    raise ConfigError(
        f"no task is called {name!r}{nearest(name, names())}; "
        "a local .jsonl, .json, .parquet or .csv file and 'hub:owner/dataset' work as well"
    )


def load_task(name: str, split: str = "train", size: int | None = None, seed: int = 0, **options: Any) -> Dataset:
    """The rows of a task, in the shared form (columns prompt, answer, domain, info).

    Args:
        name: see `names`; or a local file, or "hub:owner/dataset".
        split: "train" or "test"; the two never share a prompt.
        size: number of rows, drawn by `seed`; all of them if None.
        seed: draws the rows (and generates them, in procedural tasks).
        options: of the task itself, such as `path`, `template` or `chat`.

    Raises:
        ConfigError: the name, the split, the size or an option is unknown or impossible.
    """
    if split not in SPLITS:
        raise ConfigError(f"a task has the splits 'train' and 'test', got {split!r}")
    if size is not None and size < 1:
        raise ConfigError(f"size must be at least 1, got {size}")
    task = find(name)
    return task.load(split, size, seed, **_checked(task, options))


def reward_of(name: str) -> str:
    """Name of the reward that verifies a task's rows."""
    return find(name).reward


def parse_options(texts: Mapping[str, str]) -> dict[str, Any]:
    """Task options from the command line: each value is read as JSON if it is JSON, else kept as text.

    >>> parse_options({"chat": "false", "path": "data/x.csv", "share": "0.2"})
    {'chat': False, 'path': 'data/x.csv', 'share': 0.2}
    """
    return {key: _json_or_text(value) for key, value in texts.items()}


def named_options(kind: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options given as name=value, read by `parse_options`.

    Args:
        kind: what they are options of, for the message.

    Raises:
        ConfigError: one has another form.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"the {kind} option {text!r} is not of the form name=value")
        pairs[name] = value
    return parse_options(pairs)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _checked(task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, known to the task; a number is a text where it should be one, as for a column that is called 0."""
    parameters = inspect.signature(task.load).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    known = [key for key in parameters if key not in ("split", "size", "seed")]
    for option in options:
        if option not in known:
            raise ConfigError(f"the task {task.name!r} has no option {option!r}{nearest(option, known)}")
    texts = {option for option in options if parameters[option].annotation in ("str", "str | None", str)}
    return {
        option: json.dumps(value) if option in texts and isinstance(value, int | float) else value
        for option, value in options.items()
    }
