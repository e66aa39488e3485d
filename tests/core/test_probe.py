"""The probe against scikit-learn, and in every degenerate case that a running buffer can produce."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import poise.core.heads as heads
from poise.core import Features, ProbeConfig, fit_probe
from poise.core.heads import fit_logistic, fit_ridge
from poise.core.projection import fit_projection
from poise.errors import ConfigError


def decaying(rows: int, width: int, seed: int, power: float = 1.0) -> Tensor:
    """States like a model's: an offset, and components whose spread decays, so that the leading ones are distinct."""
    draw = torch.Generator().manual_seed(seed)
    rank = min(rows, width)
    scale_K = torch.arange(1, rank + 1) ** -power
    basis_KH = torch.linalg.qr(torch.randn(width, rank, generator=draw)).Q.T
    return torch.randn(rows, rank, generator=draw) * scale_K @ basis_KH * width**0.5 + 2 * torch.randn(
        width, generator=draw
    )


def features_of(rows: int, width: int = 12, width2: int = 10, seed: int = 0) -> Features:
    draw = torch.Generator().manual_seed(seed + 100)
    return Features(decaying(rows, width, seed), decaying(rows, width2, seed + 1), torch.rand(rows, 3, generator=draw))


def targets_of(features: Features, seed: int = 0, noise: float = 0.3) -> Tensor:
    draw = torch.Generator().manual_seed(seed + 200)
    signal_B = features.prompt_BH[:, 0] - features.reasoning_BH[:, 1] + features.entropy_BE[:, 2]
    return signal_B / signal_B.std() + noise * torch.randn(len(features), generator=draw)


WIDE = (-1e9, 1e9)  # a clip range that never clips


def oracle(fit: Features, targets_B: Tensor, new: Features, components: tuple[int | None, int | None], head):
    """The same model by scikit-learn in float64."""
    columns, new_columns = [], []
    for name, count in (("prompt_BH", components[0]), ("reasoning_BH", components[1]), ("entropy_BE", None)):
        stages = [StandardScaler(), *([PCA(count, svd_solver="full")] if count else [])]
        stage = make_pipeline(*stages)
        columns.append(stage.fit_transform(getattr(fit, name).double().numpy()))
        new_columns.append(stage.transform(getattr(new, name).double().numpy()))
    return head.fit(np.hstack(columns), targets_B.double().numpy()), np.hstack(new_columns)


# --- the scikit-learn oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "width", "components"),
    [
        (200, 12, (4, 5)),
        (300, 12, (None, None)),  # no PCA (paper v2)
        (20, 60, (None, None)),  # more columns than rows: the dual solve
        (20, 60, (6, 8)),  # more columns than rows: the wide Gram matrix
        (12, 40, (11, 11)),  # as many components as centred rows can have
        (200, 12, (12, None)),  # a full PCA rotates and drops nothing
        (700, 200, (8, 9)),  # several pieces of rows
    ],
)
@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_ridge_equals_scikit_learn(rows: int, width: int, components: tuple, alpha: float) -> None:
    fit, new = features_of(rows, width, width - 2), features_of(30, width, width - 2, seed=7)
    targets_B = targets_of(fit)
    config = ProbeConfig("ridge", *components, alpha=alpha, clip=WIDE)
    rival, columns = oracle(fit, targets_B, new, components, Ridge(alpha=alpha))
    mine_B = fit_probe(fit, targets_B, config).predict(new).double()
    expected_B = torch.from_numpy(rival.predict(columns))
    # Relative to the spread: `new` lies far outside the rows fitted on, where light penalties extrapolate.
    assert float((mine_B - expected_B).abs().max() / expected_B.abs().max().clamp_min(1)) < 2e-6


@pytest.mark.parametrize("components", [(4, 5), (None, None)])
@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_logistic_equals_scikit_learn_on_binary_rewards(components: tuple, alpha: float) -> None:
    fit, new = features_of(200), features_of(30, seed=7)
    targets_B = (targets_of(fit) > 0.3).float()
    rival, columns = oracle(fit, targets_B, new, components, LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=5000))
    mine_B = fit_probe(fit, targets_B, ProbeConfig("logistic", *components, alpha=alpha)).predict(new)
    np.testing.assert_allclose(mine_B.numpy(), rival.predict_proba(columns)[:, 1], atol=2e-6)


