"""Score vectors: the full gradient of log π(y|x) of single rollouts with respect to every parameter of the policy.

Axis suffixes: `_B` rollouts, `_D` parameters (or dimensions of their projection).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.errors import ConfigError
from poise.lab.rollouts import pad_right

Pair = tuple[list[int], list[int]]  # prompt, response


class Projection:
    """Count sketch: every parameter is added to, or taken from, one of `dimensions` sums.

        (Ps)_k = Σ_{d: h(d) = k} σ(d) s_d,   E⟨Ps, Pt⟩ = ⟨s, t⟩,   Var = O(‖s‖²‖t‖² / dimensions)

    with h uniform and σ = ±1 by chance, fixed for the study. Linear, one pass over the gradient, and unbiased for inner
    products, hence for squared norms and variances. Dimension 0 keeps the gradient as it is.

    Source: Charikar, Chen, Farach-Colton 2002; as a random projection, Weinberger et al. 2009 (feature hashing).
    """

    def __init__(self, parameters: int, dimensions: int, seed: int, device: Any) -> None:
        self.dimensions = dimensions or parameters
        self.is_exact = dimensions == 0
        if not self.is_exact:
            generator = torch.Generator().manual_seed(seed)
            self.bucket_D = torch.randint(dimensions, (parameters,), generator=generator).to(device)
            self.sign_D = (torch.randint(2, (parameters,), generator=generator) * 2 - 1).to(device, torch.float32)

    def __call__(self, vectors_BD: Tensor) -> Tensor:
        if self.is_exact:
            return vectors_BD
        sums = vectors_BD.new_zeros(len(vectors_BD), self.dimensions)
        return sums.index_add_(1, self.bucket_D, vectors_BD * self.sign_D)


def score_vectors(model: Any, pairs: Sequence[Pair], temperature: float, batch: int) -> Iterator[Float[Tensor, "B D"]]:
    """∇_θ Σ_t log π(y_t | x, y_<t) of each rollout, a few rollouts at a time, in order, fp32.

    Args:
        temperature: that the tokens were drawn at.
        batch: rollouts at once, through `torch.func.vmap`; 1 takes plain automatic differentiation.

    Raises:
        ConfigError: the model does not bear `vmap`.
    """
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def log_prob(values: dict[str, Tensor], ids_T: Tensor, mask_T: Tensor) -> Tensor:
        output = torch.func.functional_call(model, values, (ids_T[None],), {"use_cache": False})
        log_p_TV = (output.logits[0, :-1].float() / temperature).log_softmax(-1)
        return (log_p_TV.gather(1, ids_T[1:, None])[:, 0] * mask_T[1:]).sum()

    one = torch.func.grad(log_prob)
    many = torch.func.vmap(one, in_dims=(None, 0, 0))
    for start in range(0, len(pairs), batch):
        ids_BT, mask_BT = _sequences(pairs[start : start + batch], model.device)
        try:
            if batch > 1:
                found = many(parameters, ids_BT, mask_BT)
            else:
                found = {name: value[None] for name, value in one(parameters, ids_BT[0], mask_BT[0]).items()}
        except RuntimeError as error:
            raise ConfigError(
                f"gradients of {batch} rollouts at once failed on this model ({' '.join(str(error).split())[:150]}); "
                "--gradient-batch 1 takes them one by one"
            ) from error
        yield torch.cat([value.flatten(1).float() for value in found.values()], dim=1)


def _sequences(pairs: Sequence[Pair], device: Any) -> tuple[Tensor, Tensor]:
    """Whole sequences padded on the right, where causal attention never looks, and which tokens are the response's."""
    ids_BT = pad_right([prompt + response for prompt, response in pairs], 0)
    mask_BT = pad_right([[0] * len(prompt) + [1] * len(response) for prompt, response in pairs], 0)
    return ids_BT.to(device), mask_BT.to(device)
