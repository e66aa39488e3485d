"""Metrics of predictions against literal numbers, and what the noise correction is for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from planted_rollouts import planted
from poise.lab.gradients import Gradients
from poise.lab.metrics import Targets, groups_of, interval, resample_weights, value_metrics
from poise.lab.variance import proxy_rows

# Two prompts, four rollouts each that targets are made of, Avg@2 of the first two.
REWARDS = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])


def test_targets_by_hand() -> None:
    targets = Targets.of(REWARDS, count=2)
    np.testing.assert_allclose(targets.average_P, [0.5, 0.0])
    np.testing.assert_allclose(targets.rate_P, [0.75, 0.25])
    # Sample variance of both rows: 4/3 · .75 · .25 = .25; over 2 and over 4 rollouts.
    np.testing.assert_allclose(targets.average_noise_P, [0.125, 0.125])
    np.testing.assert_allclose(targets.rate_noise_P, [0.0625, 0.0625])


def test_metrics_by_hand() -> None:
    found = value_metrics(np.array([[0.5, 0.75], [0.25, 0.0]]), Targets.of(REWARDS, count=2), np.array([[0.5, 0.5]]))
    # Errors against Avg@2: 0, .25, .25, 0; its variance over prompts: .0625.
    assert found["mae"][0] == pytest.approx(0.125)
    assert found["mse"][0] == pytest.approx(0.03125)
    assert found["brier_skill"][0] == pytest.approx(0.5)
    # cov(g, a) = .25 · .625 − … : g has mean .375, variance (.015625 + .140625 + .015625 + .140625)/4 = .078125.
    assert found["pearson"][0] == pytest.approx(0.0625 / math.sqrt(0.078125 * 0.0625))
    # Noise of .125 in a variance of .0625: nothing is left to correlate with.
    assert math.isnan(found["pearson_true"][0])
    # Against p: errors −.25, 0, 0, −.25, squares .03125 in the mean, less the noise .0625; Var p = .0625 − .0625.
    assert found["mse_true"][0] == pytest.approx(0.03125 - 0.0625)
    assert math.isnan(found["explained"][0])


def test_correction_removes_the_noise_of_the_target() -> None:
    """Predictions that are the pass rate itself: error 0 and correlation 1 against it, whatever the noise."""
    rng = np.random.default_rng(0)
    rate_P = rng.uniform(size=4000)
    rewards_PK = torch.tensor(rng.uniform(size=(4000, 8)) < rate_P[:, None]).double()
    found = value_metrics(rate_P[:, None], Targets.of(rewards_PK), resample_weights(4000, 0, 0))
    assert found["pearson"][0] < 0.93
    assert found["pearson_true"][0] == pytest.approx(1.0, abs=0.01)
    assert found["mse_true"][0] == pytest.approx(0.0, abs=0.001)
    assert found["explained"][0] == pytest.approx(1.0, abs=0.01)


def test_a_constant_explains_nothing() -> None:
    targets = Targets.of(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    found = value_metrics(np.full((4, 3), 0.5), targets, np.full((1, 4), 0.25))
    assert math.isnan(found["pearson"][0])
    assert found["explained"][0] == pytest.approx(0.0)
    assert found["mae"][0] == 0.5


def test_equal_values_share_their_rank() -> None:
    """Proxies 1, 1, 2, 2 of squared norms 1, 2, 3, 4: 4 / (2 √5), in whichever order the rollouts came."""
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        norms_MK = torch.tensor([1.0, 2.0, 3.0, 4.0])[order].view(2, 2)
        proxies_PFX = torch.tensor([1.0, 1.0, 2.0, 2.0])[order].view(2, 2, 1).expand(-1, -1, 4)
        gradients = Gradients(norms_MK, norms_MK, {}, {"sum": norms_MK}, norms_MK, {})
        rollouts = replace(planted(2, 2, 0), proxies_PFX=proxies_PFX)
        assert proxy_rows(gradients, rollouts, "sum")[0]["spearman"] == pytest.approx(2 / math.sqrt(5))


def test_domains_of_few_prompts_have_no_figures_of_their_own() -> None:
    groups = groups_of(["b"] * 8 + ["a"] * 9 + ["c"] * 7)
    assert {name: int(chosen_P.sum()) for name, chosen_P in groups.items()} == {"all": 24, "a": 9, "b": 8}
    assert list(groups_of(["b"] * 9)) == ["all"]


def test_resamples_draw_prompts() -> None:
    weights_RP = resample_weights(5, 100, seed=3)
    assert weights_RP.shape == (101, 5)
    np.testing.assert_allclose(weights_RP[0], 0.2)
    np.testing.assert_allclose(weights_RP.sum(1), 1.0)
    found = interval(np.array([7.0, *range(101)]))
    assert found == pytest.approx({"mean": 7.0, "low": 2.5, "high": 97.5})
