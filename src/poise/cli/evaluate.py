"""`poise eval`: settings for `poise.eval.command`, with what a run folder says about its own task as defaults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from poise.cli.parse import SettingsT, parse_settings, show_help, take_options
from poise.eval.command import EvalConfig
from poise.runs.configfile import read_toml
from poise.runs.folder import RunFolder

EPILOGUE = """
options of the command itself:
  --config FILE.toml   settings from a file; flags override it
  --debug              show the traceback of an error

With --model RUN, a folder that poise train wrote, the task, its options and its seed, the reward and the length limit
are that run's unless named here; --split test then gives the prompts that the run held out. Another --task comes with
its own options and reward.
"""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    words = take_options(argv, valued=("--config",))
    config = words.options.get("--config")
    if "--help" in words.rest or "-h" in words.rest:
        return show_help(EvalConfig(), "poise eval", EPILOGUE)
    settings = parse_settings(EvalConfig(), words.rest, "poise eval", config)

    from poise.cli.quiet import hush

    hush()
    run = RunFolder(settings.model)
    if run.exists:
        another = names_task(config, words.rest)
        settings = parse_settings(with_defaults_of(run, EvalConfig(), another), words.rest, "poise eval", config)

    from poise.eval.command import run as evaluate

    return evaluate(settings)


def names_task(config: str | None, words: list[str]) -> bool:
    """Whether a file of settings or the words of a command name the task, which then need not be the run's."""
    in_file = config is not None and "task" in read_toml(Path(config))
    return in_file or any(word.split("=")[0] == "--task" for word in words)


def with_defaults_of(run: RunFolder, base: SettingsT, another_task: bool = False, held_out: bool = True) -> SettingsT:
    """Settings with the task, seed, rewards and length limit of a training run as their defaults.

    Args:
        run: the run's folder.
        base: settings without them.
        another_task: a task is named that may not be the run's, so its options and rewards are not taken over.
        held_out: the task is the one whose test split the run held out; else the one that it trained on.
    """
    from poise.runs.prompts import held_out_task, task_name, task_options

    saved = run.saved_settings()
    base = replace(base, seed=saved.data.data_seed, max_new_tokens=saved.generation.max_completion_tokens)  # pyright: ignore
    if another_task:
        return base
    task, options = held_out_task(saved.data) if held_out else (task_name(saved.data), task_options(saved.data))
    return replace(
        base,  # pyright: ignore
        task=task,
        # As it is read again: Python's False would be the text "False", which is true.
        task_options=tuple(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()
        ),
        reward=saved.reward.reward,
        reward_weights=saved.reward.reward_weights,
    )
