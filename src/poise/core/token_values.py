"""Token-level values: a baseline for each token from the prefix before it and from the sibling.

    V_t = clip(h_t · v + c + (1 + γ) b),   A_t = r − V_t   (or GAE with λ < 1)

h_t is the hidden state before token t, b the rollout's cross-rollout baseline. (v, c, γ) come from past batches: a
ridge regression of r − b on (h_t, b), so that much penalty, or nothing to learn, leaves the sequence-level baseline b.

    reading --capture--> TokenStates --advantages--> (B, T), policy update --update--> buffer, refit
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from poise.core.buffer import RollingBuffer
from poise.core.prefixes import Prefixes, PrefixValue, fit_value
from poise.core.returns import gae
from poise.core.rollouts import Credit
from poise.core.token_states import TokenReading, TokenSamples, TokenStates
from poise.core.tokens import TokenLayout
from poise.core.trees import flatten, map_tensors, restore
from poise.errors import ConfigError

_THIRDS = 3


@dataclass(frozen=True)
class TokenValuesConfig:
    """How the value before each token is fitted.

    Args:
        gae_lambda: λ of the advantages; 1 is unbiased, below 1 is not.
        samples: prefixes kept of each rollout.
        capacity: prefixes in the buffer. In bytes: 4 · H each, 168 MB at 16,384 and H = 2,560.
        cold_start: prefixes that the value must have been fitted on before it is used; b alone until then.
        components: principal components of the states; None keeps them as they are.
        alpha: L2 penalty. A rollout's prefixes say much the same, so it is the probe's 100 times about `samples`.
        weights: "score" weighs each prefix with its token's squared score, as the probe's fit does.
    """

    gae_lambda: float = 1.0
    samples: int = 8
    capacity: int = 16_384
    cold_start: int = 2_048
    components: int | None = 64
    alpha: float = 1000.0
    weights: Literal["none", "score"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.gae_lambda <= 1:
            raise ConfigError(f"gae_lambda must lie between 0 and 1, got {self.gae_lambda}")
        if self.samples < 1:
            raise ConfigError(f"a token value needs at least one sampled prefix per rollout, got {self.samples}")
        if not 1 <= self.cold_start <= self.capacity:
            raise ConfigError(
                f"cold_start={self.cold_start} prefixes must lie between 1 and the buffer's capacity={self.capacity}"
            )


class TokenValues:
    """The token-level value of one training run: what to read, the advantages, and the next fit.

    Args:
        config: how it is fitted.
        seed: of the sampled positions.
        is_main, broadcast: as in `ValueEstimator`; all processes must call `update` with the same rows.
    """

    def __init__(
        self,
        config: TokenValuesConfig,
        seed: int = 0,
        *,
        is_main: bool = True,
        broadcast: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.config, self.seed = config, seed
        self.buffer: RollingBuffer[Prefixes] = RollingBuffer(config.capacity)
        self.value: PrefixValue | None = None
        self.version = 0
        self._is_main, self._broadcast = is_main, broadcast

    @property
    def warm(self) -> PrefixValue | None:
        """The value in use; None while it has been fitted on too few prefixes."""
        return self.value if len(self.buffer) >= self.config.cold_start else None

    def reading(self, layout: TokenLayout) -> TokenReading:
        """What a capture is to read of this batch."""
        vector_H = self.warm.vector_H if self.warm is not None else None
        return TokenReading.of(layout, self.config.samples, self.seed, vector_H, self.version)

    @torch.no_grad()
    def advantages(self, tokens: TokenStates, credit: Credit, mask_BT: Tensor) -> Float[Tensor, "B T"]:
        """A_t of every token, from this batch's states and the value as it stands; 0 where a rollout is not used.

        Args:
            tokens: what the capture read of the rollouts of `credit`.
            credit: rewards and sequence-level baselines, same rows.
            mask_BT: the policy's tokens.

        Raises:
            ConfigError: the states were read for another version of the value.
        """
        self._check(tokens.samples)
        values_BT = self._values(tokens.projections_BT, credit.baselines_B)
        advantages_BT = gae(values_BT, credit.rewards_B.to(values_BT), mask_BT, self.config.gae_lambda)
        return torch.where(credit.used_B[:, None], advantages_BT, 0.0)

    @torch.no_grad()
    def update(self, samples: TokenSamples, credit: Credit) -> dict[str, float]:
        """Learn from a batch whose advantages are fixed.

        Args:
            samples: of all rollouts of the batch, on all ranks alike.
            credit: the same rows. Where the probe was still cold, b is of another kind than the one that V will be
                used with; such rows teach nothing once the probe is there.

        Returns:
            The step's metrics, by name.

        Raises:
            ConfigError: the batch was read for another version; each batch updates exactly once.
        """
        self._check(samples)
        metrics = token_metrics(samples, self._values(samples.projections_BM, credit.baselines_B), credit)
        usable_B = credit.used_B & (samples.tokens_B > 0) & samples.states_BMH.isfinite().all(2).all(1)
        if bool(credit.from_probe_B.any()):
            usable_B &= credit.from_probe_B
        if bool(usable_B.any()):
            self.buffer.append(_prefixes(samples, credit, usable_B, self.config))
            self._refit()
        self.version += 1
        return metrics | {"token_buffer_rows": float(len(self.buffer))}

    def _values(self, projections_BN: Tensor, baselines_B: Tensor) -> Tensor:
        if self.warm is None:
            return baselines_B[:, None].to(projections_BN).expand_as(projections_BN)
        return self.warm(projections_BN, baselines_B)

    def _refit(self) -> None:
        rows = self.buffer.pairs
        if self._is_main and rows is not None and len(rows) >= self.config.cold_start:
            self.value = map_tensors(
                fit_value(rows, self.config.components, self.config.alpha, self.value), torch.Tensor.contiguous
            )
        self.value = self._broadcast(self.value)

    def _check(self, samples: TokenSamples) -> None:
        if samples.version != self.version:
            raise ConfigError(
                f"these token states were read at version {samples.version}, the value is at {self.version}; read, "
                "credit, then update with a batch once"
            )

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": name -> tensor, "meta": JSON values}, as `ValueEstimator.state_dict`."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        if self.value is not None:
            flatten(self.value, "tokens.value", tensors, scalars)
        if self.buffer.pairs is not None:
            flatten(map_tensors(self.buffer.pairs, torch.clone), "tokens.buffer", tensors, scalars)
        meta = {"version": self.version, "rollouts_seen": self.buffer.groups_seen, "scalars": scalars}
        return {"tensors": tensors, "meta": meta}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Continue from `state_dict`, on `device`."""
        meta = state["meta"]
        tensors = map_tensors(dict(state["tensors"]), lambda tensor: tensor.to(device))
        held = {name.split(".")[1] for name in tensors if name.startswith("tokens.")}
        self.version = int(meta["version"])
        self.value = restore(PrefixValue, "tokens.value", tensors, meta["scalars"]) if "value" in held else None
        self.buffer = RollingBuffer(self.config.capacity)
        if "buffer" in held:
            self.buffer.restore(restore(Prefixes, "tokens.buffer", tensors, {}), int(meta["rollouts_seen"]))


