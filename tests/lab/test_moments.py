"""Variances from Gram matrices: equal to those of the vectors themselves, and unbiased over an enumerated policy."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.core.baselines import BASELINES, leave_one_out
from poise.lab.moments import (
    Method,
    crossed,
    fixed,
    of_rewards,
    optimal_baseline_M,
    second_moment_M,
    signal_R,
    some_subsets,
    total_variance_R,
    within_and_mean_M,
)
from poise.lab.variance import _rescaled_group_mean


@pytest.fixture
def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Scores (M, n, D), their Gram matrices, rewards."""
    generator = torch.Generator().manual_seed(1)
    scores_MnD = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    rewards_Mn = torch.randint(2, (6, 4), generator=generator).double()
    return scores_MnD, scores_MnD @ scores_MnD.transpose(1, 2), rewards_Mn


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("kind", ["fixed", "crossed", "rewards"])
def test_second_moment_is_that_of_the_vectors(toy: tuple[Tensor, Tensor, Tensor], kind: str, m: int) -> None:
    scores_MnD, gram_Mnn, rewards_Mn = toy
    guess_Mn = torch.arange(24).reshape(6, 4).double() / 24
    method = {
        "fixed": fixed("b", guess_Mn[:, 0]),
        "crossed": crossed("g", guess_Mn),
        "rewards": of_rewards("rloo", leave_one_out),
    }[kind]
    found_M = second_moment_M(gram_Mnn, rewards_Mn, method, m)
    for prompt in range(6):
        squares = []
        for subset in combinations(range(4), m):
            total = torch.zeros(3, dtype=torch.float64)
            for i in subset:
                others = [j for j in subset if j != i]
                baseline = {
                    "fixed": guess_Mn[prompt, 0],
                    "crossed": guess_Mn[prompt, others].mean(),
                    "rewards": rewards_Mn[prompt, others].mean(),
                }[kind]
                total += (rewards_Mn[prompt, i] - baseline) * scores_MnD[prompt, i] / m
            squares.append(float(total @ total))
        assert float(found_M[prompt]) == pytest.approx(np.mean(squares), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(8, 1), (8, 4), (9, 4), (16, 8), (20, 2), (2, 2)])
