"""Which prompts a step trains on: their order from epoch to epoch, and what they are called across steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from poise.core import prompt_id


class SeededByEpoch(Sampler[int]):
    """TRL's sampler, shuffled anew from seed + epoch at the start of each epoch.

    TRL's own draws every epoch from one generator, which a resumed run starts again: its later epochs then differ from
    those of the uninterrupted run. The first epoch is the same.

    Args:
        sampler: TRL's.
        begun: the epoch that the run is in, by its own count.
    """

    def __init__(self, sampler: Any, begun: Callable[[], int]) -> None:
        self.sampler, self.begun = sampler, begun
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch. On several ranks it does not get here in an epoch resumed midway."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + max(self._epoch, self.begun()))
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def prompt_ids(output: dict[str, Any]) -> Tensor:
    """`core.prompt_id` of each row's prompt tokens, padding left out."""
    ids_BT, mask_BT = output["prompt_ids"], output["prompt_mask"].bool()
    numbers = [prompt_id(tokens[mask].tolist()) for tokens, mask in zip(ids_BT, mask_BT, strict=True)]
    return torch.tensor(numbers, device=ids_BT.device)
