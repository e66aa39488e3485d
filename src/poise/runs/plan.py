"""The plan: what the settings amount to in rollouts, updates and batches, checked before anything expensive starts.

A step is one batch of fresh rollouts: `prompts_per_step` x `rollouts_per_prompt`, shared out over the devices, split
into `updates_per_step` optimiser updates, each made of `accumulation` micro-batches per device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from poise.errors import ConfigError
from poise.runs.settings import OptimisationSettings, TrainSettings

# An automatic micro-batch holds at most this many rollouts: enough to fill a small model, and 8k-token rollouts of a
# large one still fit.
_AUTOMATIC_MICRO_BATCH = 16
# numpy takes no larger one.
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Plan:
    """The geometry of a run."""

    steps: int
    prompts_per_step: int
    rollouts_per_prompt: int
    updates_per_step: int
    micro_batch: int
    devices: int

    @property
    def rollouts_per_step(self) -> int:
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches that each device works through per step."""
        return self.rollouts_per_step // (self.devices * self.micro_batch)

    @property
    def accumulation(self) -> int:
        """Micro-batches per device and update."""
        return self.micro_batches_per_step // self.updates_per_step

    @property
    def prompts(self) -> int:
        """Prompts drawn in the whole run."""
        return self.steps * self.prompts_per_step

    def describe(self) -> list[tuple[str, str]]:
        """The plan in words: (what, how much)."""
        devices = f" on each of {self.devices} devices" if self.devices > 1 else ""
        return [
            ("steps", f"{self.steps} ({self.steps * self.updates_per_step} updates)"),
            ("prompts per step", str(self.prompts_per_step)),
            ("rollouts", f"{self.rollouts_per_step} per step, {self.rollouts_per_step * self.steps} in all"),
            ("update", f"{self.accumulation} micro-batches of {self.micro_batch} rollouts{devices}"),
        ]


def make_plan(settings: TrainSettings, devices: int) -> Plan:
    """The plan of a run on this many devices.

    Raises:
        ConfigError: a number is out of range, or the batch cannot be split as asked.
    """
    optimisation = settings.optimisation
    _check_ranges(settings)
    shares = optimisation.updates_per_step * devices
    if optimisation.prompts_per_step % shares:
        lower = optimisation.prompts_per_step // shares * shares
        nearest = " or ".join(str(value) for value in (lower, lower + shares) if value)
        raise ConfigError(
            f"{optimisation.prompts_per_step} prompts per step cannot be split into {optimisation.updates_per_step} "
            f"updates on {devices} device(s); --prompts-per-step {nearest} can"
        )
    share = optimisation.prompts_per_step // shares * optimisation.rollouts_per_prompt
    return Plan(
        steps=optimisation.steps,
        prompts_per_step=optimisation.prompts_per_step,
        rollouts_per_prompt=optimisation.rollouts_per_prompt,
        updates_per_step=optimisation.updates_per_step,
        micro_batch=_micro_batch(optimisation, share),
        devices=devices,
    )


def _micro_batch(optimisation: OptimisationSettings, share: int) -> int:
    """Rollouts per forward pass: whole groups wherever possible, since a split group costs an extra forward pass."""
    group, asked = optimisation.rollouts_per_prompt, optimisation.micro_batch
    fitting = [size for size in range(1, share + 1) if share % size == 0]
    if asked:
        if asked not in fitting:
            raise ConfigError(
                f"--micro-batch {asked} does not divide the {share} rollouts that each device has per update; "
                f"these do: {', '.join(map(str, fitting))}"
            )
        return asked
    whole = [size for size in fitting if size % group == 0]
    return max((size for size in whole if size <= _AUTOMATIC_MICRO_BATCH), default=whole[0])


def _check_ranges(settings: TrainSettings) -> None:
    """Raises ConfigError for the first number that cannot be meant."""
    for section, name, low, high in (
        ("optimisation", "steps", 1, 10**9),
        ("optimisation", "prompts_per_step", 1, None),
        ("optimisation", "rollouts_per_prompt", 1, None),
        ("optimisation", "updates_per_step", 1, None),
        ("optimisation", "micro_batch", 0, None),
        ("optimisation", "learning_rate", 0, None),
        ("optimisation", "weight_decay", 0, None),
        ("optimisation", "adam_beta2", 0, 1 - 1e-12),
        ("optimisation", "max_grad_norm", 0, None),
        ("optimisation", "rollout_budget", 0, None),
        ("optimisation", "update_norm", 0, None),
        ("optimisation", "warmup_updates", 0, None),
        ("optimisation", "clip_low", 0, 1),
        ("optimisation", "clip_high", 0, None),
        ("optimisation", "dual_clip", 1, None),
        ("optimisation", "kl_weight", 0, None),
        ("generation", "max_completion_tokens", 1, None),
        ("generation", "temperature", 1e-6, None),
        ("generation", "top_p", 1e-6, 1),
        ("data", "eval_size", 0, None),
        ("data", "max_prompt_tokens", 1, None),
        ("evaluation", "eval_every", 0, None),
        ("evaluation", "eval_samples", 1, None),
        ("evaluation", "eval_temperature", 0, None),
        ("evaluation", "eval_top_p", 1e-6, 1),
        ("evaluation", "eval_batch", 1, None),
        ("evaluation", "track_every", 0, None),
        ("evaluation", "track_samples", 2, None),
        ("model", "lora_dropout", 0, 1 - 1e-12),
        ("model", "lora_alpha", 1e-12, None),
        ("data", "data_seed", 0, None),
        ("run", "seed", 0, _LARGEST_SEED),
        ("run", "save_every", 0, None),
        ("run", "keep_checkpoints", 1, None),
    ):
        value = getattr(getattr(settings, section), name)
        if not (low <= value and (high is None or value <= high)) or not math.isfinite(value):
            bounds = f"at least {low}" if high is None else f"between {low} and {high:.10g}"
            bounds += "" if math.isfinite(value) else ", and finite"
            raise ConfigError(f"--{name.replace('_', '-')} must be {bounds}, got {value}")
    for weight in settings.reward.reward_weights:
        if not math.isfinite(weight):
            raise ConfigError(f"--reward-weights must be finite numbers, got {weight}")
    if settings.data.train_size is not None and settings.data.train_size < 1:
        raise ConfigError(f"--train-size must be at least 1, got {settings.data.train_size}")
    if settings.evaluation.eval_temperature == 0 and settings.evaluation.eval_samples > 1:
        raise ConfigError(
            f"--eval-temperature 0 gives the same completion {settings.evaluation.eval_samples} times; "
            "use --eval-samples 1, or a temperature"
        )
