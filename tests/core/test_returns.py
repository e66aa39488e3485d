"""Whitening, returns and advantages of single tokens: literal numbers and plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.core import gae, whiten

VALUES = torch.tensor([[0.5, 0.25, 0.75]])
ONE, ALL = torch.tensor([1.0]), torch.ones(1, 3)


@pytest.mark.parametrize(
    ("lam", "wanted"),
    [
        (1.0, [0.5, 0.75, 0.25]),  # r - V_t
        (0.0, [-0.25, 0.5, 0.25]),  # V_{t+1} - V_t, and r - V_T at the end
        (0.5, [0.0625, 0.625, 0.25]),  # .25; .5 + .5 * .25; -.25 + .5 * .625
    ],
)
def test_by_hand(lam: float, wanted: list[float]) -> None:
    torch.testing.assert_close(gae(VALUES, ONE, ALL, lam), torch.tensor([wanted]))


def test_tokens_that_the_policy_did_not_write_are_passed_over() -> None:
    values = torch.tensor([[0.5, math.nan, 0.25, 0.75, 9.0]])
    mask = torch.tensor([[1, 0, 1, 1, 0]])
    torch.testing.assert_close(gae(values, ONE, mask, 0.5), torch.tensor([[0.0625, 0.0, 0.625, 0.25, 0.0]]))
    torch.testing.assert_close(gae(values, ONE, mask), torch.tensor([[0.5, 0.0, 0.75, 0.25, 0.0]]))


def test_a_failed_reward_marks_its_own_row_only() -> None:
    for lam in (0.5, 1.0):
        result = gae(VALUES.expand(2, 3), torch.tensor([math.nan, 1.0]), ALL.expand(2, 3), lam)
        assert result[0, 2].isnan()
        assert result[1].isfinite().all()


@given(seed=st.integers(0, 10**6), lam=st.sampled_from([0.0, 0.3, 0.95, 1.0]), tokens=st.integers(1, 9))
def test_equals_a_plain_loop(seed: int, lam: float, tokens: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(3, tokens, generator=draw), torch.randn(3, generator=draw)
    mask = torch.rand(3, tokens, generator=draw) > 0.3
    wanted = torch.zeros(3, tokens)
    for b in range(3):
        columns = mask[b].nonzero().flatten().tolist()
        chain = [float(values[b, t]) for t in columns] + [float(rewards[b])]
        for place, column in enumerate(columns):
            wanted[b, column] = sum(
                lam**k * (chain[place + k + 1] - chain[place + k]) for k in range(len(columns) - place)
            )
    torch.testing.assert_close(gae(values, rewards, mask, lam), wanted, atol=1e-5, rtol=1e-5)


def test_whitening_by_hand() -> None:
    used = torch.tensor([[True, True], [False, True]])
    got = whiten(torch.tensor([[1.0, 2.0], [99.0, 6.0]]), used)
    # mean 3, variance (4 + 1 + 9) / 3
    torch.testing.assert_close(got, torch.tensor([[-2.0, -1.0], [0.0, 3.0]]) / (14 / 3) ** 0.5)


def test_nothing_to_whiten_is_zero() -> None:
    assert whiten(torch.tensor([2.0, 2.0]), torch.tensor([True, True])).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([2.0, 1.0]), torch.tensor([False, False])).tolist() == [0.0, 0.0]


# --- unbiased, exactly: two tokens of three kinds, a policy with a logit per prefix and token -------------------------

KINDS = 3


def exact_and_expected(lam: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """∇E[r], and E[Σ_t A_t ∇log π(y_t|s_t)] with the values (of the empty prefix, then of each first token)."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(1 + KINDS, KINDS, generator=draw).double().requires_grad_()
    rewards = torch.randn(KINDS, KINDS, generator=draw).double()
    log_p = logits.log_softmax(1)
    probability = log_p[0].exp()[:, None] * log_p[1:].exp()
    (exact,) = torch.autograd.grad((probability * rewards).sum(), logits, retain_graph=True)
    both, surrogate = torch.ones(1, 2, dtype=torch.bool), torch.zeros((), dtype=torch.float64)
    for first, second in itertools.product(range(KINDS), repeat=2):
        seen = torch.stack([values[0], values[1 + first]])[None]
        advantages = gae(seen, rewards[first, second][None], both, lam)[0]
        term = advantages[0] * log_p[0, first] + advantages[1] * log_p[1 + first, second]
        surrogate = surrogate + probability[first, second].detach() * term
    (expected,) = torch.autograd.grad(surrogate, logits)
    return exact, expected


def test_any_critic_is_unbiased_at_lambda_one_and_a_wrong_one_is_not_below() -> None:
    values = torch.tensor([0.3, -1.0, 2.0, 0.5]).double()
    exact, expected = exact_and_expected(1.0, values)
    torch.testing.assert_close(expected, exact, rtol=1e-12, atol=1e-12)
    exact, biased = exact_and_expected(0.5, values)
    assert (biased - exact).norm() / exact.norm() > 0.1
