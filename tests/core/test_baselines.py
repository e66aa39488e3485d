"""Every baseline with literal numbers, against a plain loop, and under what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.core import BASELINES
from poise.core.baselines import (
    cross_rollout,
    first_known,
    group_mean,
    leave_one_out,
    mean_of_others,
    none,
    other_prompts,
    prompt_value,
    shrinkage,
    siblings_or_own,
)

NAN = math.nan


def close(got: Tensor, wanted: list) -> None:
    torch.testing.assert_close(got, torch.tensor(wanted), equal_nan=True)


def test_two_rollouts_by_hand() -> None:
    rewards, predictions = torch.tensor([[1.0, 0.0], [-3.0, 50.0]]), torch.tensor([[0.9, 0.2], [10.0, 20.0]])
    close(cross_rollout(rewards, predictions), [[0.2, 0.9], [20.0, 10.0]])
    close(leave_one_out(rewards, predictions), [[0.0, 1.0], [50.0, -3.0]])
    close(group_mean(rewards, predictions), [[0.5, 0.5], [23.5, 23.5]])
    close(none(rewards, predictions), [[0.0, 0.0], [0.0, 0.0]])
    close(other_prompts(rewards), [[23.5, 23.5], [0.5, 0.5]])


def test_four_rollouts_with_failures_by_hand() -> None:
    rewards = torch.tensor([[1.0, NAN, 0.0, 2.0], [NAN, NAN, NAN, 5.0], [NAN, NAN, NAN, NAN]])
    close(leave_one_out(rewards, rewards), [[1.0, 1.0, 1.5, 0.5], [5.0, 5.0, 5.0, NAN], [NAN] * 4])
    close(group_mean(rewards, rewards), [[1.0] * 4, [5.0] * 4, [NAN] * 4])
    close(other_prompts(rewards), [[5.0] * 4, [1.0] * 4, [2.0] * 4])


def test_shrinkage_by_hand() -> None:
    # Prompt 1: the others' means are .5 and 0, σ² = .25, V = .125, so τ² = 0, t = .0625, a = .25, λ = .8, m = .25.
    few = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    close(shrinkage(few, few), [[0.0, 1.0], [0.4, 0.4], [0.6, 0.6]])
    # σ² = 1/9, m = 4/9, V = 7/27, τ² = 2/9, t = 25/81, a = 1/18, so λ = 9/59.
    more = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    close(shrinkage(more, more)[:1], [[0.5 - 1 / 118, 0.5 - 1 / 118, 1 - 5 / 59]])


def test_shrinkage_where_the_other_prompts_say_little() -> None:
    alone = torch.tensor([[1.0, 0.0]])
    close(shrinkage(alone, alone), [[0.0, 1.0]])  # nothing to draw towards
    single = torch.tensor([[1.0], [0.0], [2.0]])
    close(shrinkage(single, single), [[1.0], [1.5], [0.5]])  # no sibling: the others' mean
    failed = torch.tensor([[NAN, 1.0], [0.0, 1.0], [1.0, 1.0], [NAN, NAN]])
    # Row 0: others' means .5 and 1, σ² = .25, V = .125, τ² = 0: the second has its sibling's failure, so m = .75.
    close(shrinkage(failed, failed)[:1], [[0.8 * 0.75 + 0.2 * 1.0, 0.75]])


def test_one_prompt_or_one_rollout_has_no_other() -> None:
    assert other_prompts(torch.tensor([[1.0, 2.0]])).isnan().all()
    assert mean_of_others(torch.tensor([[1.0], [2.0]])).isnan().all()


def test_first_known_by_hand() -> None:
    got = first_known(torch.tensor([[1.0, NAN, NAN]]), torch.tensor([[9.0, 2.0, NAN]]), torch.tensor([[9.0, 9.0, NAN]]))
    close(got, [[1.0, 2.0, NAN]])


def test_the_registry_names_each_baseline() -> None:
    wanted = {
        "probe": cross_rollout,
        "leave-one-out": leave_one_out,
        "shrinkage": shrinkage,
        "tracker": prompt_value,
        "critic": prompt_value,
        "prompt-probe": siblings_or_own,
        "auto": cross_rollout,
        "group-mean": group_mean,
        "none": none,
    }
    assert wanted == BASELINES


# --- plain loops ----------------------------------------------------------------------------------------------------


@st.composite
def groups(draw: st.DrawFn) -> Tensor:
    """(P, G) values, some of them missing."""
    prompts, rollouts = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    value = st.one_of(st.just(NAN), st.floats(-50, 50, width=32))
    return torch.tensor(draw(st.lists(value, min_size=prompts * rollouts, max_size=prompts * rollouts))).reshape(
        prompts, rollouts
    )


def mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN


@given(values_PG=groups())
def test_baselines_equal_plain_loops(values_PG: Tensor) -> None:
    rows = values_PG.tolist()
    others = [[mean(row[:i] + row[i + 1 :]) for i in range(len(row))] for row in rows]
    rest = [[value for q, row in enumerate(rows) if q != p for value in row] for p in range(len(rows))]
    pooled = [[mean(values)] * values_PG.shape[1] for values in rest]
    for got, wanted in (
        (cross_rollout(torch.zeros_like(values_PG), values_PG), others),
        (leave_one_out(values_PG, torch.zeros_like(values_PG)), others),
        (group_mean(values_PG, values_PG), [[mean(row)] * len(row) for row in rows]),
        (other_prompts(values_PG), pooled),
    ):
        torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-4, rtol=1e-5, equal_nan=True)


def shrunk_by_loop(rows: list[list[float]], p: int, i: int) -> float:
    """One rollout's baseline from the formulas, over lists."""
    known = [[value for value in row if not math.isnan(value)] for q, row in enumerate(rows) if q != p]
    known = [row for row in known if row]
    siblings = [value for j, value in enumerate(rows[p]) if j != i and not math.isnan(value)]
    free, target = sum(len(row) - 1 for row in known), mean([mean(row) for row in known])
    if not siblings:
        return target
    if len(known) < 2 or free == 0:
        return mean(siblings)
    within = sum((value - mean(row)) ** 2 for row in known for value in row) / free
    variance = sum((mean(row) - target) ** 2 for row in known) / (len(known) - 1)
    noise = within * mean([1 / len(row) for row in known])
    distance = max(0.0, variance - noise) * (1 + 1 / len(known)) + noise / len(known)
    own_noise = within / len(siblings)
    share = own_noise / (own_noise + distance) if own_noise else 0.0
    return (1 - share) * mean(siblings) + share * target


