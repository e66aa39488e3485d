"""`poise lab compare`: tune every method, race them, race again with updates of one size, and say what came out.

    tuning (grid x seeds of its own) -> best rate of each method -> race (paired seeds) -> matched (one update norm)

Every run is an ordinary run folder below the study's; whatever is finished is not made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from poise.errors import ConfigError
from poise.lab.compare_curves import Curve, read_curve, table
from poise.lab.compare_methods import (
    MATCHED,
    RACE,
    TUNING,
    Method,
    Run,
    load_methods,
    make_run,
    matched_methods,
    race_runs,
    tuning_runs,
)
from poise.lab.compare_page import page
from poise.lab.compare_queue import finished_below, is_finished, run_all, seconds_of
from poise.lab.compare_settings import CompareSettings
from poise.lab.compare_stats import best_rates, common_update_norm, grouped, own_update_norms
from poise.lab.study import Steps, show, write_study
from poise.runs.folder import RunFolder
from poise.runs.prepare import prepare

# Comparisons of more rollouts are timed before they start; a shorter one would be half done by then.
_TIMED_FROM = 100_000
_TIMED_STEPS = 2


def run(settings: CompareSettings, dry: bool = False, finished: bool = False) -> int:
    """Makes the comparison, or what is missing of it; returns the exit status.

    Args:
        settings: what is compared.
        dry: only say what would run, and for how long.
        finished: start nothing; compare what has been finished.

    Raises:
        ConfigError: a setting or method is wrong, a run failed, or nothing that is finished can be compared.
    """
    began, console = time.perf_counter(), Console()
    methods = load_methods(settings)
    jobs = settings.jobs or len(os.sched_getaffinity(0))
    rates = dict.fromkeys(methods, settings.learning_rates[0])
    if not finished:
        planned = _planned(settings, methods, rates)
        for first in {run.method.name: run for run in reversed(planned)}.values():
            prepare(first.settings)  # what stops a run before its first step stops all of a method's
        _announce(console, settings, planned, jobs, dry)
    if dry:
        return 0
    make = _finished if finished else partial(_make, console, jobs)
    curves: dict[str, list[Curve]] = {TUNING: [], RACE: [], MATCHED: []}
    tuning = tuning_runs(settings, methods)
    if tuning:
        curves[TUNING] = make(TUNING, tuning)
        rates |= best_rates(curves[TUNING])
    curves[RACE] = make(RACE, race_runs(settings, methods, rates))
    refuse_incomparable(curves[RACE], settings)
    norm = settings.update_norm or common_update_norm(own_update_norms(curves[RACE])) if settings.matched else 0.0
    if norm:
        curves[MATCHED] = make(MATCHED, race_runs(settings, matched_methods(settings, methods), rates, norm))
    study = page(curves, methods, settings, norm)
    _write_table(curves, settings.folder / "curves.parquet")
    write_study(study, settings.folder, settings, time.perf_counter() - began)
    show(study, settings.folder, console)
    return 0


def _planned(settings: CompareSettings, methods: Mapping[str, Method], rates: Mapping[str, float]) -> list[Run]:
    """All runs; those after the tuning stand for what it will choose."""
    matched = matched_methods(settings, methods) if settings.matched else {}
    race = [run for named in (methods, matched) for run in race_runs(settings, named, rates)]
    return [*tuning_runs(settings, methods), *race]


def _announce(console: Console, settings: CompareSettings, planned: Sequence[Run], jobs: int, dry: bool) -> None:
    """What will run, and about how long it will take."""
    rollouts = sum(run.budget for run in planned)
    console.print(
        f"{len(planned)} runs, {rollouts:,} rollouts, {jobs} at a time, in {settings.folder}", highlight=False
    )
    done = finished_below(settings.folder)
    known = done
    if not known and rollouts >= _TIMED_FROM and not dry:
        known = [_timed(settings, planned[0])]
    left = rollouts - sum(budget for budget, _ in done)
    if known and left > 0:
        seconds = sum(seconds for _, seconds in known) / sum(budget for budget, _ in known) * left / jobs
        console.print(f"about {_duration(seconds)} from now, if nothing else keeps the machine busy", highlight=False)


def _timed(settings: CompareSettings, like: Run) -> tuple[int, float]:
    """Rollouts and seconds of a run of two steps, which say how long the others will take."""
    short = replace(settings, tuning_rollouts=_TIMED_STEPS * settings.rollouts_per_step, out=f"{settings.out}/timing")
    run = make_run(short, like.method, TUNING, like.learning_rate, like.seed)
    run_all([run], 1, lambda _: None)
    return run.budget, seconds_of(run.folder)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{max(1, round(seconds / 60))} minutes"


def _make(console: Console, jobs: int, arm: str, runs: Sequence[Run]) -> list[Curve]:
    """Makes the runs of one arm, and reads them."""
    with Steps(console).step(f"{arm} of {len({run.method.name for run in runs})} methods", len(runs)) as advance:

        def finished(run: Run) -> None:
            advance()
            if not console.is_terminal:
                console.print(_line(run), highlight=False)

        run_all(runs, jobs, finished)
    return [read_curve(run) for run in runs]


def _finished(arm: str, runs: Sequence[Run]) -> list[Curve]:
    """The runs of one arm that are finished."""
    return [read_curve(run) for run in runs if is_finished(run)]


def refuse_incomparable(curves: Sequence[Curve], settings: CompareSettings) -> None:
    """Raises ConfigError unless the reference and another method have finished a seed in common."""
    seeds = {name: {curve.run.seed for curve in found} for name, found in grouped(curves).items()}
    common = set.intersection(*seeds.values()) if seeds else set()
    if settings.reference not in seeds or not common:
        listed = ", ".join(f"{name}: {len(found)}" for name, found in seeds.items()) or "none"
        raise ConfigError(
            f"nothing to compare yet in {settings.folder}: no seed has been finished by the reference, "
            f"{settings.reference}, and every method that has finished any (finished seeds: {listed})"
        )


def _line(run: Run) -> str:
    evaluations = RunFolder(run.folder).evaluations.read()
    ends = f"accuracy {evaluations[0]['accuracy']:.3f} -> {evaluations[-1]['accuracy']:.3f}"
    return f"{run.arm} {run.method.name} lr={run.learning_rate:g} seed={run.seed}: {ends}"


def _write_table(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    pyarrow.parquet.write_table(pyarrow.table(table([run for arm in curves.values() for run in arm])), unfinished)
    os.replace(unfinished, path)
