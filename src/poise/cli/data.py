"""`poise data COMMAND`: commands about data. `inspect` shows a task or dataset as a run would see it; `convert` is next
door."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from poise.cli.parse import UsageError, parse_settings, take_options
from poise.cli.table import Command, run_command

COMMANDS: dict[str, Command] = {
    "inspect": ("poise.cli.data:inspect", "columns, sizes, lengths, the reward, and a few rows"),
    "convert": ("poise.cli.convert:main", "from our datasets to verl's parquet files and back, without loss"),
}


def main(argv: list[str]) -> int:
    """Runs one of the commands; returns its exit status."""
    return run_command("poise data", COMMANDS, argv, "Commands about data.")


@dataclass(frozen=True)
class InspectSettings:
    """Show a task or dataset as a run would see it."""

    task: str = "tiny"
    """Named task, JSONL/JSON/CSV/parquet file, or hub:owner/name."""
    task_options: tuple[str, ...] = ()
    """Options of the task as name=value, e.g. prompt=question."""
    split: Literal["train", "test"] = "train"
    """test is held out from training."""
    size: int | None = None
    """Rows; all of the split if not set (512 or 8192 of a generated task)."""
    data_seed: int = 0
    """Draws (or generates) the rows."""
    rows: int = 3
    """Rows that are shown in full."""
    model: str | None = None
    """Model whose tokenizer and chat template are applied; prompts are shown as they are if not set."""


def inspect(argv: list[str]) -> int:
    """Prints what there is to know about a dataset before training on it."""
    words = take_options(argv, valued=("--config",))
    settings = parse_settings(InspectSettings(), words.rest, "poise data inspect", words.options.get("--config"))

    if settings.rows < 0:
        raise UsageError(f"--rows must be at least 0, got {settings.rows}")

    from poise.cli.quiet import hush

    hush()
    from poise.runs.policy import look_at
    from poise.runs.prompts import answers_as_text, at_most
    from poise.runs.settings import ModelSettings
    from poise.tasks import named_options, reward_of

    options = named_options("task", settings.task_options)
    dataset = at_most(settings.task, settings.split, settings.size, settings.data_seed, options)
    tokenizer = look_at(ModelSettings(model=settings.model)).tokenizer if settings.model else None
    print(f"{settings.task}, {settings.split} split: {len(dataset)} rows, verified by {reward_of(settings.task)!r}")
    lines = [*_about(dataset), *answers_as_text(dataset, options)]
    for line in [*lines, *([_lengths(dataset, tokenizer)] if tokenizer is not None else [])]:
        print(line)
    for number in range(min(settings.rows, len(dataset))):
        print(f"\n--- row {number + 1}")
        print(_shown(dataset[number], tokenizer))
    return 0


def _about(dataset: Any) -> list[str]:
    from poise.tasks import question_text

    form = "text" if isinstance(dataset[0]["prompt"], str) else "messages"
    domains = Counter(dataset["domain"])
    copies = len(dataset) - len({question_text(row) for row in dataset})
    empty = sum(not answer.strip() for answer in dataset["answer"])
    return [
        f"columns: {', '.join(dataset.column_names)} (prompts are {form})",
        f"domains: {', '.join(f'{name} {count}' for name, count in domains.most_common())}",
        f"problems that still repeat another: {copies}; rows without an answer: {empty}",
    ]


def _lengths(dataset: Any, tokenizer: Any) -> str:
    from poise.tasks.select import prompt_tokens

    lengths = sorted(prompt_tokens(tokenizer, prompt) for prompt in dataset["prompt"])
    middle, most = statistics.median(lengths), lengths[int(0.99 * (len(lengths) - 1))]
    return f"prompt tokens: shortest {lengths[0]}, median {middle:g}, 99% up to {most}, longest {lengths[-1]}"


def _shown(row: dict[str, Any], tokenizer: Any) -> str:
    from poise.tasks.templates import filled_chat

    prompt = row["prompt"]
    if not isinstance(prompt, str):
        if tokenizer is not None:
            prompt = filled_chat(tokenizer, prompt)
        else:
            prompt = "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
    return f"{prompt}\n[ground truth] {row['answer']}   [domain] {row['domain']}"
