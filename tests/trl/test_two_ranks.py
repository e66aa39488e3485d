"""Two processes over gloo: the same probe on both, bit for bit, and the update of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_policy

SCRIPT = Path(tiny_policy.__file__).with_name("two_ranks.py")
FSDP2 = {
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2, "fsdp_version": 2, "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]},
}


def run(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*command, str(SCRIPT), str(folder), json.dumps(settings)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}, "train"),
        ({"per_device_train_batch_size": 8, "num_iterations": 2}, "old"),
        # One prompt's two rollouts lie on different ranks.
        ({"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}, "extra"),
        ({"per_device_train_batch_size": 8, **FSDP2}, "train"),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "baseline": "auto"}, "train"),
    ],
    ids=["train", "old", "group across ranks", "fsdp2", "self-choosing"],
)
def test_ranks_agree(settings: dict[str, Any], mode: str, tmp_path: Path) -> None:
    first, second = run(tmp_path / "run", max_steps=4, **settings)
    assert first["ranks"] == 2
    assert (first["mode"], second["mode"]) == (mode, mode)
    assert first["sharded"] == ("fsdp" in settings)
    assert first["meta"] == second["meta"]
    assert first["estimator"] == second["estimator"]
    assert first["weights"] == second["weights"]
    last = [entry for entry in first["log"] if "poise/probe_share" in entry][-1]
    if settings.get("baseline") != "auto":
        assert last["poise/probe_share"] == 1.0
    rows = settings["per_device_train_batch_size"] * 2 * settings.get("gradient_accumulation_steps", 1)
    batches = 4 // settings.get("num_iterations", 1)
    assert last["poise/buffer_rows"] == batches * rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "critic", "num_generations": 1, "whiten_advantages": True, "gae_lambda": 0.9},
        {"baseline": "tracker", "num_generations": 1, "whiten_advantages": True},
        {"baseline": "shrinkage"},
    ],
    ids=["critic", "tracker", "shrinkage"],
)
def test_ranks_agree_without_a_probe(settings: dict[str, Any], tmp_path: Path) -> None:
    first, second = run(tmp_path / "run", max_steps=3, per_device_train_batch_size=8, **settings)
    for name in ("estimator", "meta", "weights", "critic"):
        assert first[name] == second[name], name
    assert (first["critic"] is not None) == (settings["baseline"] == "critic")
    assert first["log"][-1]["poise/sampled_rollouts"] == 3 * 16


@pytest.mark.slow
def test_an_epoch_resumed_midway_goes_on_with_its_own_prompts(tmp_path: Path) -> None:
    """Three steps an epoch, saved after the fourth: what is left of the second epoch is what it had not drawn yet."""
    settings = {"max_steps": 7, "per_device_train_batch_size": 8, "prompts": 24, "baseline": "leave-one-out"}
    whole, _ = run(tmp_path / "whole", save_strategy="steps", save_steps=4, **settings)
    resumed, _ = run(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-4"), **settings)
    assert [entry["loss"] for entry in resumed["log"]] == [entry["loss"] for entry in whole["log"]]
    assert resumed["weights"] == whole["weights"]


@pytest.mark.slow
def test_dynamic_sampling_over_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="dynamic_sampling=True runs in one process only"):
        run(tmp_path / "run", baseline="group-mean", dynamic_sampling=True, num_generations=4)
