"""Whitening, returns and advantages of single tokens: literal numbers and plain loops."""

from __future__ import annotations

import torch

from poise.core import whiten


def test_whitening_by_hand() -> None:
    used = torch.tensor([[True, True], [False, True]])
    got = whiten(torch.tensor([[1.0, 2.0], [99.0, 6.0]]), used)
    # mean 3, variance (4 + 1 + 9) / 3
    torch.testing.assert_close(got, torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / (14 / 3) ** 0.5)


def test_nothing_to_whiten_is_zero() -> None:
    assert whiten(torch.tensor([2.0, 2.0]), torch.tensor([True, True])).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([2.0, 1.0]), torch.tensor([False, False])).tolist() == [0.0, 0.0]
