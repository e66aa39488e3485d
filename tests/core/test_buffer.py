"""The rolling buffer against a list of groups: whole groups come and go, oldest first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.core import Features
from poise.core.buffer import CrossedPairs, RollingBuffer
from poise.errors import ConfigError


def pairs_of(sizes: list[int], first: float = 0.0) -> CrossedPairs:
    """Groups of the given sizes; every row carries its own number in each of its columns."""
    rows = sum(sizes)
    number_B = torch.arange(float(rows)) + first
    groups_B = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = Features(number_B[:, None].repeat(1, 3), number_B[:, None].repeat(1, 2), number_B[:, None])
    return CrossedPairs(features, number_B, number_B, number_B, groups_B)


def rows_in(buffer: RollingBuffer) -> list[float]:
    """The numbers of the rows held; all columns of a row must agree."""
    pairs = buffer.pairs
    assert pairs is not None
    assert len(pairs) == len(buffer)
    wide = torch.cat([pairs.features.prompt_BH, pairs.features.reasoning_BH, pairs.features.entropy_BE], 1)
    wide = torch.cat([wide, pairs.target_weights_B[:, None], pairs.weights_B[:, None]], 1)
    assert torch.equal(wide, pairs.targets_B[:, None].expand_as(wide))
    return pairs.targets_B.tolist()


def test_eviction_by_hand() -> None:
    buffer = RollingBuffer(capacity=6)
    assert len(buffer) == 0
    assert buffer.pairs is None
    buffer.append(pairs_of([2, 2]))
    assert rows_in(buffer) == [0, 1, 2, 3]
    buffer.append(pairs_of([2], first=4))
    assert rows_in(buffer) == [0, 1, 2, 3, 4, 5]
    buffer.append(pairs_of([3], first=6))  # three rows too many: two whole pairs have to go
    assert rows_in(buffer) == [4, 5, 6, 7, 8]
    buffer.append(pairs_of([1], first=9))
    assert rows_in(buffer) == [4, 5, 6, 7, 8, 9]
    assert buffer.pairs is not None
    assert buffer.pairs.groups_B.tolist() == [2, 2, 3, 3, 3, 4]


def test_a_step_larger_than_the_buffer_leaves_its_newest_groups() -> None:
    buffer = RollingBuffer(capacity=4)
    buffer.append(pairs_of([2]))
    buffer.append(pairs_of([2, 2, 2], first=2))
    assert rows_in(buffer) == [4, 5, 6, 7]


def test_a_group_larger_than_the_buffer_stays_whole() -> None:
    buffer = RollingBuffer(capacity=3)
    buffer.append(pairs_of([2, 5]))
    assert rows_in(buffer) == [2, 3, 4, 5, 6]
    buffer.append(pairs_of([2], first=7))
    assert rows_in(buffer) == [7, 8]


def test_interleaved_groups_are_brought_together() -> None:
    pairs = pairs_of([1] * 6)
    buffer = RollingBuffer(capacity=4)
    buffer.append(replace(pairs, groups_B=torch.tensor([7, 3, 7, 3, 900, 900])))
    assert rows_in(buffer) == [0, 2, 4, 5]


def test_the_same_group_number_in_a_later_step_is_another_group() -> None:
    buffer = RollingBuffer(capacity=5)
    for step in range(3):
        buffer.append(pairs_of([2], first=2.0 * step))
    assert rows_in(buffer) == [2, 3, 4, 5]


def test_no_rows_change_nothing() -> None:
    buffer = RollingBuffer(capacity=5)
    buffer.append(pairs_of([2]).select(slice(0, 0)))
    assert len(buffer) == 0
    buffer.append(pairs_of([2]))
    buffer.append(pairs_of([2]).select(slice(0, 0)))
    assert rows_in(buffer) == [0, 1]
    assert buffer.groups_seen == 1


@given(
    capacity=st.integers(1, 300),
    steps=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=8),
)
def test_buffer_equals_a_list_of_groups(capacity: int, steps: list[list[int]]) -> None:
    buffer, held, number = RollingBuffer(capacity), [], 0.0
    for sizes in steps:
        buffer.append(pairs_of(sizes, number))
        for size in sizes:
            held.append([number + i for i in range(size)])
            number += size
        while len(held) > 1 and sum(map(len, held)) > capacity:
            held.pop(0)
        assert rows_in(buffer) == [row for group in held for row in group]


def test_memory_is_reused_once_the_buffer_is_full() -> None:
    def address(buffer: RollingBuffer) -> int:
        assert buffer.pairs is not None
        return buffer.pairs.features.prompt_BH.data_ptr()

    buffer = RollingBuffer(capacity=200)
    buffer.append(pairs_of([2] * 100))
    before = address(buffer)
    for step in range(3):
        buffer.append(pairs_of([2] * 30, first=200.0 + 60 * step))
    assert address(buffer) == before
    assert rows_in(buffer) == [float(row) for row in range(180, 380)]


def test_restored_rows_are_a_copy() -> None:
    source = pairs_of([2, 2])
    buffer = RollingBuffer(capacity=4)
    buffer.restore(source, groups_seen=2)
    buffer.append(pairs_of([2], first=9))
    assert rows_in(buffer) == [2, 3, 9, 10]
    assert source.targets_B.tolist() == [0, 1, 2, 3]


def test_appended_rows_are_a_copy() -> None:
    source: Tensor = torch.arange(2.0)
    buffer = RollingBuffer(capacity=4)
    buffer.append(CrossedPairs(Features(*[source[:, None]] * 3), source, source, source, torch.tensor([0, 0])))
    source += 100
    assert rows_in(buffer) == [0, 1]


def test_buffer_refuses_no_capacity() -> None:
    with pytest.raises(ConfigError, match="at least one row, got 0"):
        RollingBuffer(0)
