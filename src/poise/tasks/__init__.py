"""Tasks: where prompts come from. Every task is a Dataset with the columns prompt, answer, domain and info."""

from poise.tasks.registry import (
    Task,
    find,
    load_task,
    named_options,
    names,
    parse_options,
    register,
    register_family,
    reward_of,
)
from poise.tasks.rows import COLUMNS, prompt_text, question_text, row, to_dataset

__all__ = [
    "COLUMNS",
    "Task",
    "find",
    "load_task",
    "named_options",
    "names",
    "parse_options",
    "prompt_text",
    "question_text",
    "register",
    "register_family",
    "reward_of",
    "row",
    "to_dataset",
]
