"""Fresh values: what a step's prompts are worth to the policy that made it, from rollouts that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise.core import prediction_metrics


@dataclass(frozen=True)
class FreshValues:
    """One value per row of a generated batch.

    Args:
        means: mean reward of the row's prompt over its fresh rollouts; NaN where no verification went through.
        noise: squared standard error of each mean.
        rollouts: how many were sampled.
        seconds: what it took.
    """

    means: list[float]
    noise: list[float]
    rollouts: int
    seconds: float

    def tensor(self, device: torch.device) -> Tensor:
        """(B, 2) means and noise."""
        return torch.tensor([self.means, self.noise], dtype=torch.float64, device=device).T.contiguous()


# Takes the dataset rows of a generated batch on this process; None if the step is not to be tracked.
FreshSampler = Callable[[Sequence[Mapping[str, Any]]], FreshValues | None]


def track_metrics(baselines_B: Tensor, fresh_B2: Tensor) -> dict[str, float]:
    """Agreement of the baselines used with fresh means.

    Returns:
        track_mae, track_bias (baseline minus mean), track_pearson; track_ceiling, the Pearson correlation that the true
        pass rates themselves would reach against means as noisy as these,

            √((Var(mean) − E[noise]) / Var(mean))

    Source: attenuation of a correlation by its target's reliability (Spearman 1904).
    """
    means_B, noise_B = fresh_B2.unbind(1)
    found = prediction_metrics(baselines_B, means_B.to(baselines_B), prefix="track_")
    known_B = means_B.isfinite() & noise_B.isfinite()
    variance = float(means_B[known_B].var(correction=0)) if bool(known_B.any()) else 0.0
    ceiling = math.sqrt(max(0.0, 1 - float(noise_B[known_B].mean()) / variance)) if variance > 1e-12 else math.nan
    return {
        **{name: found[name] for name in ("track_mae", "track_bias", "track_pearson")},
        "track_ceiling": ceiling,
    }
