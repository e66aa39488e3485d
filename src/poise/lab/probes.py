"""Variants of the probe: which features, which layer and window, how many rows, which head; fitted and timed.

All but the MLP go through the product's own `fit_probe`, so that a row of a study is what a training run would use.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core import EstimatorConfig, Features, ProbeConfig, fit_probe
from poise.core.scores import known_weights
from poise.core.trees import map_tensors
from poise.errors import ConfigError
from poise.lab.critic import validates
from poise.lab.mlp import fit_mlp
from poise.lab.policy import Prompts, domain_of, keep, numbered
from poise.lab.rollouts import PROXIES, Rollouts, View
from poise.lab.settings import PolicySettings

WITHOUT_SURPRISE = ("prompt", "reasoning", "entropy")
ALL = (*WITHOUT_SURPRISE, "surprise")


@dataclass(frozen=True)
class Variant:
    """One way to make a probe.

    Args:
        prompt, reasoning: block and window of each state.
        config: components, head, penalty, and whether the sibling's outcome is a regressor.
        parts: of "prompt", "reasoning", "entropy", "length", and "surprise", which only an outcome has.
        rows: training rows, the first ones; all if None.
        weights: which of `PROXIES` of the sibling's squared gradient norm its row is weighted with; all alike if None.
        mlp: a perceptron on the probe's regressors instead of its linear head.
        per_domain: one probe for each domain, as in training: where it has few rows, the one of all domains together.
    """

    prompt: View
    reasoning: View
    config: ProbeConfig
    parts: tuple[str, ...] = ALL
    rows: int | None = None
    weights: str | None = None
    mlp: bool = False
    per_domain: bool = False


@dataclass(frozen=True)
class Training:
    """Crossed pairs that probes are fitted on: two rollouts of each training prompt.

    Args:
        rollouts: both captured.
        domains_P: number of each prompt's domain.
    """

    rollouts: Rollouts
    domains_P: Tensor

    @property
    def usable_B(self) -> Tensor:
        """Rows whose own and whose sibling's reward were verified."""
        return self.rollouts.rewards_PK.isfinite().all(1).repeat_interleave(2)

    @property
    def targets_B(self) -> Tensor:
        """The sibling's reward of every row."""
        return self.rollouts.rewards_PK.flip(1).flatten()

    def weights_B(self, proxy: str) -> Tensor:
        """The sibling's proxy of every row: how much an error of the prediction would weigh."""
        return known_weights(self.rollouts.proxies_PFX[:, :, PROXIES.index(proxy)].flip(1).flatten())

    @property
    def mean(self) -> float:
        return float(self.rollouts.rewards_PK.nanmean())


def verified(prompts: Prompts, train: Rollouts, test: Rollouts, least: int) -> tuple[Training, Rollouts, Prompts]:
    """What a study can use of both splits: held-out prompts with a failed verification are left out.

    Args:
        least: held-out prompts that it needs.

    Raises:
        ConfigError: so many are not left, or no training prompt is.
    """
    known_P = test.rewards_PK.isfinite().all(1)
    kept = keep(prompts, known_P)
    number_of = numbered(kept)
    training = Training(train, torch.tensor([number_of[domain_of(row)] for row in kept.train]))
    for split, left, asked, needed in (
        ("held-out", len(kept.held_out), len(known_P), least),
        ("training", int(training.usable_B.sum()) // 2, len(kept.train), 1),
    ):
        if left < needed:
            raise ConfigError(
                f"the reward judged all rollouts of only {left} of {asked} {split} prompts, and a study needs "
                f"{needed}; mend the reward and give another --out"
            )
    return training, map_tensors(test, lambda tensor: tensor[known_P]), kept


def reference(settings: PolicySettings, prompt: View, reasoning: View) -> Variant:
    """The probe as a training run with these settings would fit it, over all domains."""
    components = [None if n < 0 else n for n in (settings.prompt_components, settings.reasoning_components)]
    config = ProbeConfig(
        prompt_components=components[0], reasoning_components=components[1], alpha=settings.probe_alpha
    )
    return Variant(prompt, reasoning, config)


def with_config(variant: Variant, **changes: object) -> Variant:
    return replace(variant, config=replace(variant.config, **changes))  # pyright: ignore


def features_of(rollouts: Rollouts, variant: Variant) -> Features:
    """The regressors' raw material: states and scalars of every captured rollout; what is left out has no columns."""
    whole = rollouts.features(variant.prompt, variant.reasoning)
    captured = rollouts.entropy_PFE.shape[1]
    scalars = {
        "entropy": whole.entropy_BE,
        "length": rollouts.lengths_PK[:, :captured].reshape(-1, 1).to(whole.entropy_BE),
    }
    columns = [column for name, column in scalars.items() if name in variant.parts]
    return Features(
        whole.prompt_BH if "prompt" in variant.parts else whole.prompt_BH[:, :0],
        whole.reasoning_BH if "reasoning" in variant.parts else whole.reasoning_BH[:, :0],
        torch.cat(columns, dim=1) if columns else whole.entropy_BE[:, :0],
        rollouts.rewards_PK[:, :captured].flatten().float(),
        rollouts.proxies_PFX[..., PROXIES.index("one_minus_pi")].flatten() if "surprise" in variant.parts else None,
    )


def fit_and_predict(
    variant: Variant, training: Training, held_out: Rollouts, domains_P: Tensor, seed: int
) -> tuple[Float[Tensor, "P F"], float]:
    """Predictions from every captured held-out rollout, and the processor seconds of the fit.

    Args:
        domains_P: number of each held-out prompt's domain.
    """
    rows_B = training.usable_B.nonzero()[:, 0][: variant.rows]
    pairs = _Pairs(
        features_of(training.rollouts, variant).select(rows_B),
        training.targets_B[rows_B],
        None if variant.weights is None else training.weights_B(variant.weights)[rows_B],
        rows_B // 2,
    )
    wanted = features_of(held_out, variant)
    captured = held_out.entropy_PFE.shape[1]
    if not variant.per_domain:
        predictions_B, seconds = _fit(variant, pairs, wanted, seed)
        return predictions_B.view(-1, captured), seconds
    predictions_B, total = torch.full((len(wanted),), torch.nan), 0.0
    of_row_B, of_wanted_B = training.domains_P[rows_B // 2], domains_P.repeat_interleave(captured)
    for domain in of_wanted_B.unique().tolist():
        chosen_B, asked_B = of_row_B == domain, of_wanted_B == domain
        if int(chosen_B.sum()) < EstimatorConfig.cold_start_rows:
            chosen_B = torch.ones_like(chosen_B)
        part = _fit(variant, map_tensors(pairs, lambda rows, c=chosen_B: rows[c]), wanted.select(asked_B), seed)
        predictions_B[asked_B], total = part[0], total + part[1]
    return predictions_B.view(-1, captured), total


@dataclass(frozen=True)
class _Pairs:
    features: Features
    targets_B: Tensor
    weights_B: Tensor | None
    prompts_B: Tensor


def _fit(variant: Variant, pairs: _Pairs, wanted: Features, seed: int) -> tuple[Tensor, float]:
    began = time.process_time()
    probe = fit_probe(pairs.features, pairs.targets_B, variant.config, None, pairs.weights_B)
    if not variant.mlp:
        seconds = time.process_time() - began
        return probe.predict(wanted).float(), seconds
    design_BK = probe.design(pairs.features)
    net = fit_mlp(design_BK, pairs.targets_B, validates(pairs.prompts_B), seed)
    return net(probe.design(wanted)), time.process_time() - began
