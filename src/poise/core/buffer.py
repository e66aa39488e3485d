"""The probe's memory: a rolling buffer of crossed pairs, evicted by whole prompt groups, oldest first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.core.features import Features
from poise.core.pieces import pieces
from poise.core.trees import cat_tensors, map_tensors, tensors_of
from poise.errors import ConfigError


@dataclass(frozen=True)
class CrossedPairs:
    """Rows (z_i -> mean reward of i's siblings), rows of a group adjacent, all of them usable.

    Args:
        features: of rollout i, its own reward included.
        targets_B, target_weights_B: as in `Credit`: what z_i is to predict of its siblings, and how much that counts.
        weights_B: i's own weight.
        groups_B: which rows are siblings.
    """

    features: Features
    targets_B: Float[Tensor, " B"]
    target_weights_B: Float[Tensor, " B"]
    weights_B: Float[Tensor, " B"]
    groups_B: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.targets_B)

    def select(self, rows: Tensor | slice) -> CrossedPairs:
        return map_tensors(self, lambda tensor: tensor[rows])

    @staticmethod
    def cat(parts: list[CrossedPairs]) -> CrossedPairs:
        return cat_tensors(parts)


class RollingBuffer:
    """The newest `capacity` rows, in whole prompt groups.

    The rows stay in one block of memory that is reused from step to step: `pairs` is a view of it, which the next
    `append` changes.

    Args:
        capacity: rows. A group that does not fit whole is evicted whole.

    Source: 4096 rows for math, whole groups evicted (authors' code).
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"the buffer needs a capacity of at least one row, got {capacity}")
        self.capacity = capacity
        self.groups_seen = 0
        self._storage: CrossedPairs | None = None
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    @property
    def filled(self) -> int:
        """Rows held; its capacity once groups had to go, since whole ones seldom fill it to the last row."""
        has_evicted = self._storage is not None and int(self._storage.groups_B[0]) > 0
        return max(self._rows, self.capacity) if has_evicted else self._rows

    @property
    def pairs(self) -> CrossedPairs | None:
        """The rows held, oldest first; None as long as there are none."""
        return None if self._storage is None else self._storage.select(slice(0, self._rows))

    def restore(self, pairs: CrossedPairs, groups_seen: int) -> None:
        """Continue from what a checkpoint held; the checkpoint keeps its own copy."""
        self._storage = map_tensors(pairs, torch.clone)
        self._rows, self.groups_seen = len(pairs), groups_seen

    def append(self, pairs: CrossedPairs) -> None:
        """Add a step's pairs and evict the oldest groups beyond the capacity."""
        if len(pairs) == 0:
            return
        _, local_B = pairs.groups_B.unique(return_inverse=True)
        order_B = local_B.argsort(stable=True)
        new = pairs.select(order_B)
        new = replace(new, groups_B=local_B[order_B] + self.groups_seen)
        self.groups_seen += int(local_B.max()) + 1
        held = self.pairs
        evicted = self._first_kept(new.groups_B if held is None else torch.cat([held.groups_B, new.groups_B]))
        old_rows = max(0, self._rows - evicted)
        new = new.select(slice(max(0, evicted - self._rows), None))
        self._make_room(old_rows + len(new), new)
        assert self._storage is not None
        for stored, added in zip(tensors_of(self._storage), tensors_of(new), strict=True):
            _move_up(stored, evicted, old_rows)
            stored[old_rows : old_rows + len(added)] = added
        self._rows = old_rows + len(new)

    def _first_kept(self, groups_B: Tensor) -> int:
        excess = len(groups_B) - self.capacity
        if excess <= 0:
            return 0
        # Groups are numbered in order of arrival, so the first group that lies wholly beyond the excess is found by
        # its number; the newest group always stays.
        straddling = groups_B[excess - 1]
        kept = int((groups_B <= straddling).sum())
        return kept if kept < len(groups_B) else int((groups_B < groups_B[-1]).sum())

    def _make_room(self, rows: int, like: CrossedPairs) -> None:
        """Grow the storage to `rows` rows; twofold, so that filling the buffer copies each row only a few times."""
        held = self.pairs
        if self._storage is not None and len(self._storage) >= rows:
            return
        size = max(rows, min(2 * rows, self.capacity))
        self._storage = map_tensors(like, lambda tensor: tensor.new_empty(size, *tensor.shape[1:]))
        if held is not None:
            for stored, old in zip(tensors_of(self._storage), tensors_of(held), strict=True):
                stored[: len(old)] = old


def _move_up(rows: Tensor, by: int, count: int) -> None:
    """Move rows by .. by+count to the front, in pieces that stay in the cache (source and target may overlap)."""
    for piece in pieces(rows[: count if by else 0]):
        rows[piece] = rows[piece.start + by : piece.stop + by].clone()
