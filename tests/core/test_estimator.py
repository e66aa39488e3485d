"""ValueEstimator: who gets which baseline, what is learnt from, and in which order."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poise.core import (
    Credit,
    EstimatorConfig,
    Features,
    Probe,
    ProbeConfig,
    Rollouts,
    ValueEstimator,
    credit_metrics,
    domain_id,
    fit_probe,
    load_state,
    save_state,
)
from poise.core.probe import ALPHAS
from poise.core.trees import map_tensors
from poise.errors import ConfigError

NAN = math.nan
PROBE = ProbeConfig(prompt_components=None, reasoning_components=None, alpha=1.0)


def batch_of(prompts: int, size: int = 2, seed: int = 0, domain: str | None = None) -> Rollouts:
    """Rewards follow the prompt's state, so that a probe learns something."""
    draw = torch.Generator().manual_seed(seed)
    rows = prompts * size
    groups_B = torch.arange(prompts).repeat_interleave(size)
    prompt_BH = torch.randn(prompts, 4, generator=draw).repeat_interleave(size, 0)
    reasoning_BH = prompt_BH + 0.1 * torch.randn(rows, 4, generator=draw)
    rewards_B = (prompt_BH[:, 0] + 0.5 * torch.randn(rows, generator=draw) > 0).float()
    features = Features(prompt_BH, reasoning_BH, torch.rand(rows, 3, generator=draw))
    domains_B = None if domain is None else torch.full((rows,), domain_id(domain))
    return Rollouts(rewards_B, groups_B, features, domains_B)


def scored(batch: Rollouts, scores_B: Tensor) -> Rollouts:
    """The batch with squared scores, for the fit and for what the probe sees."""
    return replace(batch, features=replace(batch.features, squared_score_B=scores_B), weights_B=scores_B)


def joined(parts: list[Rollouts]) -> Rollouts:
    """Several batches as one, group numbers kept apart."""
    groups = [part.groups_B + 1000 * i for i, part in enumerate(parts)]
    features = Features.cat([part.features for part in parts if part.features is not None])
    domains = [part.domains_B for part in parts if part.domains_B is not None]
    return Rollouts(
        torch.cat([part.rewards_B for part in parts]),
        torch.cat(groups),
        features,
        torch.cat(domains) if domains else None,
    )


def estimator_of(steps: int = 0, **options: Any) -> ValueEstimator:
    made = ValueEstimator(EstimatorConfig(**{"probe": PROBE, "capacity": 64, "cold_start_rows": 8, **options}))
    for step in range(steps):
        made.update(made.credit(batch_of(8, seed=step)))
    return made


def with_rewards(batch: Rollouts, rewards: dict[int, float]) -> Rollouts:
    rewards_B = batch.rewards_B.clone()
    for row, reward in rewards.items():
        rewards_B[row] = reward
    return replace(batch, rewards_B=rewards_B)


def without_features(batch: Rollouts, rows: list[int]) -> Rollouts:
    assert batch.features is not None
    prompt_BH = batch.features.prompt_BH.clone()
    prompt_BH[rows] = NAN
    return replace(batch, features=replace(batch.features, prompt_BH=prompt_BH))


def probe_of(estimator: ValueEstimator, key: int = 0) -> Probe:
    return estimator.probes[key]


# --- credit ---------------------------------------------------------------------------------------------------------


def reference_baselines(
    predictions: list[float], rewards: list[float], groups: list[int], earlier: list[list[float]]
) -> list[float]:
    """The rules of `credit` by plain loops: siblings' predictions, siblings' rewards, the other prompts' rewards.

    Earlier batches, each half as much as the one after it, join the last.
    """

    def mean(values: list[float], faded: tuple[float, float] = (0.0, 0.0)) -> float:
        known = [value for value in values if math.isfinite(value)]
        total, count = sum(known) + faded[0], len(known) + faded[1]
        return total / count if count else NAN

    faded = (0.0, 0.0)
    for batch in earlier:
        faded = (faded[0] / 2 + sum(batch), faded[1] / 2 + len(batch))

    result = []
    for i, group in enumerate(groups):
        siblings = [j for j, other in enumerate(groups) if other == group and j != i]
        others = [rewards[j] for j, other in enumerate(groups) if other != group]
        of_siblings = mean([predictions[j] for j in siblings]), mean([rewards[j] for j in siblings])
        candidates = (*of_siblings, mean(others, faded))
        result.append(next((value for value in candidates if not math.isnan(value)), NAN))
    return result


