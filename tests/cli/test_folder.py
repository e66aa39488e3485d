"""The run folder: never overwritten, one writer, half-written checkpoints told apart, rewound without duplicates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from poise.errors import ConfigError
from poise.runs.folder import RunFolder, refuse_changes
from poise.runs.settings import RunSettings, TrainSettings


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make()
    made.write_settings(TrainSettings())
    return made


def checkpoint(folder: RunFolder, updates: int, step: int | None) -> None:
    path = folder.checkpoints / f"checkpoint-{updates}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if step is not None:
        folder.complete(updates, step, seconds=1.5 * step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_is_never_overwritten(folder: RunFolder, tmp_path: Path) -> None:
    folder.refuse_if_used()  # it has not made a step
    folder.metrics.append({"step": 4})
    with pytest.raises(ConfigError, match="reached step 4"):
        folder.refuse_if_used()
    (tmp_path / "other").mkdir()
    RunFolder(tmp_path / "other").refuse_if_used()
    (tmp_path / "other" / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="not an empty folder"):
        RunFolder(tmp_path / "other").refuse_if_used()
    with pytest.raises(ConfigError, match="not an empty folder"):
        RunFolder(tmp_path / "other" / "thesis.tex").refuse_if_used()


def test_a_start_that_died_before_its_settings_can_be_made_again(tmp_path: Path) -> None:
    died = RunFolder(tmp_path / "run")
    died.make()
    for name in (".lock", ".config.toml.4711.partial"):
        (died.path / name).touch()
    died.refuse_if_used()
    (died.completions / "step_00001.parquet").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        died.refuse_if_used()


def test_a_folder_has_one_writer(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(ConfigError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_half_written_checkpoints_are_told_apart(folder: RunFolder) -> None:
    checkpoint(folder, 10, step=5)
    checkpoint(folder, 9, step=None)
    checkpoint(folder, 20, step=10)
    checkpoint(folder, 30, step=None)
    (folder.checkpoints / "checkpoint-30" / "complete.json").write_text('{"step": ')  # torn
    (folder.checkpoints / "checkpoint-best").mkdir()
    found = [(each.updates, each.step, each.seconds) for each in folder.all_checkpoints()]
    assert found == [(9, None, 0.0), (10, 5, 7.5), (20, 10, 15.0), (30, None, 0.0)]


@pytest.mark.parametrize("left", [None, b"weigh"], ids=["gone", "cut"])
def test_a_checkpoint_that_has_lost_a_part_is_not_complete(left: bytes | None, folder: RunFolder) -> None:
    checkpoint(folder, 1, step=1)
    checkpoint(folder, 2, step=2)
    weights = folder.checkpoints / "checkpoint-2" / "model.safetensors"
    weights.unlink() if left is None else weights.write_bytes(left)
    assert [each.step for each in folder.all_checkpoints()] == [1, None]


def test_a_damaged_record_is_named(folder: RunFolder) -> None:
    folder.record.write_text('{"sessions": ')
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        folder.read_record()


def test_pruning_keeps_the_newest_complete_ones(folder: RunFolder) -> None:
    for updates in (1, 2, 3):
        checkpoint(folder, updates, step=updates)
    checkpoint(folder, 4, step=None)  # being written
    folder.prune(keep=2)
    assert [each.updates for each in folder.all_checkpoints()] == [2, 3, 4]


def test_rewinding_drops_what_came_later(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        folder.metrics.append({"step": step})
        (folder.completions / f"step_{step:05d}.parquet").write_bytes(b"")
    for step in (0, 2, 3):
        folder.evaluations.append({"step": step})
        folder.evaluation_file(step).write_text("{}")
    checkpoint(folder, 4, step=2)
    checkpoint(folder, 6, step=None)
    (folder.checkpoints / "completions").mkdir()
    (folder.checkpoints / "completions" / "completions_00006.parquet").write_bytes(b"half")
    assert folder.rewind(2) == 1
    assert [record["step"] for record in folder.metrics.read()] == [1, 2]
    assert [record["step"] for record in folder.evaluations.read()] == [0, 2]
    assert sorted(path.name for path in folder.completions.iterdir()) == ["step_00001.parquet", "step_00002.parquet"]
    assert sorted(path.name for path in (folder.path / "evaluations").iterdir()) == [
        "step_00000.json",
        "step_00002.json",
    ]
    assert [each.updates for each in folder.all_checkpoints()] == [4]
    assert not list((folder.checkpoints / "completions").iterdir())


def test_a_run_that_starts_again_keeps_nothing(folder: RunFolder) -> None:
    folder.evaluations.append({"step": 0})
    folder.evaluation_file(0).write_text("{}")
    assert folder.rewind(0) == 0
    assert folder.evaluations.read() == []
    assert names(folder.path / "evaluations") == []


def test_completion_files_are_named_by_step(folder: RunFolder) -> None:
    staged = folder.checkpoints / "completions"
    staged.mkdir()
    table = pyarrow.table({"step": [12, 12], "prompt": ["a", "b"]})
    pyarrow.parquet.write_table(table, staged / "completions_00012.parquet")
    folder.adopt_completions(updates_per_step=4)
    assert names(folder.completions) == ["step_00003.parquet"]
    found = pyarrow.parquet.read_table(folder.completions / "step_00003.parquet").to_pydict()
    assert found == {"step": [3, 3], "prompt": ["a", "b"]}


def test_a_run_that_was_moved_is_called_by_the_place_it_is_in() -> None:
    saved, wanted = TrainSettings(run=RunSettings(out="there")), TrainSettings(run=RunSettings(out="here", seed=1))
    with pytest.raises(ConfigError, match=r"the run in here was made with other settings \(run.seed: 0 -> 1\)"):
        refuse_changes(saved, wanted)


def test_a_resumed_run_may_change_its_pace_and_nothing_else() -> None:
    saved = TrainSettings()
    longer = replace(saved, optimisation=replace(saved.optimisation, steps=500))
    assert refuse_changes(saved, longer) == ["optimisation.steps changes from 100 to 500"]
    other = replace(saved, run=replace(saved.run, seed=1))
    with pytest.raises(ConfigError, match=r"run\.seed: 0 -> 1"):
        refuse_changes(saved, other)
