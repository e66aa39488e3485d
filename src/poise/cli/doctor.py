"""`poise doctor`: checks the environment, a model and a dataset, with a run's own settings, before it is paid for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from poise.cli.checks import Check
from poise.cli.parse import parse_flags, take_options
from poise.errors import PoiseError
from poise.runs.configfile import read_settings
from poise.runs.settings import TrainSettings

USAGE = """usage: poise doctor [--config FILE.toml] [--model MODEL] [--task TASK | --data FILE] [flags of poise train]

Checks the environment; with --model, a model; with --task or --data, prompts and rewards; with --config, all of a run.
Each line is ok, warning or error with its fix; the exit status is 1 if there is an error."""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    words = take_options(argv, valued=("--config",))
    if "--help" in words.rest or "-h" in words.rest:
        print(USAGE)
        return 0
    config = words.options.get("--config")
    base = read_settings(Path(config), TrainSettings()) if config else TrainSettings()
    settings = parse_flags(base, words.rest, "poise doctor")

    from poise.cli.quiet import hush

    hush()
    default = TrainSettings()
    with_data = config is not None or settings.data != default.data or settings.reward != default.reward
    with_model = config is not None or settings != default
    counts = {"ok": 0, "warning": 0, "error": 0}
    for check in _checks(settings, with_model, with_data):
        counts[check.level] += 1
        print(check.line(), flush=True)
    print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors")
    return 1 if counts["error"] else 0


def _checks(settings: TrainSettings, with_model: bool, with_data: bool) -> Iterator[Check]:
    from poise.cli.checks.environment import check_environment

    yield from check_environment()
    if not with_model:
        return
    from poise.cli.checks.data import check_data
    from poise.cli.checks.model import check_model
    from poise.runs.plan import make_plan
    from poise.runs.policy import look_at
    from poise.runs.prompts import load_prompts, load_rewards, reward_names

    try:
        plan = make_plan(settings, devices=1)
        yield Check("ok", "plan", "; ".join(f"{what} {much}" for what, much in plan.describe()))
        policy = look_at(settings.model)
    except PoiseError as error:
        yield Check("error", "model and plan", str(error))
        return
    yield from check_model(settings, policy)
    if not with_data:
        return
    try:
        names = reward_names(settings.reward, settings.data)
        prompts = load_prompts(settings.data, plan.prompts, settings.run.seed, policy.tokenizer)
        load_rewards(names, prompts)
    except PoiseError as error:
        yield Check("error", "prompts and rewards", str(error))
        return
    yield from check_data(settings, policy, prompts, names)