@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=5),
    failed=st.sets(st.integers(0, 39), max_size=15),
    absent=st.sets(st.integers(0, 39), max_size=15),
    steps=st.sampled_from([0, 2]),
    seed=st.integers(0, 10**6),
)
def test_credit_equals_plain_loops(sizes: list[int], failed: set, absent: set, steps: int, seed: int) -> None:
    """Groups of any size in any order, failed rewards and absent features anywhere, cold and warm."""
    rows = sum(sizes)
    groups_B = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups_B = groups_B[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))]
    batch = replace(batch_of(rows, 1, seed), groups_B=groups_B)
    batch = with_rewards(batch, {row: NAN for row in failed if row < rows})
    batch = without_features(batch, [row for row in absent if row < rows])
    estimator = estimator_of(steps)
    credit = estimator.credit(batch)
    predictions_B = torch.full((rows,), NAN) if steps == 0 else probe_of(estimator).predict(batch.features)
    earlier = [batch_of(8, seed=step).rewards_B.tolist() for step in range(steps)]
    wanted = reference_baselines(predictions_B.tolist(), batch.rewards_B.tolist(), groups_B.tolist(), earlier)
    torch.testing.assert_close(credit.predictions_B, predictions_B, equal_nan=True)
    torch.testing.assert_close(credit.baselines_B, torch.tensor(wanted), equal_nan=True)
    used_B = batch.rewards_B.isfinite() & torch.tensor(wanted).isfinite()
    assert torch.equal(credit.used_B, used_B)
    torch.testing.assert_close(credit.advantages_B[used_B], (batch.rewards_B - torch.tensor(wanted))[used_B])
    assert (credit.advantages_B[~used_B] == 0).all()


def test_two_rollouts_swap_their_predictions() -> None:
    estimator, batch = estimator_of(2), batch_of(3)
    credit = estimator.credit(batch)
    own_B = probe_of(estimator).predict(batch.features)
    assert torch.equal(credit.baselines_B, own_B[[1, 0, 3, 2, 5, 4]])
    assert torch.equal(credit.advantages_B, batch.rewards_B - credit.baselines_B)
    assert torch.equal(credit.targets_B, batch.rewards_B[[1, 0, 3, 2, 5, 4]])
    assert credit.from_probe_B.all()


@pytest.mark.parametrize(
    ("baseline", "wanted"),
    [
        ("leave-one-out", [0.5, 1.0, 0.5, 49.0, 51.0]),
        ("group-mean", [2 / 3, 2 / 3, 2 / 3, 50.0, 50.0]),
        ("none", [0.0] * 5),
        ("probe", [0.5, 1.0, 0.5, 49.0, 51.0]),  # cold: leave-one-out
    ],
)
def test_each_baseline_by_hand(baseline: str, wanted: list[float]) -> None:
    features = Features(torch.randn(5, 4), torch.randn(5, 4), torch.rand(5, 3)) if baseline == "probe" else None
    batch = Rollouts(torch.tensor([1.0, 0.0, 1.0, 51.0, 49.0]), torch.tensor([4, 4, 4, 2, 2]), features)
    credit = estimator_of(baseline=baseline).credit(batch)
    torch.testing.assert_close(credit.baselines_B, torch.tensor(wanted))
    torch.testing.assert_close(credit.advantages_B, batch.rewards_B - torch.tensor(wanted))
    assert not credit.from_probe_B.any()


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_failed_reward_is_not_a_zero(bad: float) -> None:
    estimator = estimator_of(2)
    batch = with_rewards(batch_of(3), {0: bad, 4: bad, 5: bad})
    credit = estimator.credit(batch)
    assert credit.used_B.tolist() == [False, True, True, True, False, False]
    assert credit.advantages_B[[0, 4, 5]].tolist() == [0.0, 0.0, 0.0]
    # The failed rollout's states are fine: its sibling still gets the probe's prediction from them.
    assert credit.from_probe_B[1]
    assert credit.baselines_B[1] == probe_of(estimator).predict(batch.features)[0]
    before = len(estimator.buffers[0])
    metrics = estimator.update(credit)
    assert len(estimator.buffers[0]) == before + 2  # rows 2 and 3; row 1 has no target
    assert (metrics["failed"], metrics["unused"]) == (3.0, 3.0)
    assert all(math.isfinite(metrics[name]) for name in ("reward_mean", "variance_ratio", "mae"))


def test_a_reward_too_large_for_float32_has_failed() -> None:
    batch = replace(batch_of(2), rewards_B=torch.tensor([1e300, 0.0, 1.0, 0.0], dtype=torch.float64))
    credit = estimator_of().credit(batch)
    assert credit.used_B.tolist() == [False, True, True, True]
    assert credit.baselines_B[1] == 0.5  # of the other prompt


def test_siblings_of_failures_fall_back_to_the_other_prompts_when_cold() -> None:
    batch = with_rewards(batch_of(3), {0: NAN, 1: 1.0, 2: 0.0, 3: 1.0, 4: 1.0, 5: 1.0})
    credit = estimator_of().credit(batch)
    assert credit.baselines_B[1] == pytest.approx(0.75)
    assert credit.advantages_B[1] == pytest.approx(0.25)


def test_a_rollout_with_no_baseline_at_all_leaves_the_update() -> None:
    credit = estimator_of().credit(batch_of(1, 1))
    assert credit.used_B.tolist() == [False]
    assert credit.baselines_B.isnan().all()
    assert credit.advantages_B.tolist() == [0.0]
    metrics = estimator_of().update(credit)
    assert metrics["unused"] == 1.0


