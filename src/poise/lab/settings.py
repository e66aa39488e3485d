"""Settings of the studies: whom they look at, how many rollouts they draw, and what they compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from poise.errors import ConfigError


@dataclass(frozen=True)
class PolicySettings:
    """The frozen policy, where its prompts come from, and how it is sampled."""

    model: str = "bundled"
    """Folder, run folder, hub name, or "bundled" for the tiny model that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: str = "tiny"
    """Task name, a local file, or hub:owner/dataset; its train split teaches the probe, its test split is studied."""
    task_options: tuple[str, ...] = ()
    """Options of the task as name=value."""
    reward: tuple[str, ...] = ()
    """Reward that verifies (built-in name or module:function); several are summed. The task's own if not set."""
    reward_weights: tuple[float, ...] = ()
    """One weight per reward; 1 each if not set."""
    temperature: float = 1.0
    """Sampling temperature; 1 is what training samples at."""
    max_new_tokens: int = 512
    """Length limit of a completion."""
    template_options: tuple[str, ...] = ()
    """Arguments of the chat template as name=value."""
    batch_size: int = 256
    """Sequences generated at once."""
    score_batch: int = 64
    """Sequences scored at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto takes bfloat16 on a GPU that has it and float32 on a CPU."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, ..."""
    end_of_reasoning: str = "</think>"
    """Text that closes the reasoning; without effect if the tokenizer has no such token."""
    prompt_layer: float = 0.5
    """Block whose output describes the prompt: index from 1, negative index, or fraction of depth."""
    reasoning_layer: float = 0.5
    """The same for the reasoning part."""
    state_window: int = 10
    """How many of the last tokens of each part are averaged."""
    prompt_components: int = 32
    """Principal components kept of the prompt state; -1 keeps the state as it is."""
    reasoning_components: int = 64
    """Principal components kept of the reasoning state; -1 keeps the state as it is."""
    probe_alpha: float = 100.0
    """L2 penalty of the probe."""
    critic_rates: tuple[float, ...] = (1e-3, 3e-4)
    """Learning rates tried for the critics; for a pretrained model of billions of parameters, 1e-5 is usual."""
    critic_epochs: int = 3
    """Passes over the training rollouts for each critic; the best one by validation loss is kept."""
    resamples: int = 1000
    """Bootstrap resamples of the intervals, over prompts."""
    seed: int = 0
    """Seed of the prompts, the sampling, the critics and the intervals."""
    out: str | None = None
    """Folder of the study; runs/lab/STUDY-MODEL-TASK if not set. Run again to resume."""


@dataclass(frozen=True)
class ValueSettings(PolicySettings):
    """Is the probe any good here? Predictions of held-out pass rates by the probe, its variants and its rivals."""

    train_prompts: int = 2048
    """Training prompts, two rollouts each."""
    held_out_prompts: int = 1024
    """Held-out prompts. Published: 1024."""
    k: int = 32
    """Rollouts per held-out prompt: 8 that predictions are made from, the others make the targets."""
    sweep_layers: int = 8
    """Layers in the sweep, evenly spread over the model's depth."""
    windows: tuple[int, ...] = (1, 3, 10, 30)
    """Pooling windows in the sweep."""
    row_counts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    """Training rows in the sweep, as far as there are so many."""
    component_counts: tuple[int, ...] = (4, 16, 32, 64, 128, -1)
    """Principal components of each state in the sweep; -1 keeps the state as it is."""
    alphas: tuple[float, ...] = (0.01, 1.0, 10.0, 100.0, 1000.0, 10000.0)
    """Penalties in the sweep."""

    def __post_init__(self) -> None:
        check_positive(self, "train_prompts", "held_out_prompts", "sweep_layers", "critic_epochs", "resamples")
        check_positive(self, "windows", "row_counts")
        if self.k < SIBLINGS + 2:
            raise ConfigError(
                f"--k must be at least {SIBLINGS + 2}, got {self.k}: predictions come from the first {SIBLINGS} "
                "rollouts of a prompt, and their targets from the others"
            )


