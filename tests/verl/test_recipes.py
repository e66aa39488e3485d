"""Every verl command that we ship composes, and both POISE and verl accept it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")
import hydra
from verl.utils.config import omega_conf_to_dataclass

from poise.verl import refusals

pytestmark = pytest.mark.verl
ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.parent.name for path in ROOT.glob("recipes/verl-*/run.sh"))


def checked(overrides: list[str]) -> tuple[Any, Any]:
    """The composed configuration and POISE's settings, after verl's own checks of the actor and the rollout."""
    with hydra.initialize_config_module("poise.verl.config", version_base=None):
        config = hydra.compose("poise", overrides=overrides)
    settings = refusals.check(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    actor.validate(gpus, config.data.train_batch_size, config.actor_rollout_ref.model)
    return config, settings


def test_there_are_recipes() -> None:
    assert RECIPES == ["verl-olmo3-7b", "verl-qwen3-4b"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, tmp_path: Path) -> None:
    """The script is run with a `poise-verl` that only writes its arguments down."""
    recorder = tmp_path / "poise-verl"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    recorder.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TRAIN": "a.parquet", "TEST": "b.parquet"}
    script = ROOT / "recipes" / recipe / "run.sh"
    subprocess.run([script, "poise.cold_start_rows=512"], env=environment, check=True)
    config, settings = checked((tmp_path / "arguments").read_text().splitlines())
    assert settings.cold_start_rows == 512, "what is added to the command is heard"
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    assert settings.probe.clip == (0.0, 1.0)


def test_the_diff_in_the_documentation() -> None:
    block = re.search(r"```diff\n(.*?)```", (ROOT / "docs" / "verl.md").read_text(), re.DOTALL)
    assert block is not None
    changed = [line[1:] for line in block[1].splitlines() if line.startswith("+")]
    kept = [line for line in block[1].splitlines() if line.startswith(" ")]
    words = [word for line in [*changed, *kept] for word in shlex.split(line.rstrip("\\ ")) if "=" in word]
    config, settings = checked([*words, "actor_rollout_ref.actor.use_dynamic_bsz=True"])
    assert len([line for line in changed if "=" in line]) <= 5
    assert (config.actor_rollout_ref.rollout.n, settings.prompt_layer) == (2, 19)
