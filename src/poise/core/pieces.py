"""Rows at a time: as many as stay in the processor's cache, so that no second tensor of a buffer's size is ever made.

Fresh memory costs more than the arithmetic (docs/log.md), so whatever walks over the buffer does it in these pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

# 128 rows of 2,560 numbers measured twice as fast as whole matrices; of narrow rows, so many that starting an
# operation costs little beside running it.
_LEAST_ROWS, _NUMBERS = 128, 2**16


def pieces(rows_B: Tensor) -> Iterator[slice]:
    """The rows of a tensor, a piece at a time; one empty piece where it has no row.

    >>> import torch
    >>> list(pieces(torch.empty(200, 2560)))
    [slice(0, 128, None), slice(128, 200, None)]
    >>> list(pieces(torch.empty(1000, 96)))
    [slice(0, 682, None), slice(682, 1000, None)]
    """
    size = max(_LEAST_ROWS, _NUMBERS // max(1, math.prod(rows_B.shape[1:])))
    for start in range(0, max(1, len(rows_B)), size):
        yield slice(start, min(start + size, len(rows_B)))
