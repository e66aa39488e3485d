"""`poise lab compare`: settings of the comparison of methods, from defaults, a TOML file and flags."""

from __future__ import annotations

from poise.cli.parse import parse_settings, show_help, take_options
from poise.errors import ConfigError
from poise.lab.compare_settings import QUICK, CompareSettings

EPILOGUE = """
options of the command itself:
  --quick              five methods, two seeds, one learning rate: some five minutes on two cores; flags override it
  --dry-run            say what would run, and run nothing
  --finished           start nothing; compare what has been finished so far
  --config FILE.toml   settings of the comparison from a file; flags override it
  --debug              show the traceback of an error

Each run is a folder that poise train wrote; run the same command again to resume. poise report shows what came out.
"""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    words = take_options(argv, valued=("--config",), switches=("--quick", "--dry-run", "--finished"))
    base = QUICK if "--quick" in words.options else CompareSettings()
    if "--help" in words.rest or "-h" in words.rest:
        return show_help(base, "poise lab compare", EPILOGUE)
    settings = parse_settings(base, words.rest, "poise lab compare", words.options.get("--config"))

    from poise.cli.quiet import hush

    hush()
    try:
        from poise.lab.compare import run
    except ImportError as error:
        raise ConfigError(f"a comparison needs TRL and matplotlib ({error}): pip install 'poise-rl[demo]'") from error
    return run(settings, dry="--dry-run" in words.options, finished="--finished" in words.options)
