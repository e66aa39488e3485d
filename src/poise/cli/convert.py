"""`poise data convert SOURCE TARGET`: a dataset from our form to verl's or back, without loss; needs no verl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from poise.cli.parse import UsageError, parse_flags, show_help

ABOUT = """usage: poise data convert SOURCE TARGET [options]

SOURCE is a .parquet, .jsonl, .json or .csv file, or the name of a task (then its rows are written in verl's form);
TARGET is a .parquet or .jsonl file. A dataset converted there and back is the one that it was.
"""


@dataclass(frozen=True)
class ConvertSettings:
    """Convert a dataset between the two engines."""

    to: Literal["verl", "trl"] = "verl"
    """verl: data_source, prompt, reward_model, extra_info. trl: prompt, answer, domain, info."""
    reward: str = ""
    """Built-in reward that verifies the rows under verl (math, ...); that of the rows' task if not set."""
    prompt: str = "prompt"
    """Column that holds the problem, text or messages."""
    answer: str = "answer"
    """Column that holds the ground truth."""
    domain: str = "unknown"
    """data_source of rows that have no domain."""
    task_options: tuple[str, ...] = ()
    """Of a task: its options as name=value, e.g. path=data/aime24.jsonl."""
    split: Literal["train", "test"] = "train"
    """Of a task: which split. Noted in verl's extra_info."""
    size: int | None = None
    """Of a task: how many rows; all of the split if not set (512 or 8192 of a generated task)."""
    data_seed: int = 0
    """Of a task: draws (or generates) the rows."""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if "--help" in argv or "-h" in argv:
        return show_help(ConvertSettings(), "poise data convert", ABOUT)
    named = argv[: next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))]
    if len(named) != 2:
        raise UsageError(
            f"poise data convert needs SOURCE and TARGET before its options, got {len(named)} names: {' '.join(named)}"
        )
    settings = parse_flags(ConvertSettings(), argv[2:], "poise data convert")

    from poise.cli.quiet import hush

    hush()
    count = _convert(named[0], Path(named[1]), settings)
    print(f"{count} rows of {named[0]} -> {named[1]}, in the form of {settings.to}")
    return 0


def _convert(source: str, target: Path, settings: ConvertSettings) -> int:
    from poise.tasks.files import KINDS
    from poise.verl.convert import convert_file, convert_rows

    options = {name: getattr(settings, name) for name in ("split", "reward", "prompt", "answer", "domain")}
    if Path(source).suffix in KINDS:
        if settings.task_options:
            raise UsageError(f"--task-options are options of a task, and {source} is a file")
        return convert_file(Path(source), target, settings.to, **options)
    from poise.runs.prompts import at_most
    from poise.tasks import named_options, reward_of

    if settings.to != "verl":
        raise UsageError(f"a task already has our form: poise data convert {source} takes --to verl")
    chosen = named_options("task", settings.task_options)
    rows = at_most(source, settings.split, settings.size, settings.data_seed, chosen)
    return convert_rows(list(rows), target, "verl", **{**options, "reward": settings.reward or reward_of(source)})
