"""Returns and advantages of single tokens, and what PPO and SPO do to advantages before the loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def whiten(values: Float[Tensor, "*shape"], used: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(A − mean) / standard deviation over what is used; 0 elsewhere, and everywhere if all used values are equal.

    >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]

    Mean and deviation contain each rollout's own advantage, so the gradient is no longer unbiased.

    Source: arXiv 2509.13232 (over a batch's rollouts); PPO as run on language models (over its tokens).
    """
    if not bool(used.any()):
        return torch.zeros_like(values)
    centered = torch.where(used, values - values[used].mean(), 0.0)
    deviation = centered[used].square().mean().sqrt()
    return centered / deviation if float(deviation) > 1e-8 else torch.zeros_like(values)
