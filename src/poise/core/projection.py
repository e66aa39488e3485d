"""The probe's first stage: standardise one hidden block, and project it on its leading principal components.

Everything runs through a few rows at a time, so no second tensor of the buffer's size is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.pieces import pieces

# Up to this many rows or columns an exact eigendecomposition of the smaller Gram matrix costs less than 0.1 s.
_EXACT_UP_TO = 512
# Extra directions that make the subspace iteration converge on the wanted ones (Halko et al. 2011, section 4).
_OVERSAMPLE = 8
_COLD_ITERATIONS, _WARM_ITERATIONS = 4, 1


@dataclass(frozen=True)
class Projection:
    """Standardise one hidden block, then project it: (x - mean) / scale @ basis[:, :kept]; no basis, no projection."""

    mean_H: Tensor
    scale_H: Tensor
    basis_HK: Tensor | None
    kept: int

    def __call__(self, states_BH: Tensor) -> Float[Tensor, "B K"]:
        chunks = _standardised(states_BH, self.mean_H, self.scale_H)
        if self.basis_HK is None:
            return torch.cat(list(chunks))
        return torch.cat([chunk_CH @ self.basis_HK[:, : self.kept] for chunk_CH in chunks])


def fit_projection(
    states_BH: Float[Tensor, "B H"], components: int | None, previous: Projection | None = None
) -> tuple[Projection, Float[Tensor, "B K"]]:
    """Standardise the columns, then find the leading principal components (all columns if `components` is None).

    Exact up to 512 rows or columns; beyond, a randomised subspace iteration with a fixed start, or with the previous
    basis, so that the result is a deterministic function of its arguments.

    Returns:
        the projection, and the rows it was fitted on projected.
    """
    mean_H, scale_H = _moments(states_BH)
    rows, width = states_BH.shape
    if components is None:
        projection = Projection(mean_H, scale_H, None, width)
        return projection, projection(states_BH)
    kept = min(components, rows - 1, width)
    chunks = partial(_standardised, states_BH, mean_H, scale_H)
    if min(rows, width) <= _EXACT_UP_TO:
        projection = Projection(mean_H, scale_H, _exact_basis(chunks, kept, is_tall=rows >= width), kept)
        return projection, projection(states_BH)
    wanted = min(kept + _OVERSAMPLE, rows - 1, width)
    warm_HK = previous.basis_HK if previous is not None else None
    if warm_HK is not None and warm_HK.shape == (width, wanted):
        basis_HK, scores_BK = _iterate(chunks, warm_HK.to(mean_H), _WARM_ITERATIONS)
    else:
        basis_HK, scores_BK = _iterate(chunks, _random_basis(width, wanted).to(mean_H), _COLD_ITERATIONS)
    return Projection(mean_H, scale_H, basis_HK, kept), scores_BK[:, :kept]


def _standardised(states_BH: Tensor, mean_H: Tensor, scale_H: Tensor) -> Iterator[Tensor]:
    inverse_H = 1 / scale_H
    for piece in pieces(states_BH):
        yield (states_BH[piece].to(mean_H) - mean_H).mul_(inverse_H)


def _exact_basis(chunks: Callable[[], Iterator[Tensor]], kept: int, is_tall: bool) -> Tensor:
    if is_tall:
        gram_HH = reduce(torch.add, (chunk_CH.T @ chunk_CH for chunk_CH in map(torch.Tensor.double, chunks())))
        return torch.linalg.eigh(gram_HH).eigenvectors.flip(1)[:, :kept].float()
    x_BH = torch.cat(list(chunks())).double()
    values, left_BK = torch.linalg.eigh(x_BH @ x_BH.T)
    singular_K = values.flip(0)[:kept].clamp_min(0).sqrt()
    # A direction without variance has no principal axis: its column is zero instead of exploding.
    floor = 1e-6 * x_BH.norm() + 1e-12
    inverse_K = torch.where(singular_K > floor, 1 / singular_K, 0.0)
    return (x_BH.T @ (left_BK.flip(1)[:, :kept] * inverse_K)).float()


def _iterate(chunks: Callable[[], Iterator[Tensor]], basis_HK: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Subspace iteration, then rotation of the basis to the principal axes within the subspace (Rayleigh-Ritz)."""
    for _ in range(iterations):
        image_HK = torch.zeros_like(basis_HK)
        for chunk_CH in chunks():
            image_HK.addmm_(chunk_CH.T, chunk_CH @ basis_HK)
        basis_HK = torch.linalg.qr(image_HK).Q
    scores_BK = torch.cat([chunk_CH @ basis_HK for chunk_CH in chunks()])
    exact_BK = scores_BK.double()
    rotation_KK = torch.linalg.eigh(exact_BK.T @ exact_BK).eigenvectors.flip(1).to(scores_BK)
    return basis_HK @ rotation_KK, scores_BK @ rotation_KK


def _random_basis(width: int, wanted: int) -> Tensor:
    return torch.randn(width, wanted, generator=torch.Generator().manual_seed(0))


def usable_scale(deviation: Tensor, mean: Tensor) -> Tensor:
    """What to divide columns by: 1 where one is constant but for rounding, so that it becomes zero."""
    return torch.where(deviation > 1e-6 * mean.abs() + 1e-12, deviation, 1.0)


def _moments(states_BH: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of each column in fp32."""
    mean_H = states_BH.mean(0, dtype=torch.float32)
    sum_H = torch.zeros_like(mean_H, dtype=torch.float64)
    for piece in pieces(states_BH):
        sum_H += (states_BH[piece].to(mean_H) - mean_H).square_().sum(0)
    return mean_H, usable_scale((sum_H / len(states_BH)).sqrt().to(mean_H), mean_H)
