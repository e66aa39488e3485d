"""A disk that takes no more in the middle of a checkpoint: one sentence, and the run continues once there is room."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poise.cli import main
from poise.runs.folder import RunFolder


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes fails, as on a full disk; the operating system says so to every library alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def whole(workplace, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run on a disk with room."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    assert main(["train", *flags(workplace), "--out", str(folder.path)]) == 0
    return folder


def flags(workplace) -> list[str]:
    return [*workplace.flags, "--eval-size", "0", "--steps", "3", "--save-every", "1", "--no-report"]


# The weights' file fails in safetensors, the optimiser's (twice as large) in torch's own writer.
@pytest.mark.parametrize("share", [0.5, 1.5], ids=["model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_a_sentence_and_the_run_continues(
    share: float, whole: RunFolder, workplace, poise: Callable
) -> None:
    weights = (workplace.folder / "policy" / "model.safetensors").stat().st_size
    with no_file_above(int(share * weights)):
        told = poise("train", *flags(workplace), "--out", "run")
    assert told.status == 1
    assert told.err.startswith("poise: run/checkpoints/checkpoint-1 could not be written completely (")
    assert "make room, or choose another disk" in told.err
    assert told.err.count("\n") == 1
    again = poise("train", *flags(workplace), "--out", "run", "--resume", "auto")
    assert again.status == 0, again.err
    model = Path("run/model/model.safetensors")
    assert model.read_bytes() == (whole.model / "model.safetensors").read_bytes(), "as if nothing had happened"
