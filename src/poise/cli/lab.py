"""`poise lab STUDY`: settings for the studies of `poise.lab`; a run folder's own task and reward are defaults."""

from __future__ import annotations

import importlib

from poise.cli.evaluate import names_task, with_defaults_of
from poise.cli.parse import parse_settings, show_help, take_options
from poise.cli.table import run_command
from poise.errors import ConfigError
from poise.runs.folder import RunFolder

STUDIES: dict[str, tuple[str, str]] = {
    "value": ("poise.cli.lab:value", "is the probe any good on this model and task?"),
    "variance": ("poise.cli.lab:variance", "does it lower the variance of the policy gradient?"),
    "compare": ("poise.cli.compare:main", "does it learn faster than every rival?"),
}
_ABOUT = "Studies of a policy. Each is resumable and writes a folder with data, plots and a page's section."
EPILOGUE = """
options of the command itself:
  --quick              fewer prompts and comparisons: minutes on two cores; flags override it
  --config FILE.toml   settings from a file; flags override it
  --debug              show the traceback of an error

With --model RUN, a folder that poise train wrote, the task, its options and its seed, the reward and the length limit
are that run's unless named here; another --task comes with its own options and reward. Run the same command again to
resume; poise report shows what a study found.
"""


def main(argv: list[str]) -> int:
    """Runs the study that the first word names; returns its exit status."""
    return run_command("poise lab", STUDIES, argv, _ABOUT)


def value(argv: list[str]) -> int:
    """`poise lab value`."""
    return _study(argv, "value")


def variance(argv: list[str]) -> int:
    """`poise lab variance`."""
    return _study(argv, "variance")


def _study(argv: list[str], name: str) -> int:
    from poise.lab import settings as kinds

    words = take_options(argv, valued=("--config",), switches=("--quick",))
    full = {"value": kinds.ValueSettings, "variance": kinds.VarianceSettings}[name]()
    quick = {"value": kinds.QUICK_VALUE, "variance": kinds.QUICK_VARIANCE}[name]
    base = quick if "--quick" in words.options else full
    prog, config = f"poise lab {name}", words.options.get("--config")
    if "--help" in words.rest or "-h" in words.rest:
        return show_help(base, prog, EPILOGUE)
    settings = parse_settings(base, words.rest, prog, config)

    from poise.cli.quiet import hush

    hush()
    run = RunFolder(settings.model)
    if run.exists:
        another = names_task(config, words.rest)
        settings = parse_settings(with_defaults_of(run, base, another, held_out=False), words.rest, prog, config)
    try:
        study = importlib.import_module(f"poise.lab.{name}")
    except ImportError as error:
        raise ConfigError(f"a study needs matplotlib ({error}): pip install 'poise-rl[report]'") from error
    return study.run(settings)
