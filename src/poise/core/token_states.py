"""Prefix states: which hidden state stands before each response token, and what of it leaves the layer.

The state before token t is the one that produced its logits: the hidden state at the token that precedes t (for the
first response token, the last prompt token). It has seen the prompt and y_1 .. y_{t-1}, and nothing of y_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.core.scores import squared_surprise
from poise.core.tokens import TokenLayout, Window


@dataclass(frozen=True)
class TokenReading:
    """What a capture is to read at the block, beside the pooled states.

    Args:
        before: flattened position of the state before each response token, (B, T).
        columns_BM: response columns of the M sampled tokens of each rollout.
        tokens_B: response tokens of each rollout; each sample stands for tokens_B / M of them.
        vector_H: the folded value; None while there is none, and then only samples are read.
        version: how many updates the value had seen.
    """

    before: Window
    columns_BM: Int[Tensor, "B M"]
    tokens_B: Int[Tensor, " B"]
    vector_H: Float[Tensor, " H"] | None
    version: int

    @staticmethod
    def of(layout: TokenLayout, samples: int, seed: int, vector_H: Tensor | None, version: int) -> TokenReading:
        """The reading of a batch; the same layout, seed and version sample the same tokens."""
        draw = torch.Generator().manual_seed(seed * 1_000_003 + version)
        columns_BM = sampled_columns(layout.response_mask_BC, samples, draw)
        return TokenReading(states_before(layout), columns_BM, layout.response_mask_BC.sum(1), vector_H, version)

    @property
    def sampled(self) -> Window:
        """Positions of the sampled states, (B, M)."""
        index_BM, valid_BM = (part.gather(1, self.columns_BM) for part in (self.before.index_BN, self.before.valid_BN))
        return Window(index_BM, valid_BM)

    @property
    def mask_BT(self) -> Bool[Tensor, "B T"]:
        return self.before.valid_BN


@dataclass(frozen=True)
class TokenSamples:
    """M sampled prefixes of each rollout: what the value is fitted on. Rows may be gathered over ranks.

    Args:
        states_BMH: fp32 states before the sampled tokens.
        projections_BM: their product with the folded value; NaN while there is none.
        surprise_BM: (1 - π_t)² of the sampled token, a proxy of its squared score.
        place_BM: where the token stands in its response, 0 = first, towards 1 = last.
        tokens_B: as in `TokenReading`; 0 for a rollout without a token.
        version: as in `TokenReading`.
    """

    states_BMH: Float[Tensor, "B M H"]
    projections_BM: Float[Tensor, "B M"]
    surprise_BM: Float[Tensor, "B M"]
    place_BM: Float[Tensor, "B M"]
    tokens_B: Int[Tensor, " B"]
    version: int


@dataclass(frozen=True)
class TokenStates:
    """What left the layer in one forward pass.

    Args:
        projections_BT: state before each response token times the folded value; NaN where there is no token or no
            value.
        samples: for the next fit.
    """

    projections_BT: Float[Tensor, "B T"]
    samples: TokenSamples

    @staticmethod
    def of(
        reading: TokenReading, projections_BT: Tensor, states_BMH: Tensor, log_probs_BT: Float[Tensor, "B T"]
    ) -> TokenStates:
        """Join what the hook read with the log-probabilities (nats) of the same forward pass."""
        columns_BM = reading.columns_BM
        rank_BT = reading.mask_BT.cumsum(1) - 1
        samples = TokenSamples(
            states_BMH,
            projections_BT.gather(1, columns_BM),
            squared_surprise(log_probs_BT).gather(1, columns_BM),
            rank_BT.gather(1, columns_BM) / reading.tokens_B.clamp_min(1)[:, None],
            reading.tokens_B,
            reading.version,
        )
        return TokenStates(projections_BT, samples)


def states_before(layout: TokenLayout) -> Window:
    """Flattened position of the state before each response token: that of the real token that precedes it."""
    mask_BC = layout.response_mask_BC
    column_1C = torch.arange(mask_BC.shape[1], device=mask_BC.device)[None]
    here_BC = torch.where(mask_BC, layout.response_start_B[:, None] + column_1C, -1)
    last_prompt = layout.prompt_window(1)
    first_B1 = torch.where(last_prompt.valid_BN, last_prompt.index_BN, -1)
    before_BC = torch.cat([first_B1, here_BC[:, :-1]], 1).cummax(1).values
    return Window(before_BC.clamp_min(0), mask_BC & (before_BC >= 0))


def sampled_columns(mask_BC: Bool[Tensor, "B C"], samples: int, draw: torch.Generator) -> Int[Tensor, "B M"]:
    """One response token from each of M equal stretches of every response, so that all tokens are drawn alike often.

    A response of fewer than M tokens gives some of them twice; one of none gives column 0, which counts for nothing.
    """
    offset_BM = torch.rand(len(mask_BC), samples, generator=draw).to(mask_BC.device)
    stretch_1M = torch.arange(samples, device=mask_BC.device)[None]
    tokens_B1 = mask_BC.sum(1, keepdim=True)
    rank_BM = ((stretch_1M + offset_BM) / samples * tokens_B1).long().clamp_max((tokens_B1 - 1).clamp_min(0))
    column_BC = (~mask_BC).int().argsort(dim=1, stable=True)  # real tokens first, in order
    return column_BC.gather(1, rank_BM)
