"""The combination of baselines that chooses itself: its arithmetic, and that it is never worse than leave-one-out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.core.mixture import DISCOUNT, Mixture, Record, combine, simplex_minimum

NAN = math.nan
NAMES = ("leave_one_out", "other_prompts", "probe")


# --- arithmetic -----------------------------------------------------------------------------------------------------


def test_a_record_by_hand() -> None:
    """Two batches; the second knows nothing of candidate 1 in its second row. Weights 1 and 3 are .5 and 1.5."""
    record = Record.empty(2).learnt(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(record.sum_CC, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double())
    torch.testing.assert_close(record.rows_CC, torch.full((2, 2), 2.0).double())
    record = record.learnt(torch.tensor([[1.0, 1.0], [3.0, NAN]]), torch.ones(2))
    kept = DISCOUNT
    wanted = torch.tensor([[2 * kept + 10, kept + 1], [kept + 1, 2 * kept + 1]]).double()
    torch.testing.assert_close(record.sum_CC, wanted)
    rows_CC = torch.tensor([[2 * kept + 2, 2 * kept + 1], [2 * kept + 1, 2 * kept + 1]]).double()
    torch.testing.assert_close(record.rows_CC, rows_CC)
    assert record.best(default=0) == 1


def test_before_anything_is_known_the_first_candidate_serves() -> None:
    assert Record.empty(3).weights().tolist() == [1, 0, 0]
    assert Record.empty(3).best(default=2) == 2
    assert Record.empty(2).learnt(torch.zeros(0, 2), torch.zeros(0)).weights().tolist() == [1, 0]


def test_a_candidate_never_seen_gets_no_weight() -> None:
    weights_C = Record.empty(3).learnt(torch.tensor([[NAN, 1.0, 2.0], [NAN, -1.0, 2.0]]), torch.ones(2)).weights()
    assert float(weights_C[0]) == 0
    assert float(weights_C.sum()) == pytest.approx(1)


def test_two_uncorrelated_candidates_are_weighted_by_precision() -> None:
    """Squared errors 1 and 3: weights 3/4 and 1/4, as for any two independent measurements."""
    weights_C = simplex_minimum(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([True, True]))
    assert weights_C.tolist() == pytest.approx([0.75, 0.25], abs=1e-5)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), rank=st.integers(1, 5))
def test_the_minimum_satisfies_the_optimality_conditions(seed: int, size: int, rank: int) -> None:
    """(Mw)_c is least, and equal, wherever w_c > 0; singular matrices and equal candidates included."""
    errors = torch.randn(rank, size, generator=torch.Generator().manual_seed(seed)).double()
    moments_CC = errors.T @ errors
    weights_C = simplex_minimum(moments_CC, torch.ones(size, dtype=torch.bool))
    assert float(weights_C.sum()) == pytest.approx(1)
    assert bool((weights_C >= 0).all())
    slope_C = moments_CC @ weights_C
    slack = 1e-4 * float(moments_CC.diagonal().mean())
    assert float((slope_C - slope_C.min())[weights_C > 1e-3].max()) <= slack


@given(seed=st.integers(0, 10**6))
def test_combining_equals_plain_loops(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    candidates_BC, weights_BC = torch.randn(6, 3, generator=draw), torch.rand(6, 3, generator=draw)
    candidates_BC[torch.rand(6, 3, generator=draw) < 0.4] = NAN
    weights_BC[torch.rand(6, 3, generator=draw) < 0.3] = 0
    wanted = []
    for values, shares in zip(candidates_BC.tolist(), weights_BC.tolist(), strict=True):
        known = [(value, share) for value, share in zip(values, shares, strict=True) if not math.isnan(value)]
        total = sum(share for _, share in known)
        wanted.append(sum(value * share for value, share in known) / total if total else NAN)
    torch.testing.assert_close(combine(candidates_BC, weights_BC), torch.tensor(wanted), equal_nan=True)


def test_domains_keep_records_of_their_own() -> None:
    mixture, domains_B = Mixture(NAMES), torch.tensor([4, 4, 9])
    candidates_BC = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    mixture.learn(candidates_BC, torch.tensor([1.0, 0.0, NAN]), torch.ones(3), domains_B)
    assert set(mixture.past) == {4}
    assert mixture.rewards_for(domains_B).tolist() == [[1, 2], [1, 2], [0, 0]]
    mixture.learn(candidates_BC[:1], torch.ones(1), torch.full((1,), 4.0), domains_B[:1])
    assert mixture.rewards_for(domains_B).tolist() == [[4.5, 5], [4.5, 5], [0, 0]]  # the first batch half as much
    weights_BC = mixture.weights_for(domains_B)
    torch.testing.assert_close(weights_BC[0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-4, rtol=0)
    assert weights_BC[2].tolist() == [1, 0, 0]  # a domain without a record begins with leave-one-out


# --- simulated streams: how far each baseline is from the true p(x) --------------------------------------------------


def stream(probe_of: list[float], prompts: int, seed: int) -> Tensor:
    """Mean squared distance from p(x), per step: of the combination, and of each candidate. (steps, 1 + C).

    Binary rewards, two rollouts a prompt, p ~ Uniform(0, 1). At each step the probe's error has the given standard
    deviation; NaN where it is cold.
    """
    draw, mixture = torch.Generator().manual_seed(seed), Mixture(NAMES)
    domains_B, steps = torch.zeros(2 * prompts, dtype=torch.long), []
    for deviation in probe_of:
        p_B = torch.rand(prompts, generator=draw).repeat_interleave(2)
        rewards_B = torch.bernoulli(p_B, generator=draw)
        sibling_B = rewards_B.view(-1, 2).flip(1).flatten()
        others_B = (rewards_B.sum() - rewards_B - sibling_B) / (2 * prompts - 2)
        probe_B = (p_B + deviation * torch.randn(2 * prompts, generator=draw)).clamp(0, 1)
        candidates_BC = torch.stack([sibling_B, others_B, probe_B], 1)
        combined_B = combine(candidates_BC, mixture.weights_for(domains_B))
        steps.append((torch.cat([combined_B[:, None], candidates_BC], 1) - p_B[:, None]).square().mean(0))
        mixture.learn(candidates_BC, rewards_B, torch.ones(2 * prompts), domains_B)
    return torch.stack(steps)


def mean_stream(probe_of: list[float], prompts: int = 32, runs: int = 12) -> Tensor:
    return torch.stack([stream(probe_of, prompts, seed) for seed in range(runs)]).mean(0)


@pytest.mark.parametrize("deviation", [0.05, 0.3, 1.0, 5.0, NAN])
def test_never_worse_than_leave_one_out_from_the_first_step(deviation: float) -> None:
    """32 prompts a step, a probe from excellent to absurd to absent: mean of 12 runs, every step."""
    error = mean_stream([deviation] * 8)
    assert torch.equal(error[0, 0], error[0, 1])
    assert bool((error[1:, 0] < error[1:, 1]).all())
    candidates = error[3:, 1:].nan_to_num(math.inf).mean(0)
    # As good as the best of them, but for what a few hundred noisy rewards leave unknown: 1% of leave-one-out's error.
    assert float(error[3:, 0].mean()) < 1.02 * float(candidates.min()) + 0.01 * float(error[:, 1].mean())


def test_recovers_from_a_probe_that_goes_bad_within_five_steps() -> None:
    """A good probe, then one that knows nothing (new layer statistics, flipped rewards), then a good one again."""
    error = mean_stream([0.1] * 10 + [5.0] * 10 + [0.1] * 12)
    combined, leave_one_out = error[:, 0], float(error[:, 1].mean())
    assert float(combined[6:10].max()) < 0.2 * leave_one_out
    assert float(combined[10]) > 0.5 * leave_one_out  # the first bad batch is credited in good faith
    assert float(combined[13:20].max()) < leave_one_out
    assert float(combined[28:32].max()) < 0.5 * leave_one_out


def test_weights_are_those_of_the_variance_not_of_the_error() -> None:
    """Rows of the rare, heavy kind decide: the second candidate is right on them, the first on the many light ones."""
    errors_BC = torch.tensor([[0.1, 1.0]] * 9 + [[1.0, 0.1]])
    light, heavy = torch.ones(10), torch.tensor([1.0] * 9 + [9.0])
    assert Record.empty(2).learnt(errors_BC, light).best(default=0) == 0
    assert float(Record.empty(2).learnt(errors_BC, light).weights()[0]) > 0.8
    assert float(Record.empty(2).learnt(errors_BC, heavy).weights()[0]) == pytest.approx(0.5, abs=1e-3)