def test_everything_failed() -> None:
    estimator = estimator_of(2)
    before = estimator.state_dict()["tensors"]
    credit = estimator.credit(with_rewards(batch_of(2), dict.fromkeys(range(4), NAN)))
    metrics = estimator.update(credit)
    assert not credit.used_B.any()
    assert (metrics["failed"], metrics["buffer_rows"]) == (4.0, 32.0)
    after = estimator.state_dict()["tensors"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_absent_features_leave_the_buffer_and_their_siblings_take_rewards() -> None:
    estimator = estimator_of(2)
    batch = without_features(batch_of(2), [0])
    credit = estimator.credit(batch)
    assert credit.from_probe_B.tolist() == [True, False, True, True]
    assert credit.baselines_B[1] == batch.rewards_B[0]
    assert credit.predictions_B.isnan().tolist() == [True, False, False, False]
    before = len(estimator.buffers[0])
    estimator.update(credit)
    assert len(estimator.buffers[0]) == before + 3


@given(seed=st.integers(0, 10**6), size=st.sampled_from([2, 3, 4, 8]))
def test_the_order_and_the_numbers_of_groups_do_not_matter(seed: int, size: int) -> None:
    estimator, batch = estimator_of(2), batch_of(4, size, seed)
    order_B = torch.randperm(4 * size, generator=torch.Generator().manual_seed(seed))
    shuffled = Rollouts(batch.rewards_B[order_B], 7 - 3 * batch.groups_B[order_B], batch.features.select(order_B))
    mine, plain = estimator.credit(shuffled), estimator.credit(batch)
    torch.testing.assert_close(mine.baselines_B, plain.baselines_B[order_B])
    torch.testing.assert_close(mine.targets_B, plain.targets_B[order_B])


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.0, 50.0])
@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_constant_rewards_end_in_zero_advantages(constant: float, head: str) -> None:
    estimator = estimator_of(probe=replace(PROBE, head=head))
    for seed in range(3):
        credit = estimator.credit(with_rewards(batch_of(8, seed=seed), dict.fromkeys(range(16), constant)))
        torch.testing.assert_close(credit.advantages_B, torch.zeros(16))
        estimator.update(credit)
    assert credit.from_probe_B.all()


@settings(max_examples=12)
@given(scale=st.floats(0.5, 50), shift=st.floats(-50, 50))
def test_advantages_scale_with_the_rewards_and_ignore_their_offset(scale: float, shift: float) -> None:
    plain, moved = estimator_of(), estimator_of()
    for seed in range(3):
        batch = batch_of(8, seed=seed)
        credit = plain.credit(batch)
        other = moved.credit(replace(batch, rewards_B=scale * batch.rewards_B + shift))
        torch.testing.assert_close(
            other.advantages_B, scale * credit.advantages_B, atol=1e-4 * (scale + abs(shift)), rtol=1e-4
        )
        plain.update(credit)
        moved.update(other)


@pytest.mark.parametrize("baseline", ["probe", "auto"])
@pytest.mark.parametrize("scale", [2.0**-27, 2.0**30])
def test_rewards_of_any_size_are_credited_alike(baseline: str, scale: float) -> None:
    """What the probe sees of a sibling's reward, and what a combination makes of errors, has no unit."""
    plain, scaled = (estimator_of(baseline=baseline, probe=replace(PROBE, sibling_outcome=True)) for _ in range(2))
    for seed in range(4):
        batch = scored(batch_of(8, seed=seed), 1 + torch.arange(16.0))
        credit = plain.credit(batch)
        other = scaled.credit(replace(batch, rewards_B=scale * batch.rewards_B))
        torch.testing.assert_close(other.advantages_B / scale, credit.advantages_B, atol=1e-5, rtol=1e-5)
        plain.update(credit)
        scaled.update(other)


def test_the_probe_needs_features() -> None:
    batch = replace(batch_of(2), features=None)
    with pytest.raises(ConfigError, match="needs features"):
        estimator_of().credit(batch)
    assert estimator_of(baseline="leave-one-out").credit(batch).used_B.all()


def test_credit_keeps_no_graph() -> None:
    batch = batch_of(8)
    grad = batch.features.map(lambda tensor: tensor.requires_grad_())
    estimator = estimator_of(1)
    credit = estimator.credit(replace(batch, features=grad))
    estimator.update(credit)
    assert not credit.advantages_B.requires_grad
    assert not estimator.buffers[0].pairs.features.prompt_BH.requires_grad


# --- order ----------------------------------------------------------------------------------------------------------


def test_a_batch_updates_once_and_in_order() -> None:
    estimator = estimator_of(1)
    first, second = estimator.credit(batch_of(2)), estimator.credit(batch_of(2, seed=1))
    estimator.update(first)
    for late in (first, second):
        with pytest.raises(ConfigError, match="credited at probe version 1, the estimator is at 2"):
            estimator.update(late)
    assert len(estimator.buffers[0]) == 16 + 4