def weights_of(rows: int, seed: int = 0) -> Tensor:
    """Positive row weights of mean 1, none extreme: what `fit_probe` makes of its own."""
    weights_B = torch.rand(rows, generator=torch.Generator().manual_seed(seed)).double() ** 3 + 0.01
    return weights_B / weights_B.mean()


@pytest.mark.parametrize(
    ("rows", "width", "components"),
    [(200, 12, (None, None)), (20, 60, (None, None)), (200, 12, (4, 5)), (700, 200, (None, None))],
)
def test_weighted_ridge_equals_scikit_learn(rows: int, width: int, components: tuple) -> None:
    fit, new = features_of(rows, width, width - 2), features_of(30, width, width - 2, seed=7)
    targets_B, weights_B = targets_of(fit), weights_of(rows)
    rival, columns = oracle(fit, targets_B, new, components, Weighted(Ridge(alpha=3.0), weights_B))
    config = ProbeConfig("ridge", *components, alpha=3.0, clip=WIDE)
    mine_B = fit_probe(fit, targets_B, config, weights_B=7 * weights_B).predict(new)  # the scale is of no account
    np.testing.assert_allclose(mine_B.numpy(), rival.predict(columns), atol=2e-5)


def test_weighted_logistic_equals_scikit_learn() -> None:
    fit, new, weights_B = features_of(200), features_of(30, seed=7), weights_of(200)
    targets_B = (targets_of(fit) > 0.3).float()
    head = Weighted(LogisticRegression(C=1 / 2.0, tol=1e-10, max_iter=5000), weights_B)
    rival, columns = oracle(fit, targets_B, new, (None, None), head)
    config = ProbeConfig("logistic", None, None, alpha=2.0)
    mine_B = fit_probe(fit, targets_B, config, weights_B=weights_B / 9).predict(new)
    np.testing.assert_allclose(mine_B.numpy(), rival.predict_proba(columns)[:, 1], atol=2e-6)


class Weighted:
    """A scikit-learn estimator that is fitted with these row weights."""

    def __init__(self, estimator, weights_B: Tensor) -> None:
        self.estimator, self.weights_B = estimator, weights_B

    def fit(self, columns: np.ndarray, targets: np.ndarray):
        return self.estimator.fit(columns, targets, sample_weight=self.weights_B.numpy())


@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_a_row_of_weight_two_counts_as_two_rows(head: str) -> None:
    design_BK, targets_B = torch.randn(30, 4).double(), (torch.rand(30) > 0.5).double()
    weights_B = torch.ones(30).double()
    weights_B[:10] = 2
    fit = {"ridge": fit_ridge, "logistic": fit_logistic}[head]
    weighted = fit(design_BK, targets_B, (1.0,), 0.0, 1.0, weights_B)
    repeated = fit(torch.cat([design_BK, design_BK[:10]]), torch.cat([targets_B, targets_B[:10]]), (1.0,), 0.0, 1.0)
    torch.testing.assert_close(weighted.weights_K, repeated.weights_K)
    assert weighted.intercept == pytest.approx(repeated.intercept)


def test_weights_of_no_spread_change_nothing() -> None:
    fit, new = features_of(60), features_of(9, seed=3)
    targets_B = targets_of(fit)
    plain_B = fit_probe(fit, targets_B, ProbeConfig()).predict(new)
    for weights_B in (torch.full((60,), 1e-3), torch.zeros(60)):
        torch.testing.assert_close(fit_probe(fit, targets_B, ProbeConfig(), weights_B=weights_B).predict(new), plain_B)


