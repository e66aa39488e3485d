"""`poise report RUN...`: plots, summaries and one HTML file from run and study folders, finished or not."""

from __future__ import annotations

from pathlib import Path

from poise.cli.parse import UsageError, take_options
from poise.errors import ConfigError

USAGE = """usage: poise report RUN [RUN ...] [--out FILE.html]

RUN is the folder of a run, of a lab study, or one that holds studies. Writes plots/ and summary.json into each run
folder, and one HTML file that needs no network: report.html in the first folder, or FILE.html. Several runs are drawn
into the same plots; studies get a section each."""


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status."""
    words = take_options(argv, valued=("--out",))
    if "--help" in words.rest or "-h" in words.rest:
        print(USAGE)
        return 0
    if not words.rest:
        raise UsageError("poise report needs a run folder, e.g. poise report runs/demo")
    unknown = [word for word in words.rest if word.startswith("-")]
    if unknown:
        raise UsageError(f"unknown flag {unknown[0]}; poise report takes folders and --out FILE.html")
    try:
        from poise.report import write_report
    except ImportError as error:
        raise ConfigError(f"a report needs matplotlib and jinja2 ({error}): pip install 'poise-rl[report]'") from error

    out = words.options.get("--out")
    for sentence in write_report([Path(word) for word in words.rest], Path(out) if out else None):
        print(sentence)
    return 0