def test_crediting_changes_nothing() -> None:
    estimator = estimator_of(2)
    before = estimator.state_dict()
    estimator.credit(batch_of(5, seed=9))
    after = estimator.state_dict()
    assert before["meta"] == after["meta"]
    assert all(torch.equal(before["tensors"][name], after["tensors"][name]) for name in before["tensors"])


def test_credit_is_frozen_while_the_probe_moves_on() -> None:
    estimator = estimator_of(2)
    credit = estimator.credit(batch_of(8, seed=5))
    frozen = credit.map(torch.clone)
    for seed in range(6):  # far enough for the buffer to reuse all of its memory
        estimator.update(credit if seed == 0 else estimator.credit(batch_of(8, seed=seed)))
    assert torch.equal(credit.advantages_B, frozen.advantages_B)
    assert torch.equal(credit.features.prompt_BH, frozen.features.prompt_BH)


def test_the_probe_learns_exactly_the_crossed_pairs() -> None:
    """z_i -> mean reward of i's siblings, for every step so far, newest rows only."""
    estimator, parts = estimator_of(capacity=24), [batch_of(4, 3, seed=seed) for seed in range(3)]
    for part in parts:
        estimator.update(estimator.credit(part))
    rewards_PG = torch.cat([part.rewards_B for part in parts]).reshape(-1, 3)
    targets_B = ((rewards_PG.sum(1, keepdim=True) - rewards_PG) / 2).flatten()[-24:]
    features = Features.cat([part.features for part in parts]).select(slice(12, None))
    wanted = fit_probe(features, targets_B, PROBE)
    new = batch_of(5, seed=77).features
    torch.testing.assert_close(probe_of(estimator).predict(new), wanted.predict(new))


def reference_pairs(batch: Rollouts) -> list[tuple[float, float]]:
    """Target and weight of each row by plain loops: over the siblings that have a reward."""
    rewards, groups, weights = batch.rewards_B.tolist(), batch.groups_B.tolist(), batch.weights_B.tolist()
    pairs = []
    for j, group in enumerate(groups):
        siblings = [i for i, other in enumerate(groups) if other == group and i != j and math.isfinite(rewards[i])]
        total = sum(weights[i] for i in siblings)
        target = sum(weights[i] * rewards[i] for i in siblings) / total if siblings else NAN
        pairs.append((target, total / len(siblings) if siblings else NAN))
    return pairs