@pytest.mark.parametrize("fit", [fit_ridge, fit_logistic])
@pytest.mark.parametrize("rows", [60, 5])
def test_several_penalties_equal_as_many_fits(fit: Any, rows: int) -> None:
    design_BK, targets_B = torch.randn(rows, 8).double(), torch.rand(rows).double()
    alphas = (3.0, 0.1, 100.0)
    together = fit(design_BK, targets_B, alphas, 0.0, 1.0)
    for choice, alpha in enumerate(alphas):
        alone = fit(design_BK, targets_B, (alpha,), 0.0, 1.0)
        chosen = replace(together, choice=choice)
        torch.testing.assert_close(chosen.weights_K, alone.weights_K, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(chosen.predict(design_BK), together.predict_all(design_BK)[:, choice])


def test_constant_rewards_have_a_head_for_each_penalty() -> None:
    head = fit_logistic(torch.randn(9, 2).double(), torch.ones(9).double(), (1.0, 10.0), 0.0, 1.0)
    assert head.predict_all(torch.randn(4, 2)).tolist() == [[1.0, 1.0]] * 4


@pytest.mark.parametrize("seed", range(40))
def test_rewards_that_are_the_same_wherever_there_is_weight_give_a_constant_head(seed: int) -> None:
    """Their weighted mean misses 1 by a last bit now and then."""
    draw = torch.Generator().manual_seed(seed)
    design_BK, weights_B = torch.randn(50, 3, generator=draw).double(), torch.rand(50, generator=draw).double()
    targets_B = torch.ones(50).double()
    targets_B[:9], weights_B[:9] = 0.0, 0.0
    head = fit_logistic(design_BK, targets_B, (1.0,), 0.0, 1.0, weights_B)
    assert (head.predict(design_BK) == 1.0).all()


def test_a_reward_of_next_to_no_weight_leaves_the_logistic_head_finite() -> None:
    weights_B = torch.tensor([1.0, 1.0, 1.0, 1e-300]).double()
    targets_B = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    head = fit_logistic(torch.randn(4, 2).double(), targets_B, (1.0,), 0.0, 1.0, weights_B)
    assert head.predict(torch.randn(4, 2).double()).isfinite().all()


def test_logistic_in_the_dual_is_stationary() -> None:
    """More columns than rows, fractional targets: the gradient of the penalised likelihood vanishes."""
    draw = torch.Generator().manual_seed(3)
    design_BK = torch.randn(15, 40, generator=draw).double()
    share_B = torch.rand(15, generator=draw).double()
    head = fit_logistic(design_BK, share_B, (2.0,), 0.0, 1.0)
    residual_B = (design_BK @ head.weights_K + head.intercept).sigmoid() - share_B
    torch.testing.assert_close(
        design_BK.T @ residual_B + 2.0 * head.weights_K, torch.zeros(40).double(), atol=1e-5, rtol=0
    )
    assert abs(float(residual_B.sum())) < 1e-5


def test_logistic_scales_with_the_rewards() -> None:
    design_BK, share_B = torch.randn(60, 4).double(), torch.rand(60).double()
    unit = fit_logistic(design_BK, share_B, (1.0,), 0.0, 1.0).predict(design_BK)
    wide = fit_logistic(design_BK, share_B * 53 - 3, (1.0,), -3.0, 50.0).predict(design_BK)
    torch.testing.assert_close(wide, unit * 53 - 3)


def test_logistic_separable_rewards_stay_finite() -> None:
    design_BK = torch.tensor([[-3.0], [-2.0], [2.0], [3.0]]).double() * 1e3
    head = fit_logistic(design_BK, torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), (1e-3,), 0.0, 1.0)
    torch.testing.assert_close(head.predict(design_BK), torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("constant", [-3.0, 50.0])
def test_logistic_at_the_edge_of_a_given_range_is_constant(constant: float) -> None:
    """All rewards at the end of the clip range: the likelihood has no maximum, the answer is still plain."""
    config = ProbeConfig("logistic", clip=(-3.0, 50.0))
    fit = features_of(30)
    assert (fit_probe(fit, torch.full((30,), constant), config).predict(fit) == constant).all()


def test_logistic_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_MAX_NEWTON_STEPS", 1)
    design_BK = torch.randn(50, 3).double()
    with pytest.warns(UserWarning, match="not converged after 1 Newton steps"):
        fit_logistic(design_BK, (design_BK[:, 0] > 0).double(), (1e-3,), 0.0, 1.0)


def test_weighted_ridge_by_hand() -> None:
    """x = -1, 0, 2 with weights 2, 1, 1: means 0 and 2, slope (2·1·1 + 0 + 1·2·4) / (2 + 4 + 4) = 1 at alpha 4."""
    design_BK, weights_B = torch.tensor([[-1.0], [0.0], [2.0]]).double(), torch.tensor([2.0, 1.0, 1.0]).double()
    head = fit_ridge(design_BK, torch.tensor([1.0, 0.0, 6.0]).double(), (4.0,), 0.0, 6.0, weights_B)
    torch.testing.assert_close(head.weights_K, torch.tensor([1.0]).double())
    assert head.intercept == pytest.approx(2.0)


def test_ridge_by_hand() -> None:
    """x = -1, 0, 1; y = 0, 1, 5: slope 5 / (2 + 3) = 1 at alpha 3, intercept 2."""
    head = fit_ridge(
        torch.tensor([[-1.0], [0.0], [1.0]]).double(), torch.tensor([0.0, 1.0, 5.0]).double(), (3.0,), 0.0, 5.0
    )
    torch.testing.assert_close(head.weights_K, torch.tensor([1.0]).double())
    assert head.intercept == pytest.approx(2.0)
    predictions = head.predict(torch.tensor([[2.0], [10.0], [-7.0]]).double())
    torch.testing.assert_close(predictions, torch.tensor([4.0, 5.0, 0.0]).double())  # the latter two clipped


# --- subspace iteration ---------------------------------------------------------------------------------------------


def captured(states_BH: Tensor, basis_HK: Tensor) -> float:
    """Share of the standardised variance that lies in the span of a basis."""
    x_BH = (states_BH - states_BH.mean(0)) / states_BH.std(0, correction=0)
    q_HK = torch.linalg.qr(basis_HK).Q
    return float((x_BH @ q_HK).square().sum() / x_BH.square().sum())


def test_subspace_iteration_finds_the_exact_components_cold_and_warm() -> None:
    states_BH = decaying(700, 640, 0, power=1.0)
    standard_BH = (states_BH - states_BH.mean(0)) / states_BH.std(0, correction=0)
    exact_HK = torch.linalg.svd(standard_BH.double()).Vh[:16].T.float()
    cold, cold_BK = fit_projection(states_BH, 16)
    warm, warm_BK = fit_projection(states_BH, 16, cold)
    assert cold.basis_HK is not None
    assert cold.basis_HK.shape == (640, 24)
    best = captured(states_BH, exact_HK)
    for projection, scores_BK in ((cold, cold_BK), (warm, warm_BK)):
        basis_HK = projection.basis_HK[:, :16]
        torch.testing.assert_close(basis_HK.T @ basis_HK, torch.eye(16), atol=1e-5, rtol=0)
        assert captured(states_BH, basis_HK) > 0.9999 * best
        cosines_K = (basis_HK[:, :6] * exact_HK[:, :6]).sum(0).abs()
        assert float(cosines_K.min()) > 0.999
        torch.testing.assert_close(scores_BK, projection(states_BH), atol=2e-4, rtol=1e-4)
        variance_K = scores_BK.var(0, correction=0)
        assert (variance_K.diff() <= 0).all()  # leading first


def test_warm_start_follows_a_drifting_policy() -> None:
    """Each step replaces an eighth of the rows and turns the states a little; one iteration a step keeps up."""
    states_BH, other_BH = decaying(600, 600, 0), decaying(600, 600, 1)
    projection, _ = fit_projection(states_BH, 8)
    for step in range(1, 6):
        mixed_BH = (1 - 0.1 * step) * states_BH + 0.1 * step * other_BH
        projection, _ = fit_projection(mixed_BH, 8, projection)
        best, _ = fit_projection(mixed_BH, 8)
        assert captured(mixed_BH, projection.basis_HK[:, :8]) > 0.98 * captured(mixed_BH, best.basis_HK[:, :8])


def test_a_previous_basis_of_another_shape_is_ignored() -> None:
    states_BH = decaying(600, 520, 0)
    other, _ = fit_projection(decaying(600, 530, 1), 8)
    torch.testing.assert_close(
        fit_projection(states_BH, 8, other)[0].basis_HK, fit_projection(states_BH, 8)[0].basis_HK
    )


def test_exact_and_iterated_probe_agree() -> None:
    """At 600 x 600 rows the iteration runs; scikit-learn's full SVD is the oracle of the predictions."""
    fit, new = features_of(640, 600, 560), features_of(20, 600, 560)
    targets_B = targets_of(fit)
    config = ProbeConfig(prompt_components=6, reasoning_components=6, clip=WIDE)
    rival, columns = oracle(fit, targets_B, new, (6, 6), Ridge(alpha=100.0))
    cold = fit_probe(fit, targets_B, config)
    for probe in (cold, fit_probe(fit, targets_B, config, cold)):
        np.testing.assert_allclose(probe.predict(new).numpy(), rival.predict(columns), atol=5e-3)


# --- degenerate rows ------------------------------------------------------------------------------------------------

CONFIGS = [
    ProbeConfig(),
    ProbeConfig("logistic"),
    ProbeConfig(prompt_components=None, reasoning_components=None, alpha=0.01),
    ProbeConfig("logistic", None, None, 0.01),
    ProbeConfig(prompt_components=0, reasoning_components=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_one_row_predicts_its_own_target(config: ProbeConfig) -> None:
    fit = features_of(1)
    probe = fit_probe(fit, torch.tensor([0.625]), config)
    torch.testing.assert_close(probe.predict(features_of(5, seed=9)), torch.full((5,), 0.625))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("rows", [2, 3, 5, 40])
def test_few_and_equal_rows_behave(config: ProbeConfig, rows: int) -> None:
    fit = features_of(rows)
    one = fit.select(torch.zeros(rows, dtype=torch.long))
    targets_B = torch.arange(rows) % 2 * 1.0
    for features in (fit, one, Features.cat([fit, fit])):
        y_B = targets_B.repeat(len(features) // rows)
        predictions_B = fit_probe(features, y_B, config).predict(features)
        assert predictions_B.isfinite().all()
        assert ((predictions_B >= 0) & (predictions_B <= 1)).all()
    # Equal rows hold no information: every prediction is the mean target.
    torch.testing.assert_close(fit_probe(one, targets_B, config).predict(one), targets_B.mean().expand(rows))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.0, 50.0])
def test_equal_rewards_are_predicted_exactly(config: ProbeConfig, constant: float) -> None:
    fit = features_of(40)
    predictions_B = fit_probe(fit, torch.full((40,), constant), config).predict(features_of(7, seed=3))
    torch.testing.assert_close(predictions_B, torch.full((7,), constant))


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -7e4])
def test_constant_columns_say_nothing(value: float) -> None:
    fit, new = features_of(50), features_of(9, seed=5)
    targets_B, config = targets_of(fit), ProbeConfig(prompt_components=None, reasoning_components=None, alpha=1.0)

    def widened(features: Features, last: float) -> Features:
        column = torch.full((len(features), 1), last)
        return Features(torch.cat([features.prompt_BH, column], 1), features.reasoning_BH, features.entropy_BE)

    plain_B = fit_probe(fit, targets_B, config).predict(new)
    torch.testing.assert_close(fit_probe(widened(fit, value), targets_B, config).predict(widened(new, value)), plain_B)


