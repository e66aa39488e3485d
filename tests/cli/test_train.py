"""`poise train` on a random policy: what it writes, that it repeats, that it resumes as if it had never been killed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from poise.cli import main
from poise.core.estimator import CANDIDATES
from poise.runs.configfile import read_settings
from poise.runs.folder import RunFolder
from poise.runs.settings import TrainSettings

# What a clock decides, or the process's memory.
TIMES = ("seconds", "cpu_seconds", "step_seconds", "step_time")
TIMES += ("poise/fit_seconds", "poise/predict_seconds", "poise/capture_seconds", "peak_memory_mib")


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, evaluated every two and saved every two."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    flags = [*workplace.flags, "--eval-every", "2", "--save-every", "2", "--updates-per-step", "2"]
    assert main(["train", *flags, "--out", str(run)]) == 0
    return run


def test_the_run_folder_tells_the_whole_run(uninterrupted: Path, workplace) -> None:
    folder = RunFolder(uninterrupted)
    records = folder.metrics.read()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["updates"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert [record["rollouts"] for record in records] == [16, 32, 48, 64, 80, 96]
    assert all(later["tokens"] > earlier["tokens"] for earlier, later in pairwise(records))
    assert {"reward", "grad_norm", "entropy", "poise/variance_ratio", "poise/prediction_mean"} <= set(records[-1])
    shares = [records[-1][f"poise/mix_{name}"] for name in CANDIDATES]
    assert sum(shares) == pytest.approx(1.0)
    assert records[-1]["poise/probe_share"] == pytest.approx(sum(shares[2:]))
    assert 100 < records[0]["peak_memory_mib"] <= records[-1]["peak_memory_mib"] < 20_000
    assert [record["step"] for record in folder.evaluations.read()] == [0, 2, 4, 6]
    assert all(record["low"] <= record["accuracy"] <= record["high"] for record in folder.evaluations.read())
    record = folder.read_record()
    assert record["sessions"][0]["how"] == "finished"
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["git"]["commit"]) == 40
    assert read_settings(folder.config, TrainSettings()).reward.reward == (f"{workplace.folder}/rewards.py:digits",)


def test_every_rollout_is_on_file_with_its_credit(uninterrupted: Path) -> None:
    files = sorted((uninterrupted / "completions").iterdir())
    assert [file.name for file in files] == [f"step_{step:05d}.parquet" for step in range(1, 7)]
    rows = pyarrow.parquet.read_table(files[-1]).to_pylist()
    assert len(rows) == 16
    for row in rows:
        assert row["advantage"] == pytest.approx(row["digits"] - row["baseline"], abs=1e-6)
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["prompt"] == other["prompt"]
        assert math.isfinite(one["prediction"])
    tokens = pyarrow.parquet.read_table(uninterrupted / "tokens" / files[-1].name).to_pylist()
    assert [each["row"] for each in tokens] == list(range(8))  # the rollouts of the first four prompts
    for each in tokens:
        said = re.sub(r"</?(eos|unk|pad|bos|think)>", "", "".join(each["tokens"]))  # completions lack special tokens
        assert said == rows[each["row"]]["completion"]


def test_a_run_is_not_overwritten(uninterrupted: Path, workplace, poise: Callable) -> None:
    told = poise("train", *workplace.flags, "--out", str(uninterrupted))
    assert told.status == 1
    assert "already holds a run that reached step 6" in told.err


def test_a_finished_run_is_left_as_it_is(uninterrupted: Path, poise: Callable) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    told = poise("train", "--out", str(uninterrupted), "--resume", "auto")
    assert told.status == 0
    assert "already reached step 6" in told.out
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_finished_run_without_checkpoints_loses_nothing(uninterrupted: Path, poise: Callable) -> None:
    copied = Path(shutil.copytree(uninterrupted, "copied"))
    shutil.rmtree(copied / "checkpoints")
    before = contents(copied)
    told = poise("train", "--out", "copied", "--resume", "auto")
    assert told.status == 0
    assert "already reached step 6" in told.out
    longer = poise("train", "--out", "copied", "--resume", "auto", "--steps", "8")
    assert longer.status == 1
    assert "copied is finished and holds no checkpoint to go on from after step 6; choose another --out" in longer.err
    assert contents(copied) == before


@pytest.mark.parametrize("how", ["finished", None], ids=["finished", "killed"])
def test_fewer_steps_than_were_made_change_nothing(how: str | None, uninterrupted: Path, poise: Callable) -> None:
    copied = RunFolder(shutil.copytree(uninterrupted, "copied"))
    end_with(copied, how)
    before = contents(copied.path)
    told = poise("train", "--out", "copied", "--resume", "auto", "--steps", "4")
    assert told.status == 0
    assert "already reached step 6" in told.out
    assert contents(copied.path) == before


def end_with(run: RunFolder, how: str | None) -> None:
    record = run.read_record()
    record["sessions"][-1] |= {"how": how, "ended": None}
    run.write_record(record)


def test_killed_before_its_model_was_written_it_is_finished_later(uninterrupted: Path, poise: Callable) -> None:
    run = RunFolder(shutil.copytree(uninterrupted, "killed"))
    shutil.rmtree(run.model)
    end_with(run, None)
    told = poise("train", "--out", "killed", "--resume", "auto")
    assert told.status == 0, told.err
    assert run.metrics.path.read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert run.is_finished
    assert {path.name for path in run.model.iterdir()} == {path.name for path in (uninterrupted / "model").iterdir()}
    for name, tensor in weights(Path("killed")).items():
        assert torch.equal(tensor, weights(uninterrupted)[name]), name


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_it_is_the_same_run(uninterrupted: Path, workplace, poise: Callable) -> None:
    flags = [*workplace.flags, "--eval-every", "2", "--save-every", "2", "--updates-per-step", "2", "--out", "killed"]
    command = [sys.executable, "-m", "poise.cli", "train", *flags]
    # Dies in the reward function of the fifth step: after the checkpoint of step 4, with step 5 half made.
    done = subprocess.run(command, env={**os.environ, "KILL_AT_STEP": "8"}, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    run = RunFolder("killed")
    assert [record["step"] for record in run.metrics.read()] == [1, 2, 3, 4]
    assert run.read_record()["sessions"][0]["how"] is None
    # As if the kill had come a moment later: one more line, and a checkpoint that was only begun.
    run.metrics.append({"step": 5, "note": "will be made again"})
    (run.checkpoints / "checkpoint-12").mkdir()
    (run.checkpoints / "checkpoint-12" / "model.safetensors").write_bytes(b"half")
    torn = run.token_file(5)
    torn.write_bytes(b"half")

    told = poise("train", "--out", "killed", "--resume", "auto")
    assert told.status == 0, told.err
    assert "checkpoint-12 was not written completely, or is damaged, and is skipped" in told.out
    assert "resuming after step 4" in told.out
    whole = RunFolder(uninterrupted)
    assert timeless(run.metrics.read()) == timeless(whole.metrics.read())
    assert timeless(run.evaluations.read()) == timeless(whole.evaluations.read())
    assert run.metrics.read()[-1]["seconds"] > run.metrics.read()[3]["seconds"]
    for name, tensor in weights(Path("killed")).items():
        assert torch.equal(tensor, weights(uninterrupted)[name]), name
    assert len(run.read_record()["sessions"]) == 2
    assert pyarrow.parquet.read_table(torn).equals(pyarrow.parquet.read_table(whole.token_file(5)))


def test_the_same_seed_gives_the_same_run_however_it_is_watched(
    uninterrupted: Path, workplace, poise: Callable
) -> None:
    watched = ["--updates-per-step", "2", "--track-every", "2", "--track-samples", "4", "--measure-drift"]
    told = poise("train", *workplace.flags, *watched, "--out", "again")
    assert told.status == 0, told.err
    again, whole = RunFolder("again"), RunFolder(uninterrupted)
    records = timeless(again.metrics.read())
    tracked = [{key: record.pop(key) for key in list(record) if "track_" in key} for record in records]
    moved = [record.pop("poise/update_norm") for record in records]
    assert min(moved) > 0
    assert 0 < records[-1].pop("poise/drift_norm") <= 2 * sum(moved)
    assert records[-1].pop("poise/kl_start") > 0
    assert records == timeless(whole.metrics.read())
    for name, tensor in weights(Path("again")).items():
        assert torch.equal(tensor, weights(uninterrupted)[name]), name
    assert [len(values) > 0 for values in tracked] == [False, True] * 3
    for values in tracked[1::2]:
        assert values["poise/track_rollouts"] == 8 * 4
        assert 0 <= values["poise/track_mae"] <= 1
        assert -1 <= values["poise/track_pearson"] <= 1
    assert [record["step"] for record in again.evaluations.read()] == [0, 6]
    lines = [line for line in told.out.splitlines() if line.startswith("step=")]
    assert len(lines) == 6
    assert lines[2].startswith("step=3/6 reward=")


def test_a_dry_run_resolves_everything_and_writes_nothing(workplace, poise: Callable, tmp_path: Path) -> None:
    told = poise("train", *workplace.flags, "--out", "dry", "--dry-run", "--updates-per-step", "2")
    assert told.status == 0
    assert not (tmp_path / "dry").exists()
    for said in (
        "# steps             6 (12 updates)",
        "# rollouts          16 per step, 96 in all",
        "# update            1 micro-batches of 8 rollouts",
        "# layers            states of block 1 (prompt) and 1 (reasoning) of 2",
        "# capture           old: inside the old log-prob forward pass",
    ):
        assert said in told.out
    (tmp_path / "printed.toml").write_text(told.out)
    assert read_settings(tmp_path / "printed.toml", TrainSettings()).optimisation.updates_per_step == 2


def test_adapters_that_are_described_and_not_trained_are_noted(workplace, poise: Callable) -> None:
    told = poise("train", *workplace.flags, "--dry-run", "--lora-targets", "q_proj", "--lora-alpha", "8")
    assert told.status == 0, told.err
    assert "# note: lora_alpha, lora_targets have no effect: --lora-rank is 0, so all weights are trained" in told.out


def test_what_the_dry_run_says_about_capture_is_what_the_trainer_does(workplace, tmp_path: Path) -> None:
    from poise.cli.parse import parse_flags
    from poise.runs.display import Lines
    from poise.runs.prepare import prepare
    from poise.runs.session import _build

    for extra in ([], ["--updates-per-step", "2"], ["--micro-batch", "1"], ["--baseline", "none"]):
        flags = [*workplace.flags, "--out", str(tmp_path / "run"), *extra]
        prepared = prepare(parse_flags(TrainSettings(), flags, "poise train"))
        trainer = _build(prepared, RunFolder(tmp_path / "run"), Lines(1), None)
        assert prepared.describe_capture().partition(":")[0] == trainer.capture_mode
        assert trainer.args.steps_per_generation == prepared.plan.micro_batches_per_step


def test_adapters_are_trained_and_evaluated(workplace, poise: Callable) -> None:
    told = poise("train", *workplace.flags, "--steps", "2", "--lora-rank", "2", "--out", "lora")
    assert told.status == 0, told.err
    assert Path("lora/model/adapter_config.json").exists()
    shown = poise("eval", "--model", "lora", "--k", "1", "--temperature", "1", "--out", "found")
    assert shown.status == 0, shown.err
    assert json.loads(Path("found/evaluation.json").read_text())["settings"]["max_new_tokens"] == 10


def test_several_rewards_are_summed_with_their_weights(workplace, poise: Callable) -> None:
    rewards = [f"{workplace.folder}/rewards.py:{name}" for name in ("digits", "length")]
    flags = [*workplace.flags, "--reward", *rewards, "--reward-weights", "1", "0.5", "--steps", "2", "--out", "two"]
    assert poise("train", *flags).status == 0
    rows = pyarrow.parquet.read_table(sorted(Path("two/completions").iterdir())[0]).to_pylist()
    record = RunFolder("two").metrics.read()[0]
    mean = sum(row["digits"] + 0.5 * row["length"] for row in rows) / len(rows)
    assert record["reward"] == pytest.approx(mean, abs=1e-6)
    # An evaluation of the run judges by the same sum, with the columns that the rewards ask for.
    shown = poise("eval", "--model", "two", "--k", "1", "--temperature", "1", "--out", "found")
    assert shown.status == 0, shown.err
    found = json.loads(Path("found/evaluation.json").read_text())
    assert found["settings"]["reward"] == f"1 {rewards[0]} + 0.5 {rewards[1]}"
    assert found["failed"] == 0
    scores = [score for result in found["results"] for score in result["scores"]]
    assert any(score % 1 > 0 for score in scores), "the second reward is a fraction, and counts"


def test_a_failing_reward_stops_the_run_with_its_reason(workplace, poise: Callable, tmp_path: Path) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text(
        "calls = []\n"
        "def late(completions, **columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 3:\n"
        "        raise TimeoutError('the judge is out')\n"
        "    return [0.5] * len(completions)\n"
    )
    told = poise("train", *workplace.flags, "--reward", f"{judge}:late", "--eval-size", "0", "--out", "late")
    assert told.status == 1
    assert "the judge is out" in told.err.splitlines()[-1]
    assert RunFolder("late").read_record()["sessions"][0]["how"] == "failed"


@pytest.mark.slow
def test_two_processes_write_one_run(workplace, tmp_path: Path) -> None:
    flags = [*workplace.flags, "--steps", "4", "--rollout-budget", "32", "--out", str(tmp_path / "run")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [*launch, "-m", "poise.cli", "train", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("step=")] == [
        "step=1/4",
        "step=2/4",
    ]
    folder = RunFolder(tmp_path / "run")
    assert [record["rollouts"] for record in folder.metrics.read()] == [16, 32]
    assert [record["prompts"] for record in folder.evaluations.read()] == [10, 10]
    assert len(pyarrow.parquet.read_table(folder.completions / "step_00002.parquet")) == 16
    assert weights(tmp_path / "run")
