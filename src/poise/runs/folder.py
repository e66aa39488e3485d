"""The run folder: where everything of a run lies, and the rules that keep it readable after a kill.

config.toml         resolved settings; `poise train --config` reads it back
run.json            plan, versions, git revision, one entry per session (command line, first step, how it ended)
metrics.jsonl       one object a step          evaluations.jsonl   one object a held-out evaluation
completions/        step_00001.parquet: every rollout with reward, prediction, baseline and advantage
tokens/             step_00001.parquet: token entropies of the step's first prompts
checkpoints/        checkpoint-N, each complete only once it holds complete.json
model/              the final policy           plots/, summary.json, report.html   made from the above
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poise.errors import ConfigError
from poise.runs.configfile import differences, read_settings, to_toml
from poise.runs.journal import Journal, read_json, replace_json, replace_text
from poise.runs.settings import TrainSettings

_MARKER = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_COMPLETIONS = re.compile(r"completions_(\d+)\.parquet$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what its marker says.

    Args:
        updates: optimiser updates made; the number in the folder's name.
        step: steps made; None if the checkpoint was never completed.
    """

    path: Path
    updates: int
    step: int | None
    seconds: float = 0.0


class RunFolder:
    """Paths and writing rules of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.record = self.path / "run.json"
        self.metrics = Journal(self.path / "metrics.jsonl")
        self.evaluations = Journal(self.path / "evaluations.jsonl")
        self.completions = self.path / "completions"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.plots = self.path / "plots"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"

    @property
    def exists(self) -> bool:
        return self.config.exists()

    def token_file(self, step: int) -> Path:
        """Where the token entropies of a step's first prompts lie."""
        return self.path / "tokens" / f"step_{step:05d}.parquet"

    def evaluation_file(self, step: int) -> Path:
        """Where the results behind an evaluation lie, prompt by prompt."""
        return self.path / "evaluations" / f"step_{step:05d}.json"

    def refuse_if_used(self) -> None:
        """Raises ConfigError if a run that has made a step, or anything else, is in the folder.

        A run that died before its first step holds nothing worth keeping; it may be started again.
        """
        done = self.metrics.read()[-1:] if self.exists else []
        if done:
            raise ConfigError(
                f"{self.path} already holds a run that reached step {done[0]['step']}; choose another --out, or "
                "--resume auto to continue it"
            )
        is_empty = not self.path.exists() or (self.path.is_dir() and all(map(self._is_start, self.path.iterdir())))
        if not (self.exists or is_empty):
            raise ConfigError(f"{self.path} exists and is not an empty folder; choose another --out")

    def _is_start(self, path: Path) -> bool:
        """Whether it is what a start leaves that died before it wrote its settings."""
        if path in self._subfolders:
            return not any(path.iterdir())
        return path.name == ".lock" or (path.name.startswith(".") and path.suffix == ".partial")

    @property
    def _subfolders(self) -> tuple[Path, ...]:
        return self.path / "evaluations", self.completions, self.checkpoints

    def refuse_if_not_writable(self) -> None:
        """Says before a run what `make` would say in it, by making and removing something in the nearest folder.

        Raises:
            ConfigError: the file system does not let it.
        """
        place = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            with TemporaryDirectory(dir=place, prefix=".", suffix=".partial"):
                pass
        except OSError as error:
            raise self._cannot_be_made(error) from None

    def _cannot_be_made(self, error: OSError) -> ConfigError:
        return ConfigError(f"the run folder {self.path} cannot be made: {error.strerror}")

    def make(self) -> None:
        """Makes the folder and its subfolders.

        Raises:
            ConfigError: the file system does not let it.
        """
        try:
            for folder in (self.path, *self._subfolders):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_be_made(error) from None

    def write_settings(self, settings: TrainSettings) -> None:
        replace_text(self.config, to_toml(settings))

    def saved_settings(self) -> TrainSettings:
        from poise.runs.presets import decided

        return decided(read_settings(self.config, TrainSettings()))

    def read_record(self) -> dict[str, Any]:
        return read_json(self.record) if self.record.exists() else {"sessions": []}

    @property
    def is_finished(self) -> bool:
        """Whether its last session ended by itself, its model written."""
        sessions = self.read_record()["sessions"]
        return bool(sessions) and sessions[-1]["how"] == "finished"

    def write_record(self, record: dict[str, Any]) -> None:
        replace_json(self.record, record)

    def rollouts_at(self, step: int) -> int:
        """Rollouts sampled by the end of a step; 0 if it was not made."""
        return next((record["rollouts"] for record in self.metrics.read() if record["step"] == step), 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out of the folder; the operating system lets go when this one dies.

        Raises:
            ConfigError: another process is writing the run.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is writing to {self.path}; wait for it, or stop it") from None
            yield

    # --- checkpoints --------------------------------------------------------------------------------------------

    def all_checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint folder, oldest first, complete or not: one that has since lost a part is not."""
        found: list[Checkpoint] = []
        for path in self.checkpoints.glob("checkpoint-*"):
            if (match := _CHECKPOINT.search(path.name)) is None:
                continue
            try:
                marker = json.loads((path / _MARKER).read_text("utf-8"))
                whole = all((path / name).stat().st_size == size for name, size in marker.get("files", {}).items())
                step = int(marker["step"]) if whole else None
                found.append(Checkpoint(path, int(match[1]), step, float(marker["seconds"]) if whole else 0.0))
            except (OSError, ValueError, KeyError):
                found.append(Checkpoint(path, int(match[1]), None))
        return sorted(found, key=lambda checkpoint: checkpoint.updates)

    def complete(self, updates: int, step: int, seconds: float) -> None:
        """Marks a checkpoint as complete, after its files have reached the disk; the marker has their sizes."""
        path = self.checkpoints / f"checkpoint-{updates}"
        sizes: dict[str, int] = {}
        for file in sorted(path.rglob("*")):
            if file.is_file() and file != path / _MARKER:
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                sizes[str(file.relative_to(path))] = file.stat().st_size
        replace_json(path / _MARKER, {"step": step, "updates": updates, "seconds": seconds, "files": sizes})

    def prune(self, keep: int) -> None:
        """Deletes all but the newest `keep` complete checkpoints, the marker first, and older half-written ones."""
        complete = [checkpoint for checkpoint in self.all_checkpoints() if checkpoint.step is not None]
        doomed = complete[: max(0, len(complete) - keep)]
        newest = complete[-1].updates if complete else 0
        doomed += [c for c in self.all_checkpoints() if c.step is None and c.updates < newest]
        for checkpoint in doomed:
            (checkpoint.path / _MARKER).unlink(missing_ok=True)
            shutil.rmtree(checkpoint.path)

    # --- completions --------------------------------------------------------------------------------------------

    def adopt_completions(self, updates_per_step: int) -> None:
        """Moves finished completion files from where the trainer writes them to `completions/`, named by step."""
        for path in self._staged():
            step = int(_COMPLETIONS.search(path.name)[1]) // updates_per_step  # pyright: ignore
            if updates_per_step > 1:  # the trainer's column counts updates
                _write_step(path, step)
            os.replace(path, self.completions / f"step_{step:05d}.parquet")

    def _staged(self) -> list[Path]:
        return sorted((self.checkpoints / "completions").glob("completions_*.parquet"))

    # --- resume -------------------------------------------------------------------------------------------------

    def rewind(self, step: int) -> int:
        """Drops whatever was written after `step`, half-written checkpoints included; returns the metric lines dropped.

        The steps after it are made again, so their lines would otherwise be there twice. At step 0 that is all of
        them: a run that starts again evaluates again before its first step.
        """

        def remains(made: int) -> bool:
            return step > 0 and made <= step

        for path in self._staged():
            path.unlink()
        for folder in (self.completions, self.path / "tokens", self.path / "evaluations"):
            for path in folder.glob("step_*"):
                if not remains(int(path.stem.removeprefix("step_"))):
                    path.unlink()
        for checkpoint in self.all_checkpoints():
            if checkpoint.step is None or checkpoint.step > step:
                shutil.rmtree(checkpoint.path)
        self.evaluations.keep(lambda record: remains(record["step"]))
        return self.metrics.keep(lambda record: remains(record["step"]))


def _write_step(path: Path, step: int) -> None:
    """Says the step in a completion file's `step` column. The file is replaced in place, then moved when complete."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    steps = pyarrow.array([step] * len(table), pyarrow.int64())
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("step"), "step", steps), path)


# What a resumed run may change: how far it goes, how often it looks, what it costs. Everything else is the run itself.
_FREE_TO_CHANGE = {
    "optimisation.steps",
    "optimisation.rollout_budget",
    "optimisation.micro_batch",
    "optimisation.gradient_checkpointing",
    "evaluation.eval_every",
    "evaluation.eval_batch",
    "evaluation.measure_drift",
    "evaluation.track_every",
    "evaluation.track_samples",
    "run.out",
    "run.save_every",
    "run.keep_checkpoints",
    "run.report_to",
    "run.report",
}


def refuse_changes(saved: TrainSettings, wanted: TrainSettings) -> list[str]:
    """Sentences for harmless changes between a saved run and the settings it is resumed with.

    Raises:
        ConfigError: a setting that makes it another run has changed.
    """
    from poise.runs.presets import decided

    changed = differences(decided(saved), decided(wanted))
    refused = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items() if key not in _FREE_TO_CHANGE]
    if refused:
        raise ConfigError(
            f"the run in {wanted.run.out} was made with other settings ({'; '.join(refused)}); "
            "leave them out to continue it, or choose another --out"
        )
    return [f"{key} changes from {old!r} to {new!r}" for key, (old, new) in changed.items() if key != "run.out"]
