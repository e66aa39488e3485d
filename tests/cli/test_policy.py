"""Which weights a run trains: all of them, adapters everywhere, or adapters in the last blocks only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from peft import get_peft_model

import tiny_policy
from poise.errors import ConfigError
from poise.runs.folder import RunFolder
from poise.runs.policy import locate, lora
from poise.runs.settings import ModelSettings, TrainSettings

BY_NAME = ("q_proj", "down_proj")


def adapted_blocks(settings: ModelSettings) -> set[int]:
    """Blocks of a policy of four whose weights are trained."""
    policy = get_peft_model(tiny_policy.model(layers=4), lora(settings, depth=4))
    names = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    return {int(found[1]) for name in names if (found := re.search(r"layers\.(\d+)\.", name))}


def test_no_rank_trains_all_weights() -> None:
    assert lora(ModelSettings(), depth=4) is None


@pytest.mark.parametrize(
    ("blocks", "targets", "adapted"),
    [(0, ("all-linear",), {0, 1, 2, 3}), (0, BY_NAME, {0, 1, 2, 3}), (1, BY_NAME, {3}), (3, BY_NAME, {1, 2, 3})],
)
def test_adapters_lie_in_the_last_blocks(blocks: int, targets: tuple[str, ...], adapted: set[int]) -> None:
    assert adapted_blocks(ModelSettings(lora_rank=2, lora_blocks=blocks, lora_targets=targets)) == adapted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ModelSettings(lora_rank=-1), "--lora-rank must be 0"),
        (ModelSettings(lora_rank=2, lora_blocks=5, lora_targets=BY_NAME), "the model's 4 blocks, got 5"),
        (ModelSettings(lora_rank=2, lora_blocks=-1, lora_targets=BY_NAME), "the model's 4 blocks, got -1"),
        (ModelSettings(lora_rank=2, lora_blocks=1), "--lora-blocks needs the layers by name"),
    ],
)
def test_what_cannot_be_adapted_is_said(settings: ModelSettings, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        lora(settings, depth=4)


@pytest.mark.parametrize("saved", ["config.json", "adapter_config.json"])
def test_a_finished_run_is_taken_at_its_end_and_an_unfinished_one_at_its_last_checkpoint(
    tmp_path: Path, saved: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.make()
    run.write_settings(TrainSettings())
    checkpoint = run.checkpoints / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / saved).write_text("{}")
    run.complete(updates=4, step=4, seconds=1.0)
    assert locate(str(run.path)) == str(checkpoint)
    run.model.mkdir()
    (run.model / saved).write_text("{}")
    assert locate(str(run.path)) == str(run.model)


@pytest.mark.parametrize("name", ["/no/such", "./none", "../none/model", "~/none", "runs/none/model"])
def test_a_path_that_leads_nowhere_is_no_hub_name(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        locate(name)
    assert locate("owner/name") == "owner/name"
