"""PoiseConfig: TRL's GRPOConfig with the published loss and sampling, and the settings of the value estimator."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field, fields
from typing import Any, cast, get_args

import torch
from trl import GRPOConfig

from poise.core import (
    BASELINES,
    NEED_SIBLINGS,
    BaselineName,
    EstimatorConfig,
    ProbeConfig,
    StateSpec,
    TrackerConfig,
    with_preset,
)
from poise.core.limits import finite, interval, one_of, positive, whole
from poise.core.probe import HeadName, WeightName
from poise.errors import ConfigError
from poise.trl.options import refuse_senseless
from poise.trl.single import validated_as_group

logger = logging.getLogger(__name__)

# Methods that are run with whitened advantages: SPO, PPO, and REINFORCE with a batch-wide normalisation.
WHITENED = ("tracker", "critic", "none")


@dataclass
class PoiseConfig(GRPOConfig):
    """Settings of `PoiseTrainer`: everything of GRPOConfig, with other defaults where the paper has them.

    Changed defaults: two rollouts a prompt, no scaling of advantages, clip range 0.2 / 0.28 with dual clip 10,
    token-mean loss (TRL's "dapo"), no KL term. Without an accelerator, float32: TRL's bf16 is refused there, or, with
    `use_cpu`, four to six times slower.

    Raises:
        ConfigError: a combination that would bias the gradient or cannot work, with the reason.

    Source: paper section 4 and the authors' run scripts (clip 0.2 / 0.28, dual clip c = 10, token-mean, n = 2).
    """

    # GRPOConfig's own fields, with the published values.
    num_generations: int | None = field(
        default=2, metadata={"help": "Rollouts per prompt. Two are enough: each one's baseline comes from the other."}
    )
    scale_rewards: str = field(
        default="none", metadata={"help": "Advantages are not divided by a standard deviation; only group-mean may."}
    )
    epsilon_high: float | None = field(default=0.28, metadata={"help": "Upper clip range (clip-higher)."})
    delta: float | None = field(default=10.0, metadata={"help": "Dual clip: bound on the ratio of bad rollouts."})
    loss_type: str = field(default="dapo", metadata={"help": "Token-mean over the batch is TRL's 'dapo'."})
    beta: float = field(default=0.0, metadata={"help": "KL coefficient; off, as published."})

    baseline: str | None = field(
        default=None,
        metadata={
            "help": f"What credits a rollout: {', '.join(BASELINES)}; docs/algorithm.md has each. None: the "
            "preset's, auto; the paper's, probe."
        },
    )
    prompt_layer: float = field(
        default=0.5,
        metadata={"help": "Block that describes the prompt: index from 1, negative index, or fraction of depth."},
    )
    reasoning_layer: float = field(default=0.5, metadata={"help": "Block that describes the reasoning; as above."})
    state_window: int = field(default=10, metadata={"help": "How many of the last tokens of each part are averaged."})
    end_of_reasoning: str = field(
        default="</think>",
        metadata={"help": "Text whose tokens close the reasoning; '' if the model marks no reasoning."},
    )
    probe_head: str = field(default="ridge", metadata={"help": "'ridge', or 'logistic' for bounded rewards."})
    prompt_components: int | None = field(
        default=32, metadata={"help": "Principal components of the prompt state; None for no PCA."}
    )
    reasoning_components: int | None = field(
        default=64, metadata={"help": "Principal components of the reasoning state; None for no PCA."}
    )
    probe_alpha: float | None = field(
        default=100.0,
        metadata={"help": "L2 penalty (scikit-learn's units); None takes the one that erred least on past batches."},
    )
    probe_clip: list[float] | None = field(
        default=None, metadata={"help": "Range that predictions are clipped to; learned from the rewards if not given."}
    )
    preset: str = field(
        default="default",
        metadata={
            "help": "'paper' is the published form; a preset decides the baseline and what is below, where None."
        },
    )
    probe_weights: str | None = field(
        default=None,
        metadata={
            "help": "'score': fitted with the rollouts' squared scores as weights, the probe is the baseline of "
            "least gradient variance; 'none': it is fitted to the expected reward, as published; None: the preset's, "
            "score; the paper's, none."
        },
    )
    probe_sibling_outcome: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the probe also sees the reward of the sibling whose states it sees, and how unsure the "
            "policy was of it; None: the preset's, yes; the paper's, no."
        },
    )
    buffer_capacity: int = field(default=4096, metadata={"help": "Rows of the probe's buffer, per domain."})
    cold_start_rows: int | None = field(
        default=None,
        metadata={
            "help": "Rows the probe must be fitted on before it is used, leave-one-out until then; with 'auto', rows "
            "from which on a domain has a probe of its own; None: the preset's, 256; the paper's, 1."
        },
    )
    cold_start_steps: int | None = field(
        default=None,
        metadata={"help": "Updates before the probe is used; not with 'auto'; None: the preset's, 0; the paper's, 16."},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "DAPO: drop prompts whose rollouts all earn the same, and sample others until the batch is full; "
            "for baseline 'group-mean'."
        },
    )
    max_sampling_rounds: int = field(
        default=10,
        metadata={"help": "Dynamic sampling: rounds per batch, after which training goes on with what there is."},
    )
    tracker_prior: float = field(
        default=0.5, metadata={"help": "Baseline 'tracker': value of a prompt before any reward was seen."}
    )
    tracker_half_life: float = field(
        default=16.0, metadata={"help": "Baseline 'tracker': updates after which a prompt's past rewards weigh half."}
    )
    whiten_advantages: bool = field(
        default=False,
        metadata={
            "help": "Subtract the mean of the batch's advantages and divide by their standard deviation, as SPO and "
            "PPO do. Biased: for baselines 'tracker', 'critic' and 'none' only."
        },
    )
    critic_learning_rate: float = field(default=1e-5, metadata={"help": "Baseline 'critic': AdamW learning rate."})
    gae_lambda: float = field(
        default=1.0,
        metadata={"help": "Baseline 'critic': how far advantages trust rewards (1) over the critic's next value (0)."},
    )
    critic_clip: float | None = field(
        default=None, metadata={"help": "Baseline 'critic': values move at most so far per batch; None for no bound."}
    )
    domain_column: str = field(
        default="domain", metadata={"help": "Dataset column that names a rollout's domain; one domain if absent."}
    )
    capture: str = field(
        default="auto",
        metadata={
            "help": "'auto': inside a forward pass that TRL runs anyway where one sees whole groups; 'extra': "
            "always a forward pass of its own (states without LoRA dropout)."
        },
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={"help": "Seconds after which a call of a reward function counts as failed; None waits forever."},
    )
    max_failed_batches: int = field(
        default=3,
        metadata={"help": "Generation batches in a row without a single reward, after which training stops."},
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and (self.use_cpu or not torch.accelerator.is_available()):
            self.bf16 = False
        if self.num_generations is not None and self.num_generations < 2:
            self._refuse_missing_siblings(self.num_generations)
            with validated_as_group(self):
                super().__post_init__()
        else:
            super().__post_init__()
        self._validate()

    def _refuse_missing_siblings(self, rollouts: int) -> None:
        if rollouts < 1:
            raise ConfigError(f"num_generations={rollouts}: a prompt needs at least one rollout")
        if self.chosen_baseline in NEED_SIBLINGS:
            single = ", ".join(repr(name) for name in BASELINES if name not in NEED_SIBLINGS)
            raise ConfigError(
                f"num_generations={rollouts}: with baseline={self.chosen_baseline!r} a rollout's baseline comes from "
                f"its siblings, so every prompt needs at least 2; one rollout a prompt works with baseline={single}"
            )

    @property
    def chosen_baseline(self) -> BaselineName:
        """What credits a rollout: the baseline that was given, or the preset's."""
        chosen = self._decided()["baseline"]
        one_of("baseline", chosen, BASELINES)
        return chosen

    def _decided(self) -> dict[str, Any]:
        """The estimator's settings that a preset may decide."""
        given = {
            "baseline": self.baseline,
            "weights": self.probe_weights,
            "sibling_outcome": self.probe_sibling_outcome,
            "cold_start_rows": self.cold_start_rows,
            "cold_start_steps": self.cold_start_steps,
        }
        return with_preset(self.preset, given)

    def _validate(self) -> None:
        one_of("capture", self.capture, ("auto", "extra"))
        refuse_senseless(self)
        if self.chosen_baseline == "group-mean" and self.whiten_advantages:
            raise ConfigError("whiten_advantages=True with baseline='group-mean': scale_rewards scales it instead")
        if self.chosen_baseline != "group-mean":
            self._refuse_own_reward_in_advantage()
        if self.dynamic_sampling:
            self._refuse_dynamic_sampling()
        self._refuse_wrong_critic()
        self._refuse_wrong_numbers()
        self.estimator()  # a wrong probe setting fails here rather than at the first step
        self.state_spec(())

    def _refuse_wrong_numbers(self) -> None:
        whole("max_failed_batches", self.max_failed_batches, least=1)
        whole("max_sampling_rounds", self.max_sampling_rounds, least=1)
        if self.reward_timeout is not None:
            positive("reward_timeout", self.reward_timeout, hint=" seconds; None waits forever")

    def _refuse_wrong_critic(self) -> None:
        finite("gae_lambda", self.gae_lambda)
        if not 0 <= self.gae_lambda <= 1:
            raise ConfigError(f"gae_lambda must lie between 0 and 1, got {self.gae_lambda}")
        positive("critic_learning_rate", self.critic_learning_rate)
        if self.critic_clip is not None:
            positive("critic_clip", self.critic_clip, hint="; None sets no bound")

    def _refuse_dynamic_sampling(self) -> None:
        if self.chosen_baseline != "group-mean":
            raise ConfigError(
                f"dynamic_sampling=True chooses prompts by the rewards of the very rollouts that are trained on, which "
                f"biases the gradient of baseline={self.chosen_baseline!r}; it is part of DAPO: baseline='group-mean'"
            )
        if self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError(
                f"dynamic_sampling=True joins several rounds, but scale_rewards={self.scale_rewards!r} with "
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} scales each round by itself; use "
                "scale_rewards='group' or 'none' with 'sum_then_normalize'"
            )

    def _refuse_own_reward_in_advantage(self) -> None:
        if self.scale_rewards != "none":
            raise ConfigError(
                f"scale_rewards={self.scale_rewards!r} divides each advantage by a standard deviation that contains "
                f"the rollout's own reward, which biases the gradient; use scale_rewards='none' with "
                f"baseline={self.chosen_baseline!r}, or baseline='group-mean' for GRPO"
            )
        if self.whiten_advantages and self.chosen_baseline not in WHITENED:
            raise ConfigError(
                f"whiten_advantages=True subtracts and divides by what contains the rollout's own reward, which biases "
                f"the gradient; it belongs to baseline={' or '.join(map(repr, WHITENED))}, not to "
                f"{self.chosen_baseline!r}"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} normalises rewards within the "
                f"group, which replaces the baseline; use 'sum_then_normalize' with baseline={self.chosen_baseline!r}"
            )

    @classmethod
    def adopt(cls, args: GRPOConfig) -> PoiseConfig:
        """A POISE configuration from a script that still builds a GRPOConfig.

        What the script left at GRPOConfig's default takes POISE's default (two rollouts a prompt, say), which a line of
        the log says: a value that was given and is the default looks the same. What else it set stays, or is refused
        with the reason.

        Raises:
            ConfigError: it is no GRPOConfig, or holds what is refused.
        """
        if isinstance(args, PoiseConfig):
            return args
        if not isinstance(args, GRPOConfig):
            raise ConfigError(f"args must be a PoiseConfig or a GRPOConfig, got {type(args).__name__}")
        adopted = copy.copy(args)
        adopted.__class__ = cls
        theirs = {field.name: field.default for field in fields(GRPOConfig)}
        changed: list[str] = []
        for field_ in fields(cls):
            is_ours = field_.name not in theirs
            if is_ours or (field_.default != theirs[field_.name] == getattr(args, field_.name)):
                setattr(adopted, field_.name, field_.default)
                changed += [] if is_ours else [f"{field_.name} {theirs[field_.name]!r} -> {field_.default!r}"]
        logger.warning(
            "GRPOConfig's defaults become POISE's: %s; a PoiseConfig keeps what it is given", ", ".join(changed)
        )
        adopted._validate()
        return adopted  # pyright: ignore[reportReturnType] (its class was changed above)

    def estimator(self) -> EstimatorConfig:
        """The value estimator's part of the settings."""
        clip: Any = tuple(self.probe_clip) if isinstance(self.probe_clip, list | tuple) else self.probe_clip
        if clip is not None:
            interval("probe_clip", clip)
        chosen = self._decided()
        one_of("probe_head", self.probe_head, get_args(HeadName))
        one_of("probe_weights", chosen["weights"], get_args(WeightName))
        probe = ProbeConfig(
            head=cast(HeadName, self.probe_head),
            prompt_components=self.prompt_components,
            reasoning_components=self.reasoning_components,
            alpha=self.probe_alpha,
            clip=clip,
            sibling_outcome=chosen["sibling_outcome"],
            weights=chosen["weights"],
        )
        return EstimatorConfig(
            baseline=self.chosen_baseline,
            probe=probe,
            capacity=self.buffer_capacity,
            cold_start_rows=chosen["cold_start_rows"],
            cold_start_steps=chosen["cold_start_steps"],
            tracker=TrackerConfig(self.tracker_prior, self.tracker_half_life),
        )

    def state_spec(self, end_of_reasoning: tuple[int, ...]) -> StateSpec:
        """Which internal states are captured, given the token ids that close the reasoning."""
        return StateSpec(self.prompt_layer, self.reasoning_layer, self.state_window, end_of_reasoning)
