"""The self-choosing baseline as a training run makes it: taught on a study's training rollouts, batch by batch.

It weighs its candidates by how they did on past batches, so it needs a stream of them; a probe fitted once does not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from poise.core import EstimatorConfig, ValueEstimator
from poise.core import Rollouts as Batch
from poise.core.trees import map_tensors
from poise.lab.moments import Method
from poise.lab.probes import Training, Variant, features_of
from poise.lab.rollouts import Rollouts

# A run that has seen few rollouts made small steps: so many batches, however many rollouts there are.
_BATCHES = 16


def taught(variant: Variant, training: Training) -> ValueEstimator:
    """An estimator with baseline "auto" that has credited every training rollout, and then learnt from it.

    Args:
        variant: its probe, which sees the sibling's outcome; rows are weighted as in training.
        training: two rollouts of each prompt, all of which the buffer holds at the end.
    """
    batch = _batch(training.rollouts, variant, training.domains_P)
    rows = len(batch.rewards_B)
    probe = replace(variant.config, weights="score")
    estimator = ValueEstimator(EstimatorConfig("auto", probe, capacity=max(rows, EstimatorConfig.capacity)))
    for prompts in torch.arange(rows // 2).tensor_split(min(_BATCHES, rows // 2)):
        estimator.update(estimator.credit(_rows(batch, prompts[:, None] * 2 + torch.arange(2))))
    return estimator


def streamed(name: str, estimator: ValueEstimator, variant: Variant, held_out: Rollouts, domains_P: Tensor) -> Method:
    """What the estimator, as it stands, credits held-out rollouts with; all prompts are one batch.

    Args:
        domains_P: number of each held-out prompt's domain.
    """
    batch, captured = _batch(held_out, variant, domains_P), held_out.entropy_PFE.shape[1]

    @cache  # every metric asks for the same
    def credited(chosen: tuple[int, ...]) -> Tensor:
        rows_Mm = torch.arange(len(domains_P))[:, None] * captured + torch.tensor(chosen)
        return estimator.credit(_rows(batch, rows_Mm)).baselines_B.view(-1, len(chosen))

    return Method(name, lambda rewards, chosen: credited(tuple(chosen)), 2)


def _batch(rollouts: Rollouts, variant: Variant, domains_P: Tensor) -> Batch:
    """Every captured rollout in the engine's terms, prompt by prompt."""
    captured = rollouts.entropy_PFE.shape[1]
    groups_B, features = torch.arange(len(domains_P)).repeat_interleave(captured), features_of(rollouts, variant)
    return Batch(
        rollouts.rewards_PK[:, :captured].flatten(),
        groups_B,
        features=features,
        domains_B=domains_P[groups_B] + 1,  # 0 is the probe of all domains
        weights_B=features.squared_score_B,
    )


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return map_tensors(batch, lambda column_B: column_B[rows.flatten()])