def test_subsets_are_even_steps_through_all_of_them(n: int, m: int) -> None:
    every = [list(subset) for subset in combinations(range(n), m)]
    assert some_subsets(n, m) == every[:: -(-len(every) // 70)]


def test_large_groups_have_as_few_subsets() -> None:
    """377 million subsets of eight, which nobody lists."""
    found = some_subsets(48, 8)
    assert len({tuple(subset) for subset in found}) == len(found) == 70
    assert all(sorted({*subset}) == subset and len(subset) == 8 for subset in found)


def test_total_variance_is_the_brute_force_variance() -> None:
    """Two prompts of two outcomes each, one rollout of each drawn prompt: the moments are those of the whole list."""
    scores = {0: [(1.0, 2.0), (-1.0, 0.5)], 1: [(0.5, -1.0), (2.0, 1.0)]}
    rewards, baseline = {0: (1.0, 0.0), 1: (1.0, 1.0)}, {0: 0.5, 1: 0.25}
    gradients = np.array(
        [(rewards[x][y] - baseline[x]) * np.array(scores[x][y]) for x in (0, 1) for y in (0, 1)]
    )  # all equally likely
    exact = (gradients**2).sum(1).mean() - (gradients.mean(0) ** 2).sum()
    # The estimator sees every prompt with both outcomes as its two rollouts, in either order.
    scores_MnD = torch.tensor([scores[0], scores[1]], dtype=torch.float64)
    rewards_Mn = torch.tensor([rewards[0], rewards[1]], dtype=torch.float64)
    gram_Mnn = scores_MnD @ scores_MnD.transpose(1, 2)
    method = fixed("b", torch.tensor([0.5, 0.25], dtype=torch.float64))
    second_M = second_moment_M(gram_Mnn, rewards_Mn, method, 1).numpy()
    signal = np.array([(gradients.mean(0) ** 2).sum()])
    weights = np.full((1, 2), 0.5)
    assert total_variance_R(second_M, signal, weights, 1, 1)[0] == pytest.approx(exact)
    assert total_variance_R(second_M, signal, weights, 2, 64)[0] == pytest.approx(exact / 32)


def test_moments_are_unbiased_over_all_outcomes() -> None:
    """E over both rollouts of a prompt, enumerated, of each estimate: E‖G‖², tr Cov(G | x) and ‖E G‖²."""
    chance, rewards = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    # Scores of a two-outcome policy with one parameter have mean zero: ∇log π = (1 − π, −π) along some direction.
    scores = torch.tensor([[0.7, 1.4], [-0.3, -0.6]], dtype=torch.float64)
    baseline = 0.2
    gradient = ((rewards - baseline) * chance) @ scores
    second = float((chance * (rewards - baseline).square()) @ scores.square().sum(1))
    found = torch.zeros(4, dtype=torch.float64)
    rloo = 0.0
    for i, j in product((0, 1), repeat=2):
        vectors_1nD, rewards_1n = scores[[i, j]][None], rewards[[i, j]][None]
        gram_1nn = vectors_1nD @ vectors_1nD.transpose(1, 2)
        method = fixed("b", torch.tensor([baseline], dtype=torch.float64))
        within, mean = within_and_mean_M(gram_1nn, rewards_1n, method)
        both = [second_moment_M(gram_1nn, rewards_1n, method, m) for m in (1, 2)]
        found += chance[i] * chance[j] * torch.cat([*both, within, mean])
        rloo += float(
            chance[i] * chance[j] * second_moment_M(gram_1nn, rewards_1n, of_rewards("", leave_one_out), 2)[0]
        )
    square = float(gradient @ gradient)
    torch.testing.assert_close(
        found, torch.tensor([second, (second + square) / 2, second - square, square], dtype=torch.float64)
    )
    # RLOO at m = 2: G = (r_1 − r_2)(s_1 − s_2)/2, not zero only where the outcomes differ.
    assert rloo == pytest.approx(2 * 0.3 * 0.7 * 0.25 * float((scores[0] - scores[1]).square().sum()))


def test_signal_counts_pairs_of_different_prompts() -> None:
    across = np.array([[4.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 16.0]])
    assert signal_R(across, np.full((1, 3), 1 / 3))[0] == pytest.approx((1 + 2 + 3) / 3)
    # The first prompt drawn twice: pairs (0,2) twice, and (0,0) is no pair.
    assert signal_R(across, np.array([[2.0, 0.0, 1.0]]))[0] == pytest.approx(2.0)


def test_rescaled_group_mean_is_leave_one_out(toy: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gram_Mnn, rewards_Mn = toy
    rescaled = Method("grpo", _rescaled_group_mean, 2)
    for m in (2, 4):
        torch.testing.assert_close(
            second_moment_M(gram_Mnn, rewards_Mn, rescaled, m),
            second_moment_M(gram_Mnn, rewards_Mn, of_rewards("rloo", BASELINES["leave-one-out"]), m),
        )


def test_noise_of_an_oracle_is_taken_out(toy: tuple[Tensor, Tensor, Tensor]) -> None:
    """‖(r − b̂)s‖² is larger by Var(b̂)‖s‖² in the mean."""
    _, gram_Mnn, rewards_Mn = toy
    base, noise_M = torch.full((6,), 0.4, dtype=torch.float64), torch.full((6,), 0.01, dtype=torch.float64)
    plain, noisy = fixed("p", base), fixed("p", base, noise_M)
    gap_M = second_moment_M(gram_Mnn, rewards_Mn, plain, 1) - second_moment_M(gram_Mnn, rewards_Mn, noisy, 1)
    torch.testing.assert_close(gap_M, 0.01 * gram_Mnn.diagonal(dim1=1, dim2=2).mean(1))


def test_optimal_baseline_is_where_the_variance_is_least() -> None:
    """Many rollouts of equal prompts: b* = Σ‖s‖²r/Σ‖s‖², here (1·1 + 0·9)/(1 + 9) = .1, though the pass rate is .5."""
    norms_MK, rewards_MK = torch.tensor([[1.0, 9.0] * 200] * 3), torch.tensor([[1.0, 0.0] * 200] * 3)
    torch.testing.assert_close(optimal_baseline_M(norms_MK, rewards_MK), torch.full((3,), 0.1, dtype=torch.float64))


def test_optimal_baseline_does_not_trust_a_prompt_without_failures() -> None:
    """Failures weigh a hundredfold and are rare: where none was seen, the other prompts' b* counts for something."""
    generator = torch.Generator().manual_seed(0)
    rewards_MK = (torch.rand(200, 8, generator=generator) < 0.9).double()
    norms_MK = torch.where(rewards_MK > 0, 1.0, 100.0)
    found_M = optimal_baseline_M(norms_MK, rewards_MK)
    assert float(found_M[rewards_MK.mean(1) == 1].max()) < 0.9
