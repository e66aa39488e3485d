"""Squared scores and the weights made of them: literal numbers, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.core.scores import MAX_RATIO, effective_rows, known_weights, relative_weights, squared_score


def test_squared_score_by_plain_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    pi_BT, mask_BT = torch.rand(5, 7, generator=draw), torch.rand(5, 7, generator=draw) > 0.4
    wanted = [
        sum((1 - float(pi_BT[i, t])) ** 2 for t in range(7) if mask_BT[i, t]) for i in range(5)
    ]  # fmt: skip
    torch.testing.assert_close(squared_score(pi_BT.log(), mask_BT), torch.tensor(wanted))


def test_masked_tokens_are_inert() -> None:
    log_probs_BT = torch.tensor([[-1.0, math.nan, -math.inf]])
    assert float(squared_score(log_probs_BT, torch.tensor([[1, 0, 0]]))) == pytest.approx((1 - math.exp(-1)) ** 2)
    assert float(squared_score(log_probs_BT, torch.zeros(1, 3))) == 0.0


def test_squared_score_keeps_no_graph() -> None:
    assert not squared_score(torch.zeros(2, 3, requires_grad=True) - 1, torch.ones(2, 3)).requires_grad


def test_an_extreme_row_is_held_at_ten_times_the_mean() -> None:
    """99 rows of 1 and one of 901: the mean is 10, so the one counts 100, and the new mean is 1.99."""
    weights_B = torch.ones(100)
    weights_B[7] = 901
    relative_B = relative_weights(weights_B)
    assert float(relative_B[7]) == pytest.approx(100 / 1.99)
    assert float(relative_B[0]) == pytest.approx(1 / 1.99)
    assert MAX_RATIO == 10


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_the_scale_of_weights_does_not_matter(values: list[float], scale: float) -> None:
    weights_B = torch.tensor(values, dtype=torch.float64)
    relative_B = relative_weights(weights_B)
    torch.testing.assert_close(relative_weights(scale * weights_B), relative_B)
    assert float(relative_B.mean()) == pytest.approx(1)


def test_weights_that_are_missing_are_zero() -> None:
    assert known_weights(torch.tensor([1.0, 3.0, math.nan, math.inf, -1.0, 0.0])).tolist() == [1, 3, 0, 0, 0, 0]


def test_effective_rows() -> None:
    assert effective_rows(torch.full((8,), 3.0)) == pytest.approx(8)
    assert effective_rows(torch.tensor([1.0, 0.0])) == 1.0