@given(values_PG=groups())
def test_shrinkage_equals_plain_loops(values_PG: Tensor) -> None:
    # In tenths: of values that agree to the last bits, the two sums see different variances.
    values_PG = (values_PG * 10).round() / 10
    rows = values_PG.tolist()
    wanted = [[shrunk_by_loop(rows, p, i) for i in range(len(row))] for p, row in enumerate(rows)]
    got = shrinkage(values_PG, values_PG)
    torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-3, rtol=1e-4, equal_nan=True)


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
@given(values_PG=groups(), seed=st.integers(0, 1000))
def test_order_of_rollouts_and_prompts_does_not_matter(name: str, values_PG: Tensor, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    prompt_P = torch.randperm(values_PG.shape[0], generator=draw)
    rollout_G = torch.randperm(values_PG.shape[1], generator=draw)
    baseline = BASELINES[name]
    moved = baseline(values_PG[prompt_P][:, rollout_G], values_PG[prompt_P][:, rollout_G])
    wanted = baseline(values_PG, values_PG)[prompt_P][:, rollout_G]
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["probe", "leave-one-out", "group-mean"])
@given(values_PG=groups(), scale=st.floats(0.1, 10), shift=st.floats(-50, 50))
def test_baselines_move_with_their_values(name: str, values_PG: Tensor, scale: float, shift: float) -> None:
    baseline = BASELINES[name]
    moved = baseline(scale * values_PG + shift, scale * values_PG + shift)
    wanted = scale * baseline(values_PG, values_PG) + shift
    torch.testing.assert_close(moved, wanted, atol=1e-3, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.0, 50.0])
def test_constant_values_are_their_own_baseline(constant: float) -> None:
    values = torch.full((3, 4), constant)
    for got in (mean_of_others(values), group_mean(values, values), other_prompts(values)):
        assert torch.equal(got, values)


@pytest.mark.parametrize(("size", "spread", "gain"), [(2, 2.0, 0.65), (4, 2.0, 0.9), (8, 0.3, 1.01)])
def test_shrinkage_is_nearer_to_the_pass_rate(size: int, spread: float, gain: float) -> None:
    """Mean squared error against E[r|x], in units of leave-one-out's; Beta(spread, spread) pass rates."""
    torch.manual_seed(0)
    rate_P1 = torch.distributions.Beta(spread, spread).sample((4000, 1))
    rewards_PG = torch.bernoulli(rate_P1.expand(-1, size))
    errors = [(baseline(rewards_PG, rewards_PG) - rate_P1).square().mean() for baseline in (shrinkage, leave_one_out)]
    assert errors[0] < gain * errors[1]
