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
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

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
    assert settings.estimator.cold_start_rows == 512, "what is added to the command is heard"
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    assert settings.estimator.probe.clip == (0.0, 1.0)


@pytest.mark.parametrize("page", ["README.md", "docs/verl.md"])
def test_the_diff_makes_a_poise_run_of_a_grpo_command(page: str) -> None:
    """Unchanged lines are a GRPO command that verl accepts; with at most five overrides after them, so does POISE."""
    block = re.search(r"```diff\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert block is not None
    lines = [(line[0], shlex.split(line[1:].rstrip("\\"))) for line in block[1].splitlines()]
    assert [words for sign, words in lines if sign == "-"] == [["python3", "-m", "verl.trainer.main_ppo"]]
    assert lines[1] == ("+", ["poise-verl"])
    theirs = [word for sign, words in lines if sign == " " for word in words]
    added = [word for sign, words in lines[2:] if sign == "+" for word in words]
    assert len(added) <= 5
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        grpo = hydra.compose("ppo_trainer", overrides=theirs)
    assert grpo.algorithm.adv_estimator == "grpo"
    config, settings = checked([*theirs, *added])
    for each in (grpo, config):
        validate_config(each, use_reference_policy=need_reference_policy(each), use_critic=need_critic(each))
    rows = [each.data.train_batch_size * each.actor_rollout_ref.rollout.n for each in (grpo, config)]
    assert (config.actor_rollout_ref.rollout.n, settings.prompt_layer) == (2, 19)
    assert rows[0] == rows[1], "as many rollouts, from more prompts"
