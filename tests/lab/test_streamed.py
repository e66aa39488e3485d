"""The self-choosing baseline of a study: taught batch by batch, it credits as a training run would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planted_rollouts import planted
from poise.core import EstimatorConfig, Features, ProbeConfig, ValueEstimator
from poise.core import Rollouts as Batch
from poise.lab.probes import Training, Variant
from poise.lab.rollouts import Rollouts
from poise.lab.streamed import streamed, taught

CONFIG = ProbeConfig(prompt_components=None, reasoning_components=None, alpha=1.0, sibling_outcome=True)
VARIANT = Variant((1, 1), (1, 1), CONFIG)


def one_domain(prompts: int) -> torch.Tensor:
    return torch.zeros(prompts, dtype=torch.long)


def by_hand(rollouts: Rollouts, rows: torch.Tensor, columns: list[int]) -> Batch:
    """Some rollouts of some prompts, as an engine would hand them over."""
    states, scores = (
        part[rows][:, columns].flatten(0, 1) for part in (rollouts.prompt_states["1/1"], rollouts.proxies_PFX)
    )
    entropy_BE = rollouts.entropy_PFE[rows][:, columns].flatten(0, 1)
    return Batch(
        rollouts.rewards_PK[rows][:, columns].flatten(),
        rows.repeat_interleave(len(columns)),
        Features(states, states, entropy_BE, squared_score_B=scores[:, 0]),
        weights_B=scores[:, 0],
    )


def test_it_is_the_estimator_s_own_credit() -> None:
    train, test = planted(64, 2, 0), planted(20, 3, 1)
    estimator = ValueEstimator(EstimatorConfig("auto", replace(CONFIG, weights="score")))
    for rows in torch.arange(64).split(4):
        estimator.update(estimator.credit(by_hand(train, rows, [0, 1])))
    method = streamed("x", taught(VARIANT, Training(train, one_domain(64))), VARIANT, test, one_domain(20))
    for columns in ([0, 1], [0, 2], [0, 1, 2]):
        expected_B = estimator.credit(by_hand(test, torch.arange(20), columns)).baselines_B
        torch.testing.assert_close(method.baselines(test.rewards_PK[:, columns], columns).flatten(), expected_B)


def test_a_rollout_s_own_reward_changes_only_its_siblings_baselines() -> None:
    train, test = planted(64, 2, 0), planted(20, 2, 1)
    estimator = taught(VARIANT, Training(train, one_domain(64)))
    before = streamed("x", estimator, VARIANT, test, one_domain(20)).baselines(test.rewards_PK, [0, 1])
    test.rewards_PK[7, 1] = 1 - test.rewards_PK[7, 1]
    after = streamed("x", estimator, VARIANT, test, one_domain(20)).baselines(test.rewards_PK, [0, 1])
    assert float(after[7, 1]) == float(before[7, 1])
    assert float(after[7, 0]) != float(before[7, 0])


def test_domains_have_pasts_of_their_own() -> None:
    domains = torch.arange(64) % 2
    train = planted(64, 2, 0)
    train.rewards_PK[domains == 1] = 1.0
    past = taught(VARIANT, Training(train, domains)).mixture.past
    assert set(past) == {1, 2}
    (sum_, total), (all_, whole) = past[1].rewards_2.tolist(), past[2].rewards_2.tolist()
    assert 0.2 < sum_ / total < 0.8
    assert all_ == pytest.approx(whole)


@pytest.mark.parametrize("failed", [0, 1])
def test_a_failed_reward_teaches_nothing(failed: int) -> None:
    train = planted(64, 2, 0)
    train.rewards_PK[3, failed] = torch.nan
    estimator = taught(VARIANT, Training(train, one_domain(64)))
    assert estimator.version == 16
    assert estimator.fitted_rows == {0: 126}