def test_many_equal_rows_survive_the_iteration() -> None:
    fit = features_of(1, 600, 600).select(torch.zeros(700, dtype=torch.long))
    probe = fit_probe(fit, torch.rand(700), ProbeConfig())
    again = fit_probe(fit, torch.rand(700), ProbeConfig(), probe)
    assert again.predict(fit).isfinite().all()


@given(scale=st.floats(0.1, 1000), shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_predictions_move_with_the_rewards(scale: float, shift: float, seed: int) -> None:
    """g fitted on a·r + b is a·g + b: nothing assumes rewards in [0, 1]."""
    fit, new = features_of(60, seed=seed), features_of(8, seed=seed + 1)
    targets_B = targets_of(fit, seed)
    plain_B = fit_probe(fit, targets_B, ProbeConfig()).predict(new)
    moved_B = fit_probe(fit, scale * targets_B + shift, ProbeConfig()).predict(new)
    torch.testing.assert_close(moved_B, scale * plain_B + shift, rtol=1e-4, atol=1e-4 * (scale + abs(shift)))


@given(seed=st.integers(0, 1000), head=st.sampled_from(["ridge", "logistic"]))
def test_the_order_of_rows_does_not_matter(seed: int, head: str) -> None:
    fit, new = features_of(40, seed=seed), features_of(8, seed=seed + 1)
    targets_B = targets_of(fit, seed)
    order_B = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    config = ProbeConfig(head, 4, 4)
    shuffled = fit_probe(fit.select(order_B), targets_B[order_B], config)
    torch.testing.assert_close(
        shuffled.predict(new), fit_probe(fit, targets_B, config).predict(new), atol=1e-4, rtol=1e-4
    )


def test_learned_and_given_clip_range() -> None:
    fit, targets_B = features_of(40), torch.linspace(-3, 50, 40)
    far = fit.map(lambda tensor: 100 * tensor)
    learned_B = fit_probe(fit, targets_B, ProbeConfig(alpha=0.1)).predict(far)
    assert float(learned_B.min()) >= -3
    assert float(learned_B.max()) <= 50
    given_B = fit_probe(fit, targets_B, ProbeConfig(alpha=0.1, clip=(0.0, 1.0))).predict(far)
    assert set(given_B.tolist()) <= {0.0, 1.0}


# --- absent parts ---------------------------------------------------------------------------------------------------


def test_absent_entropy_stands_for_the_mean_and_is_flagged() -> None:
    fit = features_of(80)
    entropy_BE = fit.entropy_BE.clone()
    entropy_BE[::2, 2] = torch.nan
    fit = Features(fit.prompt_BH, fit.reasoning_BH, entropy_BE)
    targets_B = torch.where(entropy_BE[:, 2].isnan(), 0.0, 1.0)
    probe = fit_probe(fit, targets_B, ProbeConfig(prompt_components=0, reasoning_components=0, alpha=1e-6))
    torch.testing.assert_close(probe.scalars.mean_S[2], entropy_BE[1::2, 2].mean())
    design_BK = probe.design(fit)
    assert design_BK.shape == (80, 6)
    assert (design_BK[::2, 2] == 0).all()
    torch.testing.assert_close(design_BK[:, 5], 1 - targets_B)
    torch.testing.assert_close(probe.predict(fit), targets_B, atol=1e-4, rtol=0)


def test_the_sibling_s_outcome_is_its_reward_its_surprise_and_their_product() -> None:
    """Where a right answer is a sign of more only if the policy was sure of it, neither column will do alone."""
    fit = features_of(400)
    draw = torch.Generator().manual_seed(3)
    reward_B = (torch.rand(400, generator=draw) > 0.5).float()
    sure_B = torch.rand(400, generator=draw) > 0.5
    targets_B = torch.where(sure_B, reward_B, 1 - reward_B)
    fit = replace(fit, reward_B=reward_B, squared_score_B=torch.where(sure_B, 0.0, 3.0))
    config = ProbeConfig(alpha=1e-3, sibling_outcome=True)
    probe = fit_probe(fit, targets_B, config)
    torch.testing.assert_close(probe.predict(fit), targets_B, atol=1e-3, rtol=0)
    alone = replace(fit, squared_score_B=None)
    assert float((fit_probe(alone, targets_B, config).predict(alone) - targets_B).square().mean()) > 0.1
    # Standardised first, so that neither the zero nor the unit of the rewards matters.
    moved = replace(fit, reward_B=100 * reward_B - 700)
    design_BK, moved_BK = (fit_probe(part, targets_B, config).design(part) for part in (fit, moved))
    torch.testing.assert_close(moved_BK, design_BK, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="fitted on features with squared scores, and these carry no such"):
        probe.predict(alone)
    # A score that is missing or impossible is absent, and not a certainty: the mean stands for it.
    for bad in (torch.nan, torch.inf, -1.0):
        absent = probe.scalars(replace(fit, squared_score_B=torch.full((400,), bad)))
        assert absent[:, [3, 10]].eq(0).all()
        assert absent[:, 8].eq(1).all()
    # A failed reward takes the product with it, and leaves the surprise.
    failed = probe.scalars(replace(fit, reward_B=torch.full((400,), torch.nan)))
    assert failed[:, 4].eq(0).all()
    assert failed[:, 10].eq(0).all()
    assert failed[:, 3].ne(0).all()


def test_the_sibling_s_reward_is_one_more_scalar() -> None:
    """Targets that are the row's own reward: a probe that sees it learns them, one that does not cannot."""
    fit = features_of(200)
    reward_B = (torch.rand(200) > 0.5).float()
    fit, blind = replace(fit, reward_B=reward_B), ProbeConfig(alpha=1e-3)
    seeing = replace(blind, sibling_outcome=True)
    probe = fit_probe(fit, reward_B, seeing)
    assert probe.design(fit).shape[1] == fit_probe(fit, reward_B, blind).design(fit).shape[1] + 2
    torch.testing.assert_close(probe.predict(fit), reward_B, atol=1e-3, rtol=0)
    # A failed reward is absent: the mean stands for it, as for an entropy.
    failed = replace(fit, reward_B=torch.full((200,), torch.nan))
    assert probe.scalars(failed)[:, 3].eq(0).all()
    assert probe.scalars(failed)[:, 7].eq(1).all()
    assert probe.predict(failed).isfinite().all()
    with pytest.raises(ConfigError, match="sees the sibling's outcome, and these features carry no reward"):
        probe.predict(replace(fit, reward_B=None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_entropies_that_are_all_absent_or_infinite_are_inert(bad: float) -> None:
    fit = features_of(40)
    without = Features(fit.prompt_BH, fit.reasoning_BH, torch.full((40, 3), bad))
    none = Features(fit.prompt_BH, fit.reasoning_BH, torch.zeros(40, 3))
    targets_B = targets_of(fit)
    mine_B = fit_probe(without, targets_B, ProbeConfig()).predict(without)
    torch.testing.assert_close(mine_B, fit_probe(none, targets_B, ProbeConfig()).predict(none))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_absent_rows_predict_nothing_and_touch_no_other(bad: float) -> None:
    probe, new = fit_probe(features_of(40), targets_of(features_of(40)), ProbeConfig()), features_of(6, seed=2)
    reasoning_BH = new.reasoning_BH.clone()
    reasoning_BH[3, 4] = bad
    holed = Features(new.prompt_BH, reasoning_BH, new.entropy_BE)
    assert holed.present_B.tolist() == [True, True, True, False, True, True]
    predictions_B = probe.predict(holed)
    assert predictions_B.isnan().tolist() == [False, False, False, True, False, False]
    others = torch.tensor([0, 1, 2, 4, 5])
    assert torch.equal(predictions_B[others], probe.predict(new)[others])


@pytest.mark.parametrize("components", [4, None])
def test_no_row_has_no_prediction(components: int | None) -> None:
    config = ProbeConfig(prompt_components=components, reasoning_components=components, alpha=None)
    probe = fit_probe(features_of(40), targets_of(features_of(40)), config)
    nothing = features_of(6).select(slice(0, 0))
    assert probe.predict(nothing).shape == (0,)
    assert probe.predict_all(nothing).shape == (0, 5)


def test_a_block_without_columns_is_allowed() -> None:
    fit = features_of(40)
    fit = Features(fit.prompt_BH, torch.zeros(40, 0), fit.entropy_BE)
    assert fit_probe(fit, targets_of(features_of(40)), ProbeConfig()).predict(fit).isfinite().all()


# --- determinism, precision, refusals -------------------------------------------------------------------------------


def test_fitting_is_deterministic_and_leaves_the_global_seed_alone() -> None:
    fit = features_of(600, 600, 560)
    targets_B = targets_of(fit)
    torch.manual_seed(1)
    first = fit_probe(fit, targets_B, ProbeConfig()).predict(fit)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, fit_probe(fit, targets_B, ProbeConfig()).predict(fit))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_features_are_fitted_in_float32() -> None:
    fit = features_of(60)
    half = fit.map(lambda tensor: tensor.bfloat16())
    targets_B = targets_of(fit)
    rounded = half.map(lambda tensor: tensor.float())
    probe = fit_probe(half, targets_B, ProbeConfig())
    assert probe.prompt.mean_H.dtype == torch.float32
    mine_B = probe.predict(half).float()
    torch.testing.assert_close(mine_B, fit_probe(rounded, targets_B, ProbeConfig()).predict(rounded), atol=2e-2, rtol=0)


def test_probe_refuses_rows_it_cannot_use() -> None:
    fit = features_of(4)
    with pytest.raises(ConfigError, match="got 0 rows"):
        fit_probe(fit.select(slice(0, 0)), torch.zeros(0), ProbeConfig())
    with pytest.raises(ConfigError, match="all finite"):
        fit_probe(fit, torch.tensor([0.0, 1.0, torch.nan, 0.0]), ProbeConfig())
    with pytest.raises(ConfigError, match="all finite"):
        fit_probe(fit.map(lambda tensor: tensor / 0), torch.zeros(4), ProbeConfig())
