"""What cannot work, refused before anything is started: each with one sentence that says what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf

from poise.core import NEED_SIBLINGS
from poise.errors import ConfigError
from poise.rewards import verifier
from poise.verl.settings import PoiseSettings

ESTIMATOR = "poise"
OUR_REWARDS = "pkg://poise.verl.reward"
_ENGINES = ("fsdp", "fsdp2")
# Fused kernels of verl 0.9.1 that return the entropy beside the log-probabilities.
_FUSED_WITH_ENTROPY = ("torch", "triton", "liger")
# Where all rollouts of a prompt earn the same, these have no advantage, and nothing is lost with the prompt.
_SILENT_ON_EQUAL_REWARDS = ("group-mean", "leave-one-out")
# Reward managers of verl 0.9.1 that credit the score as it is, as does `dapo` without its overlong buffer.
_PLAIN_MANAGERS = ("naive", "gdpo", "remote", "rate_limited")


def check(config: Any) -> PoiseSettings:
    """Read and check a run's configuration.

    Returns:
        The `poise.*` settings.

    Raises:
        ConfigError: with the first thing that cannot work.
    """
    section = OmegaConf.select(config, "poise")
    if section is None:
        raise ConfigError("this configuration has no poise section; start the run with poise-verl")
    settings = PoiseSettings.of(OmegaConf.to_container(section, resolve=True))
    for sentence in _problems(config, settings):
        raise ConfigError(sentence)
    return settings


def check_environment() -> None:
    """verl 0.9.1 imports a class of TRL's, wherever a TRL is installed, that newer TRLs no longer have.

    Raises:
        ConfigError: such a TRL is installed.
    """
    if find_spec("trl") is None:
        return
    try:
        from trl import AutoModelForCausalLMWithValueHead  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"verl cannot load a model beside trl {version('trl')}: give verl an environment of its own, or run "
            "`pip uninstall trl` in this one"
        ) from None


def _problems(config: Any, settings: PoiseSettings) -> Iterator[str]:
    def value(key: str, default: Any = None) -> Any:
        found = OmegaConf.select(config, key)
        return default if found is None else found

    baseline = settings.estimator.baseline
    estimator = value("algorithm.adv_estimator")
    if estimator != ESTIMATOR:
        yield (
            f"algorithm.adv_estimator={estimator}, but POISE computes the advantages here: set "
            f"algorithm.adv_estimator={ESTIMATOR} and choose among baselines with poise.baseline"
        )
    if not value("trainer.use_v1", True):
        yield "trainer.use_v1=False is verl's deprecated trainer, which POISE does not support: leave it at True"
    mode = value("trainer.v1.trainer_mode", "sync")
    if mode != "sync":
        yield (
            f"trainer.v1.trainer_mode={mode} trains on rollouts of older policies, whose states a probe of the current "
            "one cannot read: use trainer.v1.trainer_mode=sync"
        )
    strategy = value("actor_rollout_ref.actor.strategy")
    if strategy not in _ENGINES:
        yield (
            f"actor_rollout_ref.actor.strategy={strategy} gives no access to the hidden states of a layer: use one of "
            f"{', '.join(_ENGINES)}"
        )
    if value("algorithm.rollout_correction.bypass_mode", False):
        yield (
            "algorithm.rollout_correction.bypass_mode=True skips the old-log-prob forward pass, in which POISE reads "
            "the states: set it to False"
        )
    rollouts = value("actor_rollout_ref.rollout.n", 1)
    if rollouts < 2 and baseline in NEED_SIBLINGS:
        yield (
            f"actor_rollout_ref.rollout.n={rollouts}, but poise.baseline={baseline} needs a sibling: "
            "set it to 2 or more"
        )
    if value("algorithm.filter_groups.enable", False):
        yield from _filter_problems(value, baseline)
    if value("critic.enable", False):
        yield "critic.enable=True trains a critic that POISE replaces: set critic.enable=False"
    if value("reward.custom_reward_function.path") == OUR_REWARDS:
        yield from _reward_problems(value("reward.custom_reward_function.reward_kwargs.reward"))
    backend = value("actor_rollout_ref.model.fused_kernel_options.impl_backend")
    if value("actor_rollout_ref.model.use_fused_kernels", False) and backend not in _FUSED_WITH_ENTROPY:
        yield (
            f"actor_rollout_ref.model.fused_kernel_options.impl_backend={backend} gives no token entropies: use one of "
            f"{', '.join(_FUSED_WITH_ENTROPY)}, or set use_fused_kernels=False"
        )


def _filter_problems(value: Callable[..., Any], baseline: str) -> Iterator[str]:
    """Group filtering loses nothing only where what it drops has no advantages."""
    if baseline not in _SILENT_ON_EQUAL_REWARDS:
        yield (
            "algorithm.filter_groups.enable=True keeps a prompt by what all of its rollouts earned, which biases the "
            f"gradient of poise.baseline={baseline}: what it drops has advantages there; set it to False, or choose "
            f"poise.baseline={' or '.join(_SILENT_ON_EQUAL_REWARDS)}"
        )
    if value("algorithm.use_kl_in_reward", False):
        yield (
            "algorithm.filter_groups.enable=True drops a prompt by its rewards before algorithm.use_kl_in_reward=True "
            "takes the KL penalty off them, and with that what it drops has advantages: set one of the two to False"
        )
    metric = value("algorithm.filter_groups.metric")
    if metric != "reward" and not _is_credited(metric, value):
        yield (
            f"algorithm.filter_groups.metric={metric} may be equal within a prompt whose credited rewards are not, for "
            "a reward manager or a reward function of yours may add to them, and what is dropped then has advantages: "
            "set algorithm.filter_groups.metric=reward"
        )


def _is_credited(metric: str | None, value: Callable[..., Any]) -> bool:
    """Whether a metric of the reward function's is the credited reward, or says the same.

    That is its score, where the manager adds nothing; and acc, of verl's own functions and ours.
    """
    shapes = value("reward.reward_kwargs.overlong_buffer_cfg.enable", False)
    plain = _PLAIN_MANAGERS if shapes else (*_PLAIN_MANAGERS, "dapo")
    if value("reward.reward_manager.source") != "register" or value("reward.reward_manager.name") not in plain:
        return False
    is_known = value("reward.custom_reward_function.path") in (None, OUR_REWARDS)
    return metric == "score" or (metric == "acc" and is_known)


def _reward_problems(name: str | None) -> Iterator[str]:
    """A reward that does not exist would otherwise fail rollout by rollout."""
    try:
        if name is not None:
            verifier(name)
    except ConfigError as error:
        yield f"reward.custom_reward_function.reward_kwargs.reward={name}: {error}"
