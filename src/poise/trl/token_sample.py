"""Token entropies of a few rollouts a step, for whoever wants to look: kept from the forward pass of the capture.

The capture has them anyway (their means are features). Only the sampled rows are copied to the CPU, so a step costs no
forward pass more, and memory for a handful of rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from poise.core import TokenLayout


@dataclass(frozen=True)
class TokenEntropies:
    """One rollout's response, token by token.

    Args:
        row: its place in the generated batch, which is its place in the step's completions file.
        ids: its response tokens.
        nats: entropy of the distribution that each was drawn from.
    """

    row: int
    ids: list[int]
    nats: list[float]


class TokenSample:
    """The first rollouts of each generated batch; what an earlier batch left is overwritten.

    Args:
        rollouts: how many rows of the batch are kept, from the first.
    """

    def __init__(self, rollouts: int) -> None:
        self.rollouts = rollouts
        self._kept: dict[int, TokenEntropies] = {}

    def keep(self, row_B: Int[Tensor, " B"], layout: TokenLayout, nats_BC: Float[Tensor, "B C"]) -> None:
        """Keeps those of these rollouts that belong to the sample.

        Args:
            row_B: place of each in the generated batch, over all processes.
            layout: their tokens.
            nats_BC: entropy at each response token, padding included.
        """
        for place in (row_B < self.rollouts).nonzero()[:, 0].tolist():
            real_C = layout.response_mask_BC[place]
            row = int(row_B[place])
            ids, nats = layout.response_ids_BC[place][real_C], nats_BC[place][real_C]
            self._kept[row] = TokenEntropies(row, ids.tolist(), nats.detach().float().tolist())

    def take(self) -> list[TokenEntropies]:
        """What was kept since the last call, in the batch's order."""
        kept, self._kept = self._kept, {}
        return [kept[row] for row in sorted(kept)]
