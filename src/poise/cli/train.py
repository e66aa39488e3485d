"""`poise train`: settings from defaults, a TOML file and flags; a dry run or a run; or the continuation of one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from poise.cli.parse import UsageError, parse_flags, show_help, take_options
from poise.errors import ConfigError
from poise.runs.configfile import read_settings, to_toml
from poise.runs.folder import RunFolder
from poise.runs.plan import make_plan
from poise.runs.settings import TrainSettings

EPILOGUE = """
options of the command itself:
  --config FILE.toml   settings from a file; flags override it
  --dry-run            check everything, print the resolved settings and the plan, train nothing
  --resume auto        continue the run in --out after its last complete checkpoint, or start it if there is none
  --debug              show the traceback of an error
"""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    words = take_options(argv, valued=("--config", "--resume"), switches=("--dry-run",))
    if "--help" in words.rest or "-h" in words.rest:
        return show_help(TrainSettings(), "poise train", EPILOGUE)
    resume = words.options.get("--resume")
    if resume not in (None, "auto"):
        raise UsageError(f"--resume takes the word auto, got {resume!r}; the run to continue is the one in --out")
    settings = _settings(words.rest, words.options.get("--config"), resuming=resume is not None)
    if resume is None and os.environ.get("RANK", "0") == "0":  # what needs no library fails before any is loaded
        RunFolder(settings.run.out).refuse_if_used()
    make_plan(settings, devices=int(os.environ.get("WORLD_SIZE", "1")))

    if importlib.util.find_spec("trl") is None:
        raise ConfigError("poise train needs TRL: pip install 'poise-rl[trl]'")
    from poise.cli.quiet import hush

    hush()
    if words.options.get("--dry-run"):
        return _dry_run(settings, resuming=resume is not None)
    from poise.runs.session import train

    return train(settings, resume=resume is not None)


def _settings(flags: list[str], config: str | None, resuming: bool) -> TrainSettings:
    """Defaults < the run's own settings if it is continued < --config < flags."""
    base = TrainSettings() if config is None else read_settings(Path(config), TrainSettings())
    settings = parse_flags(base, flags, "poise train")
    saved = RunFolder(settings.run.out)
    if not (resuming and saved.exists):
        return settings
    continued = saved.saved_settings()
    return parse_flags(read_settings(Path(config), continued) if config else continued, flags, "poise train")


def _dry_run(settings: TrainSettings, resuming: bool) -> int:
    from poise.runs.session import check

    prepared = check(settings, resuming)
    print(to_toml(prepared.settings))
    width = max(len(name) for name, _ in prepared.describe())
    for name, value in prepared.describe():
        print(f"# {name.ljust(width)}  {value}")
    for note in prepared.notes:
        print(f"# note: {note}")
    return 0
