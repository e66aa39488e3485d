"""Tasks from data that the user brings: a local file or any dataset on the hub, with a map of its fields."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datasets import Dataset

from poise.errors import ConfigError
from poise.rewards.imports import nearest
from poise.tasks.files import as_answer, from_hub, is_text, read_file
from poise.tasks.registry import Task
from poise.tasks.rows import draw, row, to_dataset
from poise.tasks.select import deduplicate, split_by_hash
from poise.tasks.templates import prompt_of

logger = logging.getLogger(__name__)


def records_to_dataset(
    records: Iterable[Mapping[str, Any]],
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    domain: str = "domain",
    template: str = "plain",
    chat: bool = False,
    system: str | None = None,
    keep: str | None = None,
) -> Dataset:
    """Records of any schema as rows of the shared form.

    Args:
        records: mappings of one schema.
        prompt, answer: fields that hold the problem (text or messages) and the ground truth.
        domain: field that names the domain; records without it get the domain "default".
        template, chat, system: see `templates.prompt_of`; for problems that are text.
        keep: comma-separated fields to keep in `info`; all if None. What a column of ours says as it is, under the
            field's own name, is left out; a ground truth that is no text stays, since `answer` has it as text.

    Raises:
        ConfigError: a field is missing (the nearest one is named; a domain may be missing in some records), or a prompt
            is neither text nor messages, or is messages where words are to be put around it.
    """
    rows, fields = [], set()
    for number, record in enumerate(records, start=1):
        question = _field(record, prompt, number, "prompt")
        truth = _field(record, answer, number, "answer") if answer in record or answer != "answer" else ""
        _refuse_no_prompt(question, prompt, number)
        messages = isinstance(question, list | tuple)
        if messages and (template != "plain" or system):
            raise ConfigError(
                f"the field {prompt!r} holds messages, so no template or system message can be put around it"
            )
        fields.update(record)
        said_by = {"prompt": prompt, "domain": domain, **({"answer": answer} if is_text(truth) else {})}
        rest = _rest(record, {column for column, name in said_by.items() if column == name}, keep)
        bare = None if messages or (template == "plain" and not system) else str(question)
        said = list(question) if messages else prompt_of(str(question), template, chat, system)
        rows.append(row(said, as_answer(truth), as_answer(record.get(domain)) or "default", rest, bare))
    if rows and domain not in ("", "domain", *fields):
        raise ConfigError(f"no record has the field {domain!r} for its domain{nearest(domain, sorted(fields))}")
    return to_dataset(rows)


def with_field_map(load: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """A task's `load` that takes `records_to_dataset`'s field map beside its own options, and gets it as `form`."""
    own = [parameter for parameter in inspect.signature(load).parameters.values() if parameter.name != "form"]
    mapping = inspect.signature(records_to_dataset).parameters.values()
    fields = [parameter for parameter in mapping if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(load)
    def loaded(*place: Any, **options: Any) -> Dataset:
        form = {field.name: options.pop(field.name) for field in fields if field.name in options}
        return load(*place, form=form, **options)

    loaded.__signature__ = inspect.Signature([*own, *fields])  # pyright: ignore (read by inspect.signature)
    return loaded


def file_task(name: str, reward: str = "math") -> Task:
    """The task of a local file. Its rows are verified by "math" unless the user names another reward."""

    @with_field_map
    def load(
        split: str,
        size: int | None,
        seed: int,
        held_out: float = 0.1,
        test_file: str | None = None,
        *,
        form: Mapping[str, Any],
    ) -> Dataset:
        if test_file is not None:
            records = _filled(test_file if split == "test" else name)
            return draw(records_to_dataset(records, **form), size, seed)
        rows = _distinct(records_to_dataset(_filled(name), **form), name, split)
        chosen = split_by_hash(rows, split, held_out)
        if not chosen:
            raise ConfigError(
                f"of the {len(rows)} problems in {name}, held_out={held_out:g} leaves none for the split {split!r}; "
                "give more problems, another share, or test_file=FILE"
            )
        return draw(to_dataset(chosen), size, seed)

    return Task(name, load, reward, "a local file")


def _filled(name: str) -> list[dict[str, Any]]:
    """The records of a file that has some."""
    records = read_file(name)
    if not records:
        raise ConfigError(f"the file {name} holds no record; a task needs at least one, with a prompt and its answer")
    return records


def hub_task(name: str, reward: str = "math") -> Task:
    """The task of any dataset on the hub, "hub:owner/dataset", with a field map."""
    repository = name.removeprefix("hub:")

    @with_field_map
    def load(
        split: str,
        size: int | None,
        seed: int,
        config: str | None = None,
        revision: str | None = None,
        train: str = "train",
        test: str | None = None,
        held_out: float = 0.1,
        *,
        form: Mapping[str, Any],
    ) -> Dataset:
        hub_split = test if split == "test" and test is not None else train
        dataset = records_to_dataset(from_hub(repository, config, hub_split, revision), **form)
        if test is None:
            dataset = to_dataset(split_by_hash(_distinct(dataset, name, split), split, held_out))
        return draw(dataset, size, seed)

    return Task(name, load, reward, "any dataset on the hub")


def _distinct(rows: Dataset, name: str, split: str) -> list[Mapping[str, Any]]:
    """The rows without repeats. How many were left out is said once a command: the training split is loaded first."""
    kept = deduplicate(rows)
    if split == "train" and len(kept) < len(rows):
        repeats = len(rows) - len(kept)
        logger.warning("%d of the %d problems in %s repeat another, and are left out", repeats, len(rows), name)
    return kept


def _field(record: Mapping[str, Any], field: str, number: int, column: str) -> Any:
    if field not in record:
        raise ConfigError(
            f"record {number} has no field {field!r}{nearest(field, record)}; name the one to take with "
            f"--{column}-column, or --task-options {column}=NAME"
        )
    return record[field]


def _refuse_no_prompt(prompt: Any, field: str, number: int) -> None:
    """Numbers pass for text; nothing, an empty text and what is no message do not."""
    if isinstance(prompt, list | tuple):
        is_prompt = bool(prompt) and all(
            isinstance(each, Mapping) and all(isinstance(each.get(key), str) for key in ("role", "content"))
            for each in prompt
        )
    else:
        is_prompt = isinstance(prompt, str | int | float) and bool(str(prompt).strip())
    if not is_prompt:
        raise ConfigError(
            f"the field {field!r} of record {number} is {prompt!r:.60}; a prompt is a text, or a list of messages with "
            "'role' and 'content', both text"
        )


def _rest(record: Mapping[str, Any], used: set[str], keep: str | None) -> dict[str, Any]:
    kept = [name.strip() for name in keep.split(",") if name.strip()] if keep is not None else list(record)
    return {name: record[name] for name in kept if name in record and name not in used}