@dataclass(frozen=True)
class VarianceSettings(PolicySettings):
    """Does it lower the variance? Full gradients of single rollouts of a frozen policy under every baseline."""

    train_prompts: int = 2048
    """Training prompts of the probe and the critic, two rollouts each."""
    prompts: int = 256
    """Held-out prompts whose gradients are measured."""
    rollouts: int = 8
    """Rollouts per prompt whose gradients' inner products are kept; allocations m go up to 8 of them."""
    oracle_rollouts: int = 32
    """Further rollouts per prompt: they give the pass rate and the squared gradient norms of the oracles."""
    pilot_prompts: int = 16
    """Training prompts whose gradients make the second moments of the Adam-preconditioned metric."""
    budget: int = 256
    """Rollouts per update, B, that variances are stated for."""
    gradient_batch: int = 16
    """Rollouts whose gradients are computed at once; 1 takes the plain loop, which works with any model."""
    project: int = 0
    """Dimensions of a random projection of the gradients, unbiased for inner products; 0 keeps every parameter."""

    def __post_init__(self) -> None:
        names = ("train_prompts", "prompts", "pilot_prompts", "budget", "gradient_batch")
        check_positive(self, *names, "critic_epochs", "resamples")
        if self.rollouts < 2:
            raise ConfigError(f"--rollouts must be at least 2, got {self.rollouts}: a sibling is needed")
        if self.oracle_rollouts < 2:
            raise ConfigError(
                f"--oracle-rollouts must be at least 2, got {self.oracle_rollouts}: their noise is taken out"
            )
        if self.prompts < 4:
            raise ConfigError(f"--prompts must be at least 4, got {self.prompts}: variance is between prompts")
        if self.project < 0:
            raise ConfigError(f"--project must be 0 (no projection) or more, got {self.project}")


# Rollouts of a held-out prompt that predictions are made from: the paper's Avg@8, and a group of 8 for its mean.
SIBLINGS = 8
CRITIC_SETTINGS = ("critic_rates", "critic_epochs")


def check_positive(settings: PolicySettings, *names: str) -> None:
    """Refuses counts below one, and whatever else of the policy's settings cannot be meant."""
    for name in (*names, "max_new_tokens", "batch_size", "score_batch", "state_window"):
        _refuse(settings, name, lambda value: value >= 1, "at least 1")
    for name in ("prompt_components", "reasoning_components", "component_counts"):
        _refuse(settings, name, lambda value: value >= 1 or value == -1, "at least 1, or -1 for the state as it is")
    for name in ("probe_alpha", "alphas", "critic_rates"):
        _refuse(settings, name, lambda value: 0 < value < math.inf, "above 0, and finite")
    _refuse(settings, "seed", lambda value: value >= 0, "at least 0")
    if not settings.temperature > 0:
        raise ConfigError(f"--temperature must be above 0, got {settings.temperature}: a study needs varied rollouts")
    if not settings.critic_rates:
        raise ConfigError("--critic-rates needs at least one learning rate, e.g. --critic-rates 1e-5")


def _refuse(settings: PolicySettings, name: str, fits: Callable[[Any], bool], bounds: str) -> None:
    """Raises ConfigError for a value that does not fit, of several the first; a setting this study lacks has none."""
    given = getattr(settings, name, ())
    for value in given if isinstance(given, tuple) else (given,):
        if not fits(value):
            raise ConfigError(f"--{name.replace('_', '-')} must be {bounds}, got {value}")


def folder_of(settings: PolicySettings, kind: str) -> Path:
    """Where the study is written."""
    from poise.eval.command import slug

    return Path(settings.out or Path("runs", "lab", f"{kind}-{slug(settings.model)}-{slug(settings.task)}"))


def described(settings: PolicySettings, prompts_hash: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a cached part depends on, as JSON values; a local model's weights are told by size and time.

    Args:
        prompts_hash: of the prompts that the task's name stands for.
        names: settings that only this part depends on.
    """
    from poise.eval.command import weights_of

    whom = ("model", "revision", "task", "task_options", "reward", "reward_weights", "temperature", "max_new_tokens")
    chosen = {name: getattr(settings, name) for name in (*whom, "template_options", "dtype", "seed", *names)}
    # Of a reward in a file, file.py:function, what it says counts and not its name.
    files = [path for spec in settings.reward if (path := Path(spec.rpartition(":")[0])).is_file()]
    read = {"reward_files": [hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in files]}
    return {**chosen, **read, "prompts_hash": prompts_hash, "weights": weights_of(settings.model)}


QUICK_VALUE = ValueSettings(
    train_prompts=1024,
    held_out_prompts=256,
    k=24,
    sweep_layers=4,
    windows=(1, 10),
    row_counts=(256, 512, 1024, 2048),
    component_counts=(16, 64, -1),
    alphas=(1.0, 100.0, 1000.0),
    critic_rates=(1e-3,),
    critic_epochs=2,
)
QUICK_VARIANCE = VarianceSettings(
    train_prompts=1024, prompts=64, oracle_rollouts=16, pilot_prompts=8, critic_rates=(1e-3,), critic_epochs=2
)
