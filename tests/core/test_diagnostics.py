"""The logged numbers, by hand and against numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from poise.core import Credit, calibration, prediction_metrics, variance_ratio
from poise.core.diagnostics import relative_to_leave_one_out

NAN = math.nan


def test_metrics_by_hand() -> None:
    got = prediction_metrics(
        torch.tensor([0.5, 1.0, 0.0, NAN, 0.3]), torch.tensor([0.0, 1.0, 1.0, 1.0, NAN]), prefix="p/"
    )
    assert got == pytest.approx(
        {
            "p/prediction_mean": 0.5,
            "p/target_mean": 2 / 3,
            "p/mae": 0.5,
            "p/rmse": math.sqrt(1.25 / 3),
            "p/bias": -1 / 6,
            "p/pearson": 0.0,
            "p/brier_skill": 1 - (1.25 / 3) / (2 / 9),
            "p/explained_variance": 1 - (7 / 18) / (2 / 9),
        },
        abs=1e-7,
    )


def test_a_weight_counts_like_so_many_rows() -> None:
    g, y = torch.tensor([0.25, 0.5, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    weighted = prediction_metrics(g, y, torch.tensor([2.0, 1.0, 3.0, 0.0]))
    repeated = prediction_metrics(g[[0, 0, 1, 2, 2, 2]], y[[0, 0, 1, 2, 2, 2]])
    assert weighted == pytest.approx(repeated)
    assert weighted["prediction_mean"] == pytest.approx(4 / 6)
    assert all(math.isnan(value) for value in prediction_metrics(g, y, torch.zeros(4)).values())


def test_variance_relative_to_leave_one_out_by_hand() -> None:
    """Two groups of two; the failed reward and its sibling have nothing to compare."""
    nothing_B, n = torch.full((4,), NAN), torch.tensor
    credit = Credit(
        rewards_B=n([1.0, 0.0, 1.0, NAN]),
        groups_B=n([0, 0, 1, 1]),
        domains_B=n([0, 0, 0, 0]),
        predictions_B=nothing_B,
        baselines_B=n([0.5, 0.25, 0.5, 0.5]),
        advantages_B=n([0.5, -0.25, 0.5, 0.0]),
        targets_B=n([0.0, 1.0, NAN, 1.0]),
        target_weights_B=n([3.0, 1.0, NAN, 1.0]),
        weights_B=n([1.0, 3.0, 1.0, 1.0]),
        from_probe_B=n([True] * 4),
        features=None,
        version=0,
    )
    assert relative_to_leave_one_out(credit) == pytest.approx((0.25 + 3 / 16) / 4)
    assert math.isnan(relative_to_leave_one_out(replace(credit, targets_B=nothing_B)))


def test_metrics_equal_numpy_on_any_scale() -> None:
    g, y = np.random.default_rng(0).normal(size=(2, 200)) * 50 - 3
    got = prediction_metrics(torch.from_numpy(g), torch.from_numpy(y))
    assert got["pearson"] == pytest.approx(np.corrcoef(g, y)[0, 1])
    assert got["rmse"] == pytest.approx(np.sqrt(np.mean((g - y) ** 2)))
    assert got["explained_variance"] == pytest.approx(1 - np.var(y - g) / np.var(y))
    assert got["brier_skill"] == pytest.approx(1 - np.mean((g - y) ** 2) / np.var(y))


def test_perfect_predictions() -> None:
    y = torch.tensor([0.0, 1.0, 0.5])
    got = prediction_metrics(y, y)
    means = {"prediction_mean": 0.5, "target_mean": 0.5}
    assert got == pytest.approx(
        means | {"mae": 0, "rmse": 0, "bias": 0, "pearson": 1, "brier_skill": 1, "explained_variance": 1}
    )


def test_undefined_metrics_are_nan() -> None:
    assert all(math.isnan(value) for value in prediction_metrics(torch.tensor([NAN]), torch.tensor([1.0])).values())
    constant = prediction_metrics(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert constant["mae"] == 0.5
    assert all(math.isnan(constant[name]) for name in ("pearson", "brier_skill", "explained_variance"))


def test_variance_ratio() -> None:
    assert variance_ratio(torch.tensor([0.5, -0.5]), torch.tensor([0.0, 2.0])) == pytest.approx(0.25)
    assert math.isnan(variance_ratio(torch.tensor([0.5, -0.5]), torch.tensor([1.0, 1.0])))
    assert math.isnan(variance_ratio(torch.zeros(0), torch.zeros(0)))


def test_calibration_by_hand() -> None:
    predicted, observed, count = calibration(
        torch.tensor([0.9, 0.1, NAN, 0.3, 0.7, 0.2]), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, NAN]), bins=2
    )
    torch.testing.assert_close(predicted, torch.tensor([0.2, 0.8]).double())
    torch.testing.assert_close(observed, torch.tensor([0.5, 0.5]).double())
    assert count.tolist() == [2.0, 2.0]


def test_calibration_with_fewer_pairs_than_bins() -> None:
    predicted, observed, count = calibration(torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(predicted, torch.tensor([0.1, 0.9]).double())
    assert observed.tolist() == [0.0, 1.0]
    assert count.tolist() == [1.0, 1.0]
    assert [len(column) for column in calibration(torch.zeros(0), torch.zeros(0))] == [0, 0, 0]
