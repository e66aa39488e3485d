"""Settings of the comparison: the budget, the seeds, the grid of learning rates, and which methods race."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from poise.errors import ConfigError


@dataclass(frozen=True)
class CompareSettings:
    """Does it learn faster? Methods on one trainer, with one budget of rollouts, equal tuning effort, paired seeds."""

    base: str | None = None
    """TOML file of poise train settings that all methods share; those of the bundled model on its tasks if not set."""
    methods: str | None = None
    """TOML file of further methods, or other settings for known ones."""
    only: tuple[str, ...] = ()
    """Methods that race; all if not set."""
    reference: str = "dapo"
    """Method whose final accuracy the others have to reach, and that they are compared with seed by seed."""
    rollouts: int = 8192
    """Budget of each run: every sampled rollout counts, whether or not it is trained on."""
    rollouts_per_step: int = 256
    """Rollouts that a step trains on."""
    seeds: int = 5
    """Seeds of the race. The same seed means the same prompts in every method."""
    learning_rates: tuple[float, ...] = (1.5e-4, 3e-4, 6e-4)
    """The grid that every method's learning rate is chosen from; a single rate skips the tuning."""
    tuning_seeds: int = 2
    """Seeds per learning rate and method, which take no part in the race."""
    tuning_rollouts: int = 4096
    """Budget of each tuning run."""
    matched: bool = True
    """Race a second time with every update of every method stretched to one norm: direction without step size."""
    matched_only: tuple[str, ...] = ()
    """Methods of that second race, beside the reference; all if not set."""
    update_norm: float = 0.0
    """Norm of every update of that second race; 0 is the median over methods of each one's own median in the first."""
    evaluations: int = 8
    """Held-out evaluations per run, besides the one before it."""
    held_out: int = 512
    """Held-out prompts, the same for all runs; tuning runs draw anew."""
    eval_samples: int = 2
    """Completions per held-out prompt."""
    train_size: int = 2048
    """Training prompts, the same for all methods; methods that remember prompts need to meet them again."""
    final: int = 3
    """Evaluations at the end of a run whose mean is its final accuracy."""
    resamples: int = 10_000
    """Bootstrap resamples of the intervals, over seeds."""
    jobs: int = 0
    """Runs at a time, one thread each; 0 for one per core."""
    out: str = "runs/lab/compare"
    """Folder of the study; run again to resume."""

    def __post_init__(self) -> None:
        for name in ("rollouts", "rollouts_per_step", "seeds", "tuning_seeds", "tuning_rollouts", "evaluations"):
            self._at_least(name, 1)
        for name in ("held_out", "eval_samples", "train_size", "final", "resamples"):
            self._at_least(name, 1)
        self._at_least("jobs", 0)
        if not (0 <= self.update_norm < math.inf):
            raise ConfigError(f"--update-norm is a positive number, or 0 for the race's own, got {self.update_norm:g}")
        if self.update_norm and not self.matched:
            raise ConfigError(f"--update-norm {self.update_norm:g} is that of the matched arm; add --matched")
        if self.matched_only and not self.matched:
            raise ConfigError(f"--matched-only {' '.join(self.matched_only)} is of the matched arm; add --matched")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(f"--learning-rates takes positive numbers, got {list(self.learning_rates)}")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ConfigError(f"--learning-rates names a rate twice: {list(self.learning_rates)}")
        for name in ("rollouts", "tuning_rollouts"):
            if getattr(self, name) % self.rollouts_per_step:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is no multiple of --rollouts-per-step "
                    f"{self.rollouts_per_step}"
                )

    def _at_least(self, name: str, low: int) -> None:
        if getattr(self, name) < low:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")

    @property
    def folder(self) -> Path:
        return Path(self.out)


QUICK = CompareSettings(
    only=("poise", "poise-auto", "rloo-2", "grpo-8-std", "dapo"),
    rollouts=3072,
    seeds=2,
    learning_rates=(3e-4,),
    matched=False,
    evaluations=3,
    held_out=256,
    eval_samples=1,
    final=1,
    out="runs/lab/compare-quick",
)
