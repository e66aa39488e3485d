"""The probe: standardise -> PCA per hidden block -> ridge or logistic head. Features in, expected reward out.

Fitting is a pure function of (features, targets, config, previous probe); a fitted probe is a frozen bundle of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.features import Features
from poise.core.heads import Head, fit_logistic, fit_ridge
from poise.core.limits import interval, one_of, positive, whole
from poise.core.projection import Projection, fit_projection, usable_scale
from poise.core.scores import relative_weights
from poise.errors import ConfigError

HeadName = Literal["ridge", "logistic"]
WeightName = Literal["none", "score"]
# Penalties to choose from; the published one in the middle.
ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
_PUBLISHED_ALPHA = 100.0


@dataclass(frozen=True)
class ProbeConfig:
    """What the probe sees, and how it is fitted.

    Args:
        head: "ridge", or "logistic" for bounded rewards.
        prompt_components, reasoning_components: principal components kept of each hidden block; None keeps the block
            as it is (paper v2).
        alpha: L2 penalty, in the units of scikit-learn's Ridge (sum of squared errors + alpha * squared weights); None
            takes the one of `ALPHAS` whose predictions erred least on past batches, before they were learnt from.
        clip: range that predictions are clipped to; None learns it from the rewards seen.
        sibling_outcome: the probe also sees what became of the rollout whose states it sees: its reward, so that
            leave-one-out is a special case of the probe, how unsure the policy was of it, and the product of both.
        weights: "score" fits by least squares weighted with the rollouts' squared scores, whose minimiser is the
            baseline of least gradient variance; "none" predicts the expected reward.

    Raises:
        ConfigError: a field that cannot work, named with its value.

    Source: PCA 32 + 64 and alpha 100 are the published Qwen3-4B settings (authors' code and paper v3).
    """

    head: HeadName = "ridge"
    prompt_components: int | None = 32
    reasoning_components: int | None = 64
    alpha: float | None = _PUBLISHED_ALPHA
    clip: tuple[float, float] | None = None
    sibling_outcome: bool = False
    weights: WeightName = "none"

    def __post_init__(self) -> None:
        one_of("head", self.head, get_args(HeadName))
        one_of("weights", self.weights, get_args(WeightName))
        for name in ("prompt_components", "reasoning_components"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=0, hint="; None keeps every column")
        if self.alpha is not None:
            positive("alpha", self.alpha, hint="; a small one such as 0.01 is nearly no penalty")
        if self.clip is not None:
            interval("clip", self.clip)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The penalties that the heads are fitted under."""
        return ALPHAS if self.alpha is None else (self.alpha,)

    @property
    def reads_scores(self) -> bool:
        """Whether the rollouts' squared scores are needed."""
        return self.weights == "score" or self.sibling_outcome

    @property
    def first_choice(self) -> int:
        """Which of them predicts before any has been tried."""
        return ALPHAS.index(_PUBLISHED_ALPHA) if self.alpha is None else 0


@dataclass(frozen=True)
class Probe:
    """A fitted probe g, on one projection of the states.

    Args:
        head: features of a rollout -> expected reward of its siblings; None where no rollout had a sibling.
        prompt_head: the prompt's state alone -> expected reward of any rollout of it; None if it was not asked for.
    """

    prompt: Projection
    reasoning: Projection
    scalars: Scalars
    head: Head | None
    prompt_head: Head | None = None

    def predict(self, features: Features) -> Float[Tensor, " B"]:
        """Expected reward on the reward's own scale, clipped to its range; NaN for rows without features."""
        if self.head is None:
            return torch.full_like(features.prompt_BH[:, 0], torch.nan)
        value_B = self.head.predict(self.design(features)).to(features.prompt_BH)
        return torch.where(features.present_B, value_B, torch.nan)

    def predict_prompt(self, features: Features) -> Float[Tensor, " B"]:
        """The same from the prompt's state alone: a function of the prompt, and so a baseline for the row itself."""
        if self.prompt_head is None:
            return torch.full_like(features.prompt_BH[:, 0], torch.nan)
        value_B = self.prompt_head.predict(self.prompt(features.prompt_BH)).to(features.prompt_BH)
        return torch.where(features.has_prompt_B, value_B, torch.nan)

    def predict_all(self, features: Features) -> Float[Tensor, "B A"]:
        """Predictions under each penalty, by the head that takes siblings, or else the prompt's."""
        if self.head is not None:
            value_BA = self.head.predict_all(self.design(features))
        else:
            assert self.prompt_head is not None
            value_BA = self.prompt_head.predict_all(self.prompt(features.prompt_BH))
        return torch.where(features.present_B[:, None], value_BA, torch.nan)

    def design(self, features: Features) -> Float[Tensor, "B K"]:
        """The probe's regressors: components of both blocks, scalars (absent = mean), and which ones were absent."""
        blocks = self.prompt(features.prompt_BH), self.reasoning(features.reasoning_BH), self.scalars(features)
        return torch.cat(blocks, dim=1)


@dataclass(frozen=True)
class Scalars:
    """Standardises the numbers that may be absent: zero (the mean) where absent, followed by which ones were absent.

    Where both the reward and the surprise are there, their product follows: a right answer that the policy was sure of
    says more of the next one than a lucky one.
    """

    mean_S: Tensor
    scale_S: Tensor
    with_outcome: bool
    with_product: bool

    def __call__(self, features: Features) -> Float[Tensor, "B S2"]:
        if self.with_outcome and self.with_product != (features.squared_score_B is not None):
            had, have = ("", "no ") if self.with_product else ("no ", "")
            raise ConfigError(f"the probe was fitted on features with {had}squared scores, and these carry {have}such")
        scalars_BS = features.scalars(self.with_outcome).to(self.mean_S)
        standard_BS = ((scalars_BS - self.mean_S) / self.scale_S).nan_to_num(0.0, 0.0, 0.0)
        parts = [standard_BS, (~scalars_BS.isfinite()).to(self.mean_S)]
        if self.with_product:
            parts.append(standard_BS[:, -2:].prod(1, keepdim=True))  # the outcome's columns are the last
        return torch.cat(parts, dim=1)

    @staticmethod
    def fit(features: Features, with_outcome: bool) -> Scalars:
        scalars_BS = features.scalars(with_outcome)
        known_BS = scalars_BS.isfinite()
        count_S = known_BS.sum(0).clamp_min(1)
        mean_S = torch.where(known_BS, scalars_BS, 0.0).sum(0) / count_S
        variance_S = torch.where(known_BS, scalars_BS - mean_S, 0.0).square().sum(0) / count_S
        with_product = with_outcome and features.squared_score_B is not None
        return Scalars(mean_S, usable_scale(variance_S.sqrt(), mean_S), with_outcome, with_product)


def fit_probe(
    features: Features,
    targets_B: Float[Tensor, " B"] | None,
    config: ProbeConfig,
    previous: Probe | None = None,
    weights_B: Float[Tensor, " B"] | None = None,
    *,
    own_weights_B: Float[Tensor, " B"] | None = None,
    choice: int | None = None,
) -> Probe:
    """Fit a probe by weighted least squares (or penalised likelihood) on crossed pairs.

    Args:
        features: B rows, all present.
        targets_B: for each row the mean reward of its siblings, any finite scale; None if no row has a sibling.
        config: components, head, penalty, clip range.
        previous: last step's probe, whose basis warm-starts the components.
        weights_B: how much each row's target counts, on any scale; None counts them alike.
        own_weights_B: how much each row's own reward counts. If given, the prompt head is fitted on `reward_B`.
        choice: which of `config.alphas` predicts.

    Raises:
        ConfigError: no row, or a row without features or target.
    """
    columns = [values_B for values_B in (targets_B, weights_B, own_weights_B) if values_B is not None]
    is_known = all(math.isfinite(values_B.sum(dtype=torch.float64)) for values_B in columns)
    if len(features) == 0 or not is_known or not bool(features.present_B.all()):
        raise ConfigError(f"the probe needs at least one row, all finite; got {len(features)} rows")
    previous_of = (previous.prompt, previous.reasoning) if previous is not None else (None, None)
    prompt, prompt_BK = fit_projection(features.prompt_BH, config.prompt_components, previous_of[0])
    reasoning, reasoning_BK = fit_projection(features.reasoning_BH, config.reasoning_components, previous_of[1])
    scalars = Scalars.fit(features, config.sibling_outcome)
    head = prompt_head = None
    if targets_B is not None:
        design_BK = torch.cat((prompt_BK, reasoning_BK, scalars(features)), dim=1)
        head = _fit_head(design_BK, targets_B, weights_B, config, choice)
    if own_weights_B is not None:
        assert features.reward_B is not None
        prompt_head = _fit_head(prompt_BK, features.reward_B, own_weights_B, config, choice)
    return Probe(prompt, reasoning, scalars, head, prompt_head)


def _fit_head(
    design_BK: Tensor, targets_B: Tensor, weights_B: Tensor | None, config: ProbeConfig, choice: int | None
) -> Head:
    targets_B = targets_B.double()
    low, high = config.clip or (float(targets_B.min()), float(targets_B.max()))
    relative_B = None if weights_B is None else relative_weights(weights_B)
    fit = fit_ridge if config.head == "ridge" else fit_logistic
    head = fit(design_BK, targets_B, config.alphas, low, high, relative_B)
    return replace(head, choice=config.first_choice if choice is None else choice)
