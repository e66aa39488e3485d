"""What cannot work is refused at start, in one sentence that names the setting and its value."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import poise.verl
from poise.core import EstimatorConfig, ProbeConfig, StateSpec
from poise.errors import ConfigError
from poise.verl.settings import PoiseSettings, names_of


def compose(*overrides: str) -> Any:
    hydra = pytest.importorskip("hydra")
    with hydra.initialize_config_module("poise.verl.config", version_base=None):
        return hydra.compose("poise", overrides=list(overrides))


@pytest.mark.verl
def test_the_shipped_defaults_are_the_published_ones() -> None:
    pytest.importorskip("verl")
    from poise.verl.refusals import check

    config = compose()
    settings = check(config)
    actor = config.actor_rollout_ref.actor
    assert config.actor_rollout_ref.rollout.n == 2
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 10.0)
    assert (actor.loss_agg_mode, actor.use_kl_loss, actor.entropy_coeff) == ("token-mean", False, 0)
    assert config.algorithm.use_kl_in_reward is False
    assert settings == PoiseSettings.of({})
    assert settings.estimator == EstimatorConfig("auto", ProbeConfig(weights="score", sibling_outcome=True))


FILTERED = ["algorithm.filter_groups.enable=True", "poise.baseline=leave-one-out"]
CASES = [
    (["algorithm.adv_estimator=grpo"], "algorithm.adv_estimator=grpo, but POISE computes"),
    (["trainer.use_v1=False"], "trainer.use_v1=False is verl's deprecated trainer"),
    (["trainer.v1.trainer_mode=separate_async"], "trainer_mode=separate_async trains on rollouts of older policies"),
    (["model_engine=megatron"], "strategy=megatron gives no access to the hidden states"),
    (["algorithm.rollout_correction.bypass_mode=True"], "bypass_mode=True skips the old-log-prob forward"),
    (
        ["actor_rollout_ref.rollout.n=1", "poise.baseline=probe"],
        "rollout.n=1, but poise.baseline=probe needs a sibling",
    ),
    (["algorithm.filter_groups.enable=True"], "filter_groups.enable=True keeps a prompt by what all"),
    *(
        (["algorithm.filter_groups.enable=True", f"poise.baseline={name}"], f"the gradient of poise.baseline={name}:")
        for name in ("none", "shrinkage", "probe")
    ),
    ([*FILTERED, "algorithm.use_kl_in_reward=True"], "before algorithm.use_kl_in_reward=True takes the KL penalty off"),
    *(
        ([*FILTERED, f"algorithm.filter_groups.metric={metric}", *settings], f"metric={metric} may be equal within")
        for metric, settings in (
            ("acc", ["reward.reward_manager.name=dapo", "+reward.reward_kwargs.overlong_buffer_cfg.enable=True"]),
            ("score", ["reward.reward_manager.name=dapo", "+reward.reward_kwargs.overlong_buffer_cfg.enable=True"]),
            ("acc", ["reward.custom_reward_function.path=mine.py"]),
            ("acc", ["reward.reward_manager.source=importlib"]),
            ("format", []),
        )
    ),
    (["critic.enable=True"], "critic.enable=True trains a critic that POISE replaces"),
    (["actor_rollout_ref.model.use_fused_kernels=True", "FUSED=null"], "impl_backend=None gives no token entropies"),
    (
        ["poise.baseline=group_mean"],
        "poise.baseline=group_mean is not a setting; did you mean poise.baseline=group-mean",
    ),
    (["poise.cold_start_rows=9999"], "cold_start_rows=9999 must lie between 1 and the buffer's capacity=4096"),
    (["+poise.windw=4"], "poise.windw is not a setting; did you mean poise.window"),
    (["+poise.probe.alhpa=4"], "poise.probe.alhpa is not a setting; did you mean poise.probe.alpha"),
    (["poise.probe.clip=[1,0]"], "clip must be \\(low, high\\)"),
    (["poise.capacity=many"], "poise.capacity must be of type int, got 'many'"),
    (["poise.layer=middle"], "poise.layer must be of type int or float or null, got 'middle'"),
    (["poise.window=0"], "window must be a whole number of at least 1, got 0"),
    (["poise.end_of_reasoning=3"], "poise.end_of_reasoning must be of type str or null, got 3"),
    (["poise.allow_fresh_probe=maybe"], "poise.allow_fresh_probe must be of type bool, got 'maybe'"),
    (["poise.probe.clip=[low,1]"], "poise.probe.clip must be of type \\[low, high\\] or null, got \\['low', 1\\]"),
    (["poise.probe.head=logistics"], "poise.probe.head=logistics is not a setting; did you mean poise.probe.head=logi"),
    (["poise.probe.weights=scores"], "poise.probe.weights=scores is not a setting; did you mean poise.probe.weights="),
    (["poise.probe=3"], "poise.probe holds the probe's settings"),
]


@pytest.mark.verl
@pytest.mark.parametrize(
    ("overrides", "sentence"), CASES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_refused(overrides: list[str], sentence: str) -> None:
    pytest.importorskip("verl")
    from poise.verl.refusals import check

    long = {
        "FUSED": "actor_rollout_ref.model.fused_kernel_options.impl_backend",
        "REWARD": "reward.custom_reward_function.reward_kwargs.reward",
    }
    for short, name in long.items():
        overrides = [override.replace(short, name) for override in overrides]
    config = compose(*overrides)
    with pytest.raises(ConfigError, match=sentence):
        check(config)


@pytest.mark.verl
@pytest.mark.parametrize(
    "overrides",
    [
        ["actor_rollout_ref.rollout.n=1"],
        ["actor_rollout_ref.rollout.n=1", "poise.baseline=none"],
        ["actor_rollout_ref.rollout.n=1", "poise.baseline=prompt-probe"],
        ["poise.baseline=auto", "poise.probe.alpha=null", "poise.probe.weights=score"],
        ["actor_rollout_ref.rollout.n=8", "actor_rollout_ref.actor.strategy=fsdp2"],
        ["algorithm.use_kl_in_reward=True"],
        FILTERED,
        [*FILTERED, "algorithm.filter_groups.metric=acc"],
        [*FILTERED, "algorithm.filter_groups.metric=acc", "reward.reward_manager.name=dapo"],
        [*FILTERED, "algorithm.filter_groups.metric=score", "reward.custom_reward_function.path=mine.py"],
        [*FILTERED, "reward.reward_manager.name=dapo", "+reward.reward_kwargs.overlong_buffer_cfg.enable=True"],
        ["actor_rollout_ref.model.use_fused_kernels=True"],
        ["poise.layer=-3", "poise.prompt_layer=1", "poise.end_of_reasoning=null", "poise.probe.clip=[0,1]"],
    ],
    ids=str,
)
def test_allowed(overrides: list[str]) -> None:
    pytest.importorskip("verl")
    from poise.verl.refusals import check

    check(compose(*overrides))


@pytest.mark.verl
def test_the_command_says_one_sentence_and_fails(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    command = [sys.executable, "-m", "poise.verl", "algorithm.adv_estimator=grpo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("poise-verl: algorithm.adv_estimator=grpo, but POISE")
    assert "Traceback" not in done.stderr


@pytest.mark.verl
def test_a_trl_that_breaks_verl_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    trl = Path(sys.prefix) / "trl"
    if not trl.is_dir():
        pytest.skip(f"TRL is not installed in {trl}: make test-verl")
    path = os.pathsep.join([str(trl), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "poise.verl"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 2
    assert "poise-verl: verl cannot load a model beside trl 1.16.0" in done.stderr


def test_layers_of_both_parts() -> None:
    class Tokenizer:
        unk_token_id = None

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert (text, add_special_tokens) == ("</think>", False)
            return [4, 7]

    section = {"layer": 0.5, "prompt_layer": None, "reasoning_layer": -1, "window": 5}
    spec = PoiseSettings.of(section).states(Tokenizer(), depth=36)
    assert spec == StateSpec(prompt_layer=18, reasoning_layer=36, window=5, end_of_reasoning=(4, 7))
    unmarked = PoiseSettings.of({**section, "end_of_reasoning": None})
    assert unmarked.states(Tokenizer(), depth=36).end_of_reasoning == ()
    unwritable = Tokenizer()
    unwritable.unk_token_id = 7
    assert PoiseSettings.of(section).states(unwritable, depth=36).end_of_reasoning == ()
    with pytest.raises(ConfigError, match="layer 40 names no block"):
        PoiseSettings.of({"layer": 40}).states(Tokenizer(), depth=36)


def test_the_probe_section() -> None:
    section = {"head": "logistic", "prompt_components": None, "clip": [0, 1], "alpha": 10}
    probe = PoiseSettings.of({"probe": section}).estimator.probe
    chosen = ProbeConfig(head="logistic", prompt_components=None, clip=(0.0, 1.0), alpha=10.0, weights="score")
    assert probe == replace(chosen, sibling_outcome=True)


def test_the_preset_decides_what_is_null() -> None:
    paper = PoiseSettings.of({"preset": "paper", "cold_start_rows": 64, "probe": {"weights": None}}).estimator
    assert paper == EstimatorConfig(cold_start_rows=64, cold_start_steps=16)
    given = PoiseSettings.of({"preset": "paper", "probe": {"weights": "score"}}).estimator
    assert given.probe.weights == "score"
    with pytest.raises(ConfigError, match="unknown preset 'papr'; choose one of default, paper"):
        PoiseSettings.of({"preset": "papr"})


def test_the_shipped_file_names_every_setting_with_its_default() -> None:
    """A setting that the core gains stands in config/poise.yaml, too, or its users would not find it."""
    text = (Path(poise.verl.__file__).parent / "config" / "poise.yaml").read_text()
    section = yaml.safe_load(text)["poise"]
    assert PoiseSettings.of(section) == PoiseSettings.of({})
    assert set(section) == {*names_of(PoiseSettings, EstimatorConfig), "layer", "preset"} - {"estimator", "tracker"}
    assert set(section["probe"]) == set(names_of(ProbeConfig))