@given(size=st.sampled_from([2, 3, 8]), failed=st.sets(st.integers(0, 31), max_size=6), seed=st.integers(0, 10**6))
def test_weighted_pairs_equal_plain_loops(size: int, failed: set[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    batch = with_rewards(batch_of(4, size, seed), {row: NAN for row in failed if row < 4 * size})
    batch = replace(batch, weights_B=torch.rand(4 * size, generator=draw) + 0.1)
    credit = estimator_of(probe=replace(PROBE, weights="score")).credit(batch)
    wanted = torch.tensor(reference_pairs(batch))
    torch.testing.assert_close(credit.targets_B, wanted[:, 0], equal_nan=True)
    torch.testing.assert_close(credit.target_weights_B, wanted[:, 1], equal_nan=True)


def test_the_probe_is_fitted_with_the_weights_of_the_siblings() -> None:
    probe = replace(PROBE, weights="score", sibling_outcome=True)
    estimator, parts = estimator_of(probe=probe), []
    for seed in range(2):
        batch = batch_of(4, 2, seed)
        parts.append(scored(batch, 1 + torch.arange(8.0)))
        estimator.update(estimator.credit(parts[-1]))
    swapped = torch.arange(8).view(4, 2).flip(1).flatten()
    features = Features.cat([replace(part.features, reward_B=part.rewards_B) for part in parts])
    targets_B = torch.cat([part.rewards_B[swapped] for part in parts])
    wanted = fit_probe(features, targets_B, probe, weights_B=(1 + torch.arange(8.0))[swapped].repeat(2))
    rewards_B, scores_B = torch.tensor([1.0, 0.0, NAN, 1.0, 0.0] * 2), torch.arange(10.0)
    new = replace(batch_of(5, seed=77).features, reward_B=rewards_B, squared_score_B=scores_B)
    torch.testing.assert_close(probe_of(estimator).predict(new), wanted.predict(new))


def test_a_weighted_probe_or_one_that_sees_outcomes_needs_weights_and_another_ignores_them() -> None:
    for needs in ({"weights": "score"}, {"sibling_outcome": True}):
        with pytest.raises(ConfigError, match="needs the rollouts' squared scores"):
            estimator_of(probe=replace(PROBE, **needs)).credit(batch_of(2))
    weighted = replace(batch_of(2), weights_B=torch.tensor([1.0, 9.0, NAN, 0.0]))
    assert estimator_of().credit(weighted).weights_B.tolist() == [1, 1, 1, 1]


# --- cold start -----------------------------------------------------------------------------------------------------


def test_cold_start_by_rows() -> None:
    estimator, shares = estimator_of(cold_start_rows=20), []
    for seed in range(4):
        shares.append(estimator.update(estimator.credit(batch_of(4, seed=seed)))["probe_share"])
    assert shares == [0.0, 0.0, 0.0, 1.0]  # 8, 16, then 24 rows


def test_a_full_buffer_is_enough_where_whole_groups_leave_a_gap() -> None:
    """Groups of three never fill eight rows, nor do pairs beside a group that lost one."""
    estimator = estimator_of(capacity=8, cold_start_rows=8)
    for step in range(3):
        assert not estimator.credit(batch_of(2, 3)).from_probe_B.any()
        estimator.update(estimator.credit(batch_of(1, 3, seed=step)))
    assert len(estimator.buffers[0]) == 6
    assert estimator.credit(batch_of(2, 3)).from_probe_B.all()


def test_cold_start_by_steps() -> None:
    estimator, shares = estimator_of(cold_start_rows=1, cold_start_steps=3), []
    for seed in range(5):
        shares.append(estimator.update(estimator.credit(batch_of(4, seed=seed)))["probe_share"])
    assert shares == [0.0, 0.0, 0.0, 1.0, 1.0]


# --- domains --------------------------------------------------------------------------------------------------------


def test_a_young_domain_uses_the_shared_probe_until_its_own_is_warm() -> None:
    estimator = estimator_of(cold_start_rows=16)
    math_id, code_id = domain_id("math"), domain_id("code")
    for seed in range(2):
        estimator.update(estimator.credit(batch_of(8, seed=seed, domain="math")))
    assert set(estimator.probes) == {0}  # one domain needs no probe of its own
    mixed = joined([batch_of(8, seed=3, domain="math"), batch_of(2, seed=4, domain="code")])
    estimator.update(estimator.credit(mixed))
    assert set(estimator.probes) == {0, math_id, code_id}
    assert estimator.fitted_rows == {0: 52, math_id: 48, code_id: 4}
    new = joined([batch_of(3, seed=5, domain="math"), batch_of(3, seed=6, domain="code")])
    credit = estimator.credit(new)
    assert torch.equal(credit.predictions_B[:6], probe_of(estimator, math_id).predict(new.features.select(slice(0, 6))))
    assert torch.equal(credit.predictions_B[6:], probe_of(estimator, 0).predict(new.features.select(slice(6, 12))))
    assert credit.from_probe_B.all()


def test_domains_keep_buffers_of_their_own() -> None:
    estimator = estimator_of(capacity=16)
    for seed in range(3):
        estimator.update(
            estimator.credit(joined([batch_of(2, seed=seed, domain="math"), batch_of(8, seed=seed, domain="code")]))
        )
    assert {key: len(buffer) for key, buffer in estimator.buffers.items()} == {
        domain_id("math"): 12,
        domain_id("code"): 16,
    }


def test_a_domain_without_usable_rows_is_no_error() -> None:
    estimator = estimator_of()
    silent = with_rewards(batch_of(2, domain="code"), dict.fromkeys(range(4), NAN))
    for seed in range(2):
        metrics = estimator.update(estimator.credit(joined([batch_of(8, seed=seed, domain="math"), silent])))
    assert set(estimator.buffers) == {domain_id("math")}
    assert metrics["buffer_rows"] == 32.0
    credit = estimator.credit(batch_of(2, seed=5, domain="tools"))  # never seen before
    assert credit.from_probe_B.all()


# --- the prompt's own probe, and the combination --------------------------------------------------------------------


def test_single_rollouts_are_credited_from_their_prompt_s_state() -> None:
    estimator = estimator_of(baseline="prompt-probe")
    shares = []
    for seed in range(3):
        batch = batch_of(16, 1, seed)
        credit = estimator.credit(batch)
        shares.append(float(credit.from_probe_B.float().mean()))
        metrics = estimator.update(credit)
    assert shares == [0.0, 1.0, 1.0]
    assert len(estimator.buffers[0]) == 48
    assert probe_of(estimator).head is None
    assert metrics["pearson"] > 0.3  # the batch's rewards follow the prompt's state
    assert torch.equal(credit.baselines_B, credit.predictions_B)


def test_the_penalty_is_chosen_by_single_rollouts_too() -> None:
    """What is recorded of a batch are the errors of the probe that had not seen it, under each penalty."""
    estimator = estimator_of(baseline="prompt-probe", probe=replace(PROBE, alpha=None))
    estimator.update(estimator.credit(batch_of(16, 1)))
    batch, probe = batch_of(16, 1, seed=1), probe_of(estimator)
    assert batch.features is not None
    errors_BA = (batch.rewards_B[:, None] - probe.predict_all(batch.features)).double()
    metrics = estimator.update(estimator.credit(batch))
    expected_AA = errors_BA.T @ errors_BA / len(batch.rewards_B)
    torch.testing.assert_close(estimator.bank.records[0].moments_CC, expected_AA)
    assert metrics["alpha"] == ALPHAS[int(errors_BA.square().mean(0).argmin())]


def test_a_run_that_went_from_single_rollouts_to_groups() -> None:
    """Rows without a sibling teach the prompt's head only; the other is fitted on the rows that have one."""
    estimator = estimator_of(baseline="prompt-probe")
    estimator.update(estimator.credit(batch_of(16, 1)))
    grouped = batch_of(8, 2, seed=1)
    credit = estimator.credit(grouped)
    estimator.update(credit)
    assert len(estimator.buffers[0]) == 32
    assert credit.features is not None
    alone = fit_probe(credit.features, credit.targets_B, PROBE, own_weights_B=torch.ones(16))
    new = batch_of(4, 2, seed=2).features
    assert new is not None
    torch.testing.assert_close(probe_of(estimator).predict(new), alone.predict(new))


def test_a_critic_s_values_are_the_baselines() -> None:
    estimator = estimator_of(baseline="critic")
    groups_B, rewards_B = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.0, 1.0, NAN])
    values_B = torch.tensor([0.5, 0.5, 0.25, 0.25])
    credit = estimator.credit(Rollouts(rewards_B, groups_B, values_B=values_B))
    assert credit.baselines_B.tolist() == [0.5, 0.5, 0.25, 0.25]
    assert credit.advantages_B.tolist() == [0.5, -0.5, 0.75, 0.0]
    metrics = estimator.update(credit)
    assert metrics["mae"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert metrics["prediction_mean"] == pytest.approx(1.25 / 3), "of the rollouts that have a reward"
    with pytest.raises(ConfigError, match="baseline='critic' needs the critic's values, and these rollouts carry none"):
        estimator.credit(Rollouts(rewards_B, groups_B))


def test_siblings_share_the_prompt_s_prediction() -> None:
    """Fitted on every rollout's own reward, weighted; the states of both rollouts of a prompt are the same here."""
    estimator = estimator_of(2, baseline="prompt-probe")
    pairs = estimator.buffers[0].pairs
    wanted = fit_probe(pairs.features, pairs.targets_B, PROBE, own_weights_B=torch.ones(len(pairs)))
    batch = batch_of(4, seed=9)
    torch.testing.assert_close(estimator.credit(batch).baselines_B, wanted.predict_prompt(batch.features))


def test_the_combination_starts_as_leave_one_out_and_moves_to_the_probe() -> None:
    estimator, shares = estimator_of(baseline="auto", capacity=512), []
    for seed in range(8):
        batch = batch_of(32, seed=seed)
        credit = estimator.credit(batch)
        if seed == 0:
            assert torch.equal(credit.baselines_B, batch.rewards_B.view(-1, 2).flip(1).flatten())
        metrics = estimator.update(credit)
        shares.append([metrics[f"mix_{name}"] for name in ("leave_one_out", "other_prompts", "probe", "prompt_probe")])
    assert shares[0] == [1.0, 0.0, 0.0, 0.0]
    for share in shares:
        assert sum(share) == pytest.approx(1)
    assert shares[-1][2] + shares[-1][3] > 0.7
    errors = (batch.rewards_B[:, None] - credit.candidates_BC).square().mean(0)
    assert float(credit.advantages_B.square().mean()) < 1.05 * float(errors.min())


def test_a_new_domain_starts_from_leave_one_out_whatever_others_have_learnt() -> None:
    estimator = estimator_of(baseline="auto")
    for seed in range(4):
        estimator.update(estimator.credit(batch_of(16, seed=seed, domain="math")))
    new = batch_of(4, seed=9, domain="code")
    credit = estimator.credit(joined([batch_of(4, seed=8, domain="math"), new]))
    assert torch.equal(credit.baselines_B[8:], new.rewards_B.view(-1, 2).flip(1).flatten())
    assert not torch.equal(credit.baselines_B[:8], credit.candidates_BC[:8, 0])


@pytest.mark.parametrize("baseline", ["auto", "prompt-probe", "probe"])
def test_what_reads_states_needs_them(baseline: str) -> None:
    with pytest.raises(ConfigError, match=f"baseline='{baseline}' needs features"):
        estimator_of(baseline=baseline).credit(replace(batch_of(2), features=None))


def test_failed_siblings_leave_the_combination_s_other_candidates() -> None:
    estimator = estimator_of(3, baseline="auto")
    credit = estimator.credit(with_rewards(without_features(batch_of(3), [2]), {0: NAN, 2: NAN}))
    assert credit.candidates_BC[1, 0].isnan()  # its sibling has no reward
    assert credit.candidates_BC[3, [0, 2]].isnan().all()  # nor has this one's, or states
    assert credit.used_B.tolist() == [False, True, False, True, True, True]


@pytest.mark.parametrize("baseline", ["auto", "prompt-probe"])
@pytest.mark.parametrize("state", [NAN, 0.0])
def test_what_the_response_overflows_to_moves_no_baseline_of_its_own(baseline: str, state: float) -> None:
    """Whether a rollout has a reasoning state is no function of its prompt."""
    estimator = estimator_of(baseline=baseline)
    for seed in range(3):
        estimator.update(estimator.credit(batch_of(16, size=1, seed=seed)))
    batch = batch_of(8, size=1, seed=9)
    reasoning_BH = batch.features.reasoning_BH.clone()
    reasoning_BH[3] = state
    changed = replace(batch, features=replace(batch.features, reasoning_BH=reasoning_BH))
    before, after = (estimator.credit(each).baselines_B for each in (batch, changed))
    assert torch.equal(before, after)
    assert not bool(before.isnan().any())


@pytest.mark.parametrize("baseline", ["auto", "prompt-probe"])
def test_a_rollout_by_itself_has_what_earlier_batches_earned(baseline: str) -> None:
    """Micro-batches of one rollout hold no other prompt: only the first batch has nothing to go by."""
    estimator, used = estimator_of(baseline=baseline, capacity=64, cold_start_rows=64), []
    for seed in range(2):
        whole = batch_of(8, size=1, seed=seed)
        parts = [
            Rollouts(whole.rewards_B[row], whole.groups_B[row], whole.features.select(row))
            for row in torch.arange(8).split(1)
        ]
        credit = Credit.cat([estimator.credit(part) for part in parts])
        used.append(credit.used_B.float().mean())
        mean = batch_of(8, size=1).rewards_B.mean()
        if seed and baseline == "prompt-probe":  # still cold
            torch.testing.assert_close(credit.baselines_B, mean.expand(8))
        estimator.update(credit)
    assert used == [0.0, 1.0]


# --- the penalty ----------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_one_that_erred_least_before_it_learnt() -> None:
    """By plain loops: every batch is predicted under each penalty by the probe of the batches before it."""
    config = replace(PROBE, alpha=None, sibling_outcome=True)
    estimator, errors = estimator_of(probe=config, capacity=512), [0.0] * len(config.alphas)
    for seed in range(6):
        batch = scored(batch_of(8, seed=seed), 1 + torch.arange(16.0))
        credit = estimator.credit(batch)
        if seed:
            values_BA = probe_of(estimator).predict_all(credit.features)
            for place in range(len(errors)):
                squared = [
                    (float(y) - float(g)) ** 2 for y, g in zip(credit.targets_B, values_BA[:, place], strict=True)
                ]
                errors[place] = 0.9 * errors[place] + sum(squared)
        metrics = estimator.update(credit)
    best = errors.index(min(errors))
    assert metrics["alpha"] == config.alphas[best]
    assert probe_of(estimator).head.choice == best


@pytest.mark.parametrize("baseline", ["auto", "probe"])
def test_a_batch_that_says_nothing_of_a_probe_can_be_saved(baseline: str, tmp_path: Path) -> None:
    """All rewards of the second batch failed, so that no penalty was tried on it."""
    estimator = estimator_of(1, probe=replace(PROBE, alpha=None), baseline=baseline)
    batch = batch_of(8, seed=1)
    estimator.update(estimator.credit(replace(batch, rewards_B=torch.full((16,), NAN))))
    save_state(tmp_path / "state", estimator.state_dict())
    resumed = estimator_of(probe=replace(PROBE, alpha=None), baseline=baseline)
    resumed.load_state_dict(load_state(tmp_path / "state"))
    later = batch_of(8, seed=2)
    assert torch.equal(estimator.credit(later).baselines_B, resumed.credit(later).baselines_B)


def test_noise_calls_for_a_heavy_penalty_and_signal_for_a_light_one() -> None:
    config, chosen = replace(PROBE, alpha=None), []
    for noise in (0.0, 1.0):
        estimator = estimator_of(probe=config, capacity=512)
        for seed in range(8):
            batch = batch_of(8, seed=seed)
            signal_B = batch.features.prompt_BH[:, 0]
            draw = torch.randn(16, generator=torch.Generator().manual_seed(seed))
            metrics = estimator.update(
                estimator.credit(replace(batch, rewards_B=(1 - noise) * signal_B + noise * draw))
            )
        chosen.append(metrics["alpha"])
    assert chosen[0] <= 10 < 1000 <= chosen[1]


# --- processes ------------------------------------------------------------------------------------------------------


def test_every_process_holds_the_main_one_s_probe() -> None:
    sent: list[Any] = []
    config = EstimatorConfig(probe=PROBE, capacity=64, cold_start_rows=8)
    main = ValueEstimator(config, is_main=True, broadcast=lambda value: (sent.append(value), value)[1])
    other = ValueEstimator(config, is_main=False, broadcast=lambda value: sent.pop(0))
    for seed in range(3):
        batch = batch_of(8, seed=seed)
        credits = [estimator.credit(batch) for estimator in (main, other)]
        assert torch.equal(credits[0].baselines_B, credits[1].baselines_B)
        for estimator, credit in zip((main, other), credits, strict=True):
            estimator.update(credit)
    assert credits[1].from_probe_B.all()
    assert sent == []


def test_every_process_combines_alike() -> None:
    sent: list[Any] = []
    config = EstimatorConfig("auto", replace(PROBE, alpha=None), capacity=64, cold_start_rows=8)
    main = ValueEstimator(config, is_main=True, broadcast=lambda value: (sent.append(value), value)[1])
    other = ValueEstimator(config, is_main=False, broadcast=lambda value: sent.pop(0))
    for seed in range(4):
        credits = [estimator.credit(batch_of(8, seed=seed)) for estimator in (main, other)]
        assert torch.equal(credits[0].baselines_B, credits[1].baselines_B)
        metrics = [estimator.update(credit) for estimator, credit in zip((main, other), credits, strict=True)]
        assert metrics[0]["mix_probe"] == metrics[1]["mix_probe"]
    assert not sent


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    batch = with_rewards(batch_of(2), {0: 1.0, 1: 0.0, 2: 1.0, 3: NAN})
    estimator = estimator_of()
    metrics = estimator.update(estimator.credit(batch))
    # Advantages 1, -1 (leave-one-out) and 1 - 0.5 (the other prompt's mean); rewards 1, 0, 1.
    assert metrics["reward_mean"] == pytest.approx(2 / 3)
    assert metrics["baseline_mean"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert metrics["variance_ratio"] == pytest.approx((13 / 18) / (2 / 9))
    assert (metrics["failed"], metrics["unused"], metrics["probe_share"]) == (1.0, 1.0, 0.0)
    assert metrics["buffer_rows"] == 2.0
    assert math.isnan(metrics["prediction_mean"])
    assert metrics["fit_seconds"] > 0
    assert metrics["predict_seconds"] > 0


def test_baselines_without_a_probe_log_no_probe() -> None:
    estimator = estimator_of(baseline="leave-one-out")
    metrics = estimator.update(estimator.credit(batch_of(2)))
    assert set(metrics) == {
        "reward_mean", "baseline_mean", "variance_ratio", "failed", "unused", "predict_seconds",
    }  # fmt: skip
    assert not estimator.buffers
    assert not estimator.probes


def test_an_informative_probe_is_seen_in_the_metrics() -> None:
    estimator = estimator_of(capacity=512)
    for seed in range(6):
        metrics = estimator.update(estimator.credit(batch_of(64, seed=seed)))
    assert metrics["probe_share"] == 1.0
    assert metrics["pearson"] > 0.4
    assert metrics["variance_ratio"] < 0.85
    assert abs(metrics["prediction_mean"] - metrics["reward_mean"]) < 0.1


def test_other_prompts_include_earlier_batches_of_their_own_domain() -> None:
    """By plain loops: two domains, rows in any order, a prompt of a single rollout, weights."""
    estimator = estimator_of(baseline="auto", probe=replace(PROBE, weights="score"))
    draw = torch.Generator().manual_seed(9)
    past = {domain: [0.0, 0.0] for domain in (domain_id("a"), domain_id("b"))}
    for seed in range(3):
        batch = joined([batch_of(3, seed=seed, domain="a"), batch_of(2, seed=seed + 9, domain="b")])
        order, weights_B = torch.randperm(10, generator=draw)[:9], torch.rand(9, generator=draw)
        batch = replace(map_tensors(batch, lambda rows, order=order: rows[order]), weights_B=weights_B)
        credit = estimator.credit(batch)
        assert credit.candidates_BC is not None
        assert credit.domains_B is not None
        weights, rewards, groups = credit.weights_B.tolist(), credit.rewards_B.tolist(), credit.groups_B.tolist()
        for i, domain in enumerate(credit.domains_B.tolist()):
            sum_, total = past[domain]
            others = [j for j in range(9) if groups[j] != groups[i]]
            sum_ += sum(weights[j] * rewards[j] for j in others)
            total += sum(weights[j] for j in others)
            assert float(credit.candidates_BC[i, 1]) == pytest.approx(sum_ / total, abs=1e-5)
        for domain, sums in past.items():
            rows = [j for j in range(9) if int(credit.domains_B[j]) == domain]
            sums[0] = sums[0] / 2 + sum(weights[j] * rewards[j] for j in rows)
            sums[1] = sums[1] / 2 + sum(weights[j] for j in rows)
        estimator.update(credit)


def test_a_rollout_by_itself_is_credited_with_earlier_batches() -> None:
    estimator = estimator_of(baseline="auto")
    alone = batch_of(1, size=1)
    assert not estimator.credit(alone).used_B.any()  # nothing at all is known before the first batch
    earlier = batch_of(8, size=1, seed=1)
    estimator.update(estimator.credit(earlier))
    credit = estimator.credit(alone)
    assert credit.used_B.all()
    assert float(credit.baselines_B) == pytest.approx(float(earlier.rewards_B.mean()), abs=1e-5)


def test_metrics_of_nothing_used_are_nan() -> None:
    credit = estimator_of().credit(with_rewards(batch_of(1), {0: NAN, 1: NAN}))
    assert isinstance(credit, Credit)
    metrics = credit_metrics(credit)
    assert math.isnan(metrics["baseline_mean"])
    assert math.isnan(metrics["variance_ratio"])


# --- types ---------------------------------------------------------------------------------------------------------


def test_credits_are_float32() -> None:
    credit = estimator_of(2).credit(batch_of(2))
    tensors: list[Tensor] = [credit.baselines_B, credit.advantages_B, credit.predictions_B, credit.targets_B]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