def _prefixes(samples: TokenSamples, credit: Credit, usable_B: Tensor, config: TokenValuesConfig) -> Prefixes:
    """Rows of the usable rollouts, weighted so that every token counts equally, or by its squared score."""
    states_BMH = samples.states_BMH[usable_B]
    rollouts, per_rollout, width = states_BMH.shape

    def repeated(values_B: Tensor) -> Tensor:
        return values_B[usable_B].repeat_interleave(per_rollout)

    weights_B = repeated(samples.tokens_B.float() / per_rollout)
    if config.weights == "score":
        weights_B = weights_B * samples.surprise_BM[usable_B].flatten()
    groups_B = torch.arange(rollouts, device=states_BMH.device).repeat_interleave(per_rollout)
    rows = states_BMH.reshape(-1, width)
    return Prefixes(rows, repeated(credit.baselines_B), repeated(credit.rewards_B), weights_B, groups_B)


def token_metrics(samples: TokenSamples, values_BM: Float[Tensor, "B M"], credit: Credit) -> dict[str, float]:
    """How good V was on this batch, before it learns from it; estimated at the sampled prefixes.

    Names: token_gain = 1 − Σ s²(r − V)² / Σ s²(r − b)², s² the squared-score proxy of a token: the share of the
    gradient's variance that V removes where b was, below 0 if it adds; token_explained_variance_1 to _3 =
    1 − Σ (r − V)² / Σ (r − mean)² over the first to last third of the responses.
    """
    used_B = credit.used_B & (samples.tokens_B > 0)
    values_BM, rewards_B1 = values_BM[used_B].double(), credit.rewards_B[used_B, None].double()
    tokens_B1 = samples.tokens_B[used_B, None].double()
    error_BM, base_B1 = (rewards_B1 - values_BM).square(), (rewards_B1 - credit.baselines_B[used_B, None]).square()
    score_BM = samples.surprise_BM[used_B] * tokens_B1
    metrics = {"token_gain": 1 - _ratio(score_BM * error_BM, score_BM * base_B1)}
    spread_B1 = (rewards_B1 - rewards_B1.mean()).square()
    third_BM = (samples.place_BM[used_B] * _THIRDS).long()
    for third in range(_THIRDS):
        weight_BM = tokens_B1 * (third_BM == third)
        share = _ratio(weight_BM * error_BM, weight_BM * spread_B1)
        metrics[f"token_explained_variance_{third + 1}"] = 1 - share
    return metrics


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    total = float(denominator.sum())
    return float(numerator.sum()) / total if total > 1e-12 else math.nan
