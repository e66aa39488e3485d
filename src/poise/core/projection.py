"""The probe's first stage: standardise one hidden block, and project it on its leading principal components.

Everything runs through a few rows at a time, so no second tensor of the buffer's size is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    rows, width = states_BH.shape
    mean_H = states_BH.mean(0, dtype=torch.float32)
    kept = width if components is None else min(components, rows - 1, width)
    if components is not None and width <= min(rows, _EXACT_UP_TO):
        # One pass for scales and axes alike; sums over more than a piece are float64.
        gram_HH = _sum((chunk_CH.T @ chunk_CH).double() for chunk_CH in _centred(states_BH, mean_H))
        scale_H = usable_scale((gram_HH.diagonal() / rows).sqrt().to(mean_H), mean_H)
        vectors_HH = torch.linalg.eigh(gram_HH / scale_H.outer(scale_H)).eigenvectors
        projection = Projection(mean_H, scale_H, vectors_HH.flip(1)[:, :kept].float(), kept)
        return projection, projection(states_BH)
    squares_H = _sum(chunk_CH.square_().sum(0).double() for chunk_CH in _centred(states_BH, mean_H))
    scale_H = usable_scale((squares_H / rows).sqrt().to(mean_H), mean_H)
    chunks = partial(_standardised, states_BH, mean_H, scale_H)
    if components is None or rows <= _EXACT_UP_TO:
        projection = Projection(mean_H, scale_H, None if components is None else _wide_basis(chunks(), kept), kept)
        return projection, projection(states_BH)
    wanted = min(kept + _OVERSAMPLE, rows - 1, width)
    warm_HK = previous.basis_HK if previous is not None else None
    if warm_HK is not None and warm_HK.shape == (width, wanted):
        basis_HK, scores_BK = _iterate(chunks, warm_HK.to(mean_H), _WARM_ITERATIONS)
    else:
        basis_HK, scores_BK = _iterate(chunks, _random_basis(width, wanted).to(mean_H), _COLD_ITERATIONS)
    return Projection(mean_H, scale_H, basis_HK, kept), scores_BK[:, :kept]


def _centred(states_BH: Tensor, mean_H: Tensor) -> Iterator[Tensor]:
    for piece in pieces(states_BH):
        yield states_BH[piece].to(mean_H) - mean_H


def _standardised(states_BH: Tensor, mean_H: Tensor, scale_H: Tensor) -> Iterator[Tensor]:
    inverse_H = 1 / scale_H
    return (chunk_CH.mul_(inverse_H) for chunk_CH in _centred(states_BH, mean_H))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _wide_basis(chunks: Iterable[Tensor], kept: int) -> Tensor:
    x_BH = torch.cat(list(chunks)).double()
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
