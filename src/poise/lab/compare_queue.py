"""Runs of a comparison, several at a time: each a `poise train` in a process of its own, resumed if killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from poise.errors import ConfigError
from poise.lab.compare_methods import Run
from poise.runs.configfile import to_toml
from poise.runs.folder import RunFolder, refuse_changes
from poise.runs.journal import replace_text

_POLL = 0.5  # seconds
_Job = tuple[Run, "subprocess.Popen[bytes]", Path]


def is_finished(run: Run) -> bool:
    """Whether a run has been made already.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    folder = RunFolder(run.folder)
    if not folder.exists:
        return False
    saved = folder.saved_settings()
    refuse_changes(saved, run.settings)
    if not folder.is_finished:
        return False
    made = saved.optimisation.rollout_budget
    if made != run.budget:  # a run may be prolonged, but this one's weights are gone, and its curve ends elsewhere
        raise ConfigError(
            f"the run in {run.folder} is finished with a budget of {made} rollouts, not {run.budget}: compare with "
            "that budget, or choose another --out"
        )
    return True


def run_all(runs: Sequence[Run], jobs: int, finished: Callable[[Run], None]) -> None:
    """Makes every run that is not finished, `jobs` at a time, and drops the weights of those that are.

    Args:
        runs: in the order in which they are started.
        jobs: processes at a time.
        finished: called after each run, also for those that were made before.

    Raises:
        ConfigError: some runs failed, after the others are done; the first one's reason is given.
    """
    waiting = [run for run in runs if not is_finished(run)]
    for run in runs:
        if run not in waiting:
            finished(run)
    active: list[_Job] = []
    failed: list[tuple[Run, str]] = []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active.append(_start(waiting.pop(0), jobs))
            time.sleep(_POLL)
            for job in [job for job in active if job[1].poll() is not None]:
                active.remove(job)
                run, process, log = job
                if process.returncode == 0 and is_finished(run):
                    _drop_weights(run)
                    finished(run)
                else:
                    failed.append((run, _reason(log, process.returncode)))
    finally:
        for _, process, _ in active:  # interrupted: checkpoints are there, the next call goes on from them
            process.terminate()
            process.wait()
    if failed:
        run, reason = failed[0]
        raise ConfigError(
            f"{len(failed)} of {len(runs)} runs failed, the first one, {run.folder}, with: {reason}; the same command "
            "tries them again"
        )


def _start(run: Run, jobs: int) -> _Job:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    config, log = run.folder.with_name(f"{run.folder.name}.toml"), run.folder.with_name(f"{run.folder.name}.log")
    replace_text(config, to_toml(run.settings))
    command = [sys.executable, "-m", "poise.cli", "train", "--config", str(config), "--resume", "auto"]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} if jobs > 1 else {}
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **threads})
    return run, process, log


def _reason(log: Path, status: int) -> str:
    """What a failed run said last."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("poise: ") if lines else "it said nothing"
    return said if status > 0 else f"killed by signal {-status} (last line: {said})"


def _drop_weights(run: Run) -> None:
    """A finished run is kept for its numbers; a hundred copies of the policy would fill the disk."""
    folder = RunFolder(run.folder)
    for path in (folder.model, folder.checkpoints):
        shutil.rmtree(path, ignore_errors=True)


def finished_below(folder: Path) -> list[tuple[int, float]]:
    """Rollouts and wall seconds (start-up and evaluations included) of every finished run of a comparison."""
    found: list[tuple[int, float]] = []
    for config in folder.glob("*/*/*lr*/config.toml"):
        run = RunFolder(config.parent)
        if run.is_finished:
            found.append((run.saved_settings().optimisation.rollout_budget, seconds_of(run.path)))
    return found


def seconds_of(folder: Path) -> float:
    """Wall seconds of a run's sessions."""
    sessions = RunFolder(folder).read_record()["sessions"]
    ends = [(session["began"], session["ended"]) for session in sessions if session["ended"]]
    return sum((datetime.fromisoformat(b) - datetime.fromisoformat(a)).total_seconds() for a, b in ends)
