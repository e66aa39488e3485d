"""The claim that everything rests on: crossing keeps the policy gradient unbiased, and lowers its variance.

A policy small enough to enumerate: two prompts, three actions, softmax over linear logits. Expectations are exact sums
over every pair of actions, or means over samples with a z-score for each gradient coordinate. The very same statistics
must reject two planted mistakes: a baseline from the rollout's own states, and a probe refitted on a batch before the
batch is credited.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise.core import Credit, EstimatorConfig, Features, ProbeConfig, Rollouts, ValueEstimator
from poise.core.mixture import Past, Record

PROMPTS, ACTIONS, PARAMETERS = 2, 3, 4
CLEAN, DECISIVE = 4.0, 10.0  # max |z| over 4 coordinates: under no bias above 4 once in 4,000 runs


class World:
    """Two prompts, three actions; rewards and internal states are arbitrary functions of (x, y)."""

    def __init__(self, seed: int = 3) -> None:
        draw = torch.Generator().manual_seed(seed)
        direction_PAD = torch.randn(PROMPTS, ACTIONS, PARAMETERS, generator=draw).double()
        weights_D = 0.2 * torch.randn(PARAMETERS, generator=draw).double()
        self.pi_PA = (direction_PAD @ weights_D).softmax(1)
        self.score_PAD = direction_PAD - (self.pi_PA[..., None] * direction_PAD).sum(1, keepdim=True)
        self.reward_PA = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.5, -2.0]])
        # The states say which prompt it is (informative) and which action was taken (what makes the mistakes biased).
        self.prompt_PH = torch.randn(PROMPTS, 3, generator=draw)
        self.reasoning_PAH = torch.randn(PROMPTS, ACTIONS, 5, generator=draw)
        self.entropy_PAE = torch.rand(PROMPTS, ACTIONS, 3, generator=draw)
        self.exact_D = (self.pi_PA[..., None] * self.reward_PA[..., None] * self.score_PAD).sum(1).mean(0)

    def rollouts(self, prompts_B: Tensor, actions_B: Tensor, groups_B: Tensor) -> Rollouts:
        weights_B = self.score_PAD.square().sum(2)[prompts_B, actions_B].float()
        features = Features(
            self.prompt_PH[prompts_B],
            self.reasoning_PAH[prompts_B, actions_B],
            self.entropy_PAE[prompts_B, actions_B],
            squared_score_B=weights_B,
        )
        return Rollouts(
            self.reward_PA[prompts_B, actions_B], groups_B, features, prompts_B=prompts_B, weights_B=weights_B
        )

    def batch(self, actions_PG: Tensor) -> tuple[Rollouts, Tensor]:
        """One training batch: every prompt once, G rollouts of it. Returns the score vectors of its rollouts too."""
        prompts_B = torch.arange(PROMPTS).repeat_interleave(actions_PG.shape[1])
        return self.rollouts(prompts_B, actions_PG.flatten(), prompts_B), self.score_PAD[
            prompts_B, actions_PG.flatten()
        ]

    def sample(self, size: int, draw: torch.Generator) -> Tensor:
        return torch.multinomial(self.pi_PA, size, replacement=True, generator=draw)

    def all_groups(self, size: int) -> tuple[Rollouts, Tensor, Tensor]:
        """Every prompt with every tuple of actions, as one batch: rollouts, their scores, their tuples' probability."""
        tuples = torch.tensor(list(itertools.product(range(ACTIONS), repeat=size)))
        prompts_B = torch.arange(PROMPTS).repeat_interleave(tuples.numel())
        actions_B = tuples.flatten().repeat(PROMPTS)
        groups_B = torch.arange(PROMPTS * len(tuples)).repeat_interleave(size)
        probability_PN = self.pi_PA[:, tuples].prod(2)
        weight_B = probability_PN.flatten().repeat_interleave(size)
        return self.rollouts(prompts_B, actions_B, groups_B), self.score_PAD[prompts_B, actions_B], weight_B


WORLD = World()


# What the probe may see and weigh beyond the paper's form.
FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "outcome": {"sibling_outcome": True},
    "weighted": {"weights": "score"},
    "all": {"sibling_outcome": True, "weights": "score", "head": "logistic"},
}


def estimator(baseline: str = "probe", steps: int = 4, form: str = "paper", capacity: int = 16) -> ValueEstimator:
    """A small buffer and a light penalty: the setting in which the planted mistakes hurt most."""
    probe = ProbeConfig(prompt_components=None, reasoning_components=None, alpha=0.1, **FORMS[form])
    made = ValueEstimator(EstimatorConfig(baseline, probe, capacity, cold_start_rows=4))
    draw = torch.Generator().manual_seed(5)
    for _ in range(steps):
        batch, _ = WORLD.batch(WORLD.sample(2, draw))
        made.update(made.credit(batch))
    return made


def copy_of(warm: ValueEstimator) -> ValueEstimator:
    made = ValueEstimator(warm.config)
    made.load_state_dict(warm.state_dict())
    return made


def crossed(warm: ValueEstimator, batch: Rollouts) -> Credit:
    return warm.credit(batch)


def same_rollout(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: b_i = g(z_i)."""
    credit = warm.credit(batch)
    return replace(credit, advantages_B=credit.rewards_B - credit.predictions_B)


def with_own(warm: ValueEstimator, batch: Rollouts, name: str) -> Credit:
    """Planted mistake: the probe reads the sibling's states, but a column of the rollout itself."""
    swapped_B = torch.arange(len(batch.rewards_B)).view(-1, 2).flip(1).flatten()
    credit = warm.credit(batch)
    assert credit.features is not None
    mixed = replace(credit.features, **{name: getattr(credit.features, name)[swapped_B]})
    predictions_B = warm.predict(mixed, credit.domains_B)
    return replace(credit, advantages_B=credit.rewards_B - predictions_B[swapped_B])


def own_weight(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: the baseline is scaled by the rollout's own squared score at credit time."""
    credit = warm.credit(batch)
    return replace(credit, advantages_B=credit.rewards_B - credit.baselines_B * credit.weights_B)


def refit_first(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: the probe learns the batch's rewards, then credits the batch."""
    copy = copy_of(warm)
    copy.update(copy.credit(batch))
    return copy.credit(batch)


def mixed_with_hindsight(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: the combination's weights come from the errors on the very batch that is credited."""
    return _mixed(warm, batch, lambda before, after: replace(before, errors=after.errors))


def mean_of_others(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """No mistake: the combination is all other prompts, of this batch and of earlier ones."""
    return _mixed(warm, batch, lambda before, after: replace(before, errors=TRUSTS_OTHERS))


def own_reward_among_the_earlier(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: the same, and the very batch is among the earlier ones."""
    return _mixed(warm, batch, lambda before, after: replace(after, errors=TRUSTS_OTHERS))


TRUSTS_OTHERS = Record(torch.diag(torch.tensor([1.0, 1e-6, 1.0, 1.0])).double(), torch.ones(4, 4).double())


def _mixed(warm: ValueEstimator, batch: Rollouts, choose: Callable[[Past, Past], Past]) -> Credit:
    copy = copy_of(warm)
    credit, before = copy.credit(batch), dict(copy.mixture.past)
    assert credit.candidates_BC is not None
    copy.mixture.past.clear()
    copy.mixture.learn(credit.candidates_BC, credit.rewards_B, credit.weights_B, credit.domains_B)
    copy.mixture.past = {key: choose(before[key], after) for key, after in copy.mixture.past.items()}
    return copy.credit(batch)


Crediting = Callable[[ValueEstimator, Rollouts], Credit]


# --- exact: by enumeration ------------------------------------------------------------------------------------------


def expected_gradient(warm: ValueEstimator, size: int, crediting: Crediting = crossed) -> Tensor:
    """E[mean_i A_i ∇log π(y_i|x)] over prompts and tuples of `size` actions, as an exact sum."""
    batch, score_BD, weight_B = WORLD.all_groups(size)
    credit = crediting(warm, batch)
    assert credit.used_B.all()
    return ((weight_B * credit.advantages_B)[:, None] * score_BD).sum(0) / (size * PROMPTS)


def relative_error(gradient_D: Tensor) -> float:
    return float((gradient_D - WORLD.exact_D).norm() / WORLD.exact_D.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_cross_rollout_gradient_is_exact(size: int, form: str) -> None:
    warm = estimator(form=form)
    assert warm.credit(WORLD.all_groups(size)[0]).from_probe_B.all()
    assert relative_error(expected_gradient(warm, size)) < 1e-6


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("baseline", ["leave-one-out", "tracker", "none"])
def test_other_unbiased_baselines_are_exact(baseline: str, size: int) -> None:
    assert relative_error(expected_gradient(estimator(baseline), size)) < 1e-6


def expected_among_others(warm: ValueEstimator, size: int, crediting: Crediting = crossed) -> Tensor:
    """The same expectation for baselines that look at the other prompts: one group varies, six others stay."""
    others_PG = torch.multinomial(WORLD.pi_PA.repeat(3, 1), size, True, generator=torch.Generator().manual_seed(4))
    total_D = torch.zeros(PARAMETERS, dtype=torch.float64)
    for prompt, actions in itertools.product(range(PROMPTS), itertools.product(range(ACTIONS), repeat=size)):
        actions_B = torch.cat([torch.tensor(actions), others_PG.flatten()])
        groups_B = torch.arange(7).repeat_interleave(size)
        prompts_B = torch.tensor([prompt, *range(PROMPTS)] + 2 * list(range(PROMPTS))).repeat_interleave(size)
        advantages_G = crediting(warm, WORLD.rollouts(prompts_B, actions_B, groups_B)).advantages_B[:size].double()
        probability = WORLD.pi_PA[prompt, list(actions)].prod()
        total_D += probability * (advantages_G[:, None] * WORLD.score_PAD[prompt, list(actions)]).mean(0)
    return total_D / PROMPTS


def drawn_to_the_whole_batch(warm: ValueEstimator, batch: Rollouts) -> Credit:
    """Planted mistake: half-way to the mean of all rewards, the rollout's own included."""
    credit = warm.credit(batch)
    return replace(credit, advantages_B=credit.rewards_B - 0.5 * (credit.targets_B + credit.rewards_B.mean()))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shrinkage_is_exact_and_a_target_with_the_own_reward_is_not(size: int) -> None:
    assert relative_error(expected_among_others(estimator("shrinkage"), size)) < 1e-6
    if size > 1:
        assert relative_error(expected_among_others(estimator("none"), size, drawn_to_the_whole_batch)) > 0.01


@pytest.mark.parametrize("form", ["paper", "all"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("baseline", ["auto", "prompt-probe"])
def test_the_prompt_s_probe_and_the_combination_are_exact(baseline: str, size: int, form: str) -> None:
    warm = estimator(baseline, form=form)
    assert relative_error(expected_among_others(warm, size)) < 1e-6


def test_a_combination_weighted_with_hindsight_is_rejected() -> None:
    assert relative_error(expected_over_batches(crossed, "paper", "auto")) < 1e-6
    assert relative_error(expected_over_batches(mixed_with_hindsight, "paper", "auto")) > 0.02


def test_the_mean_of_earlier_rewards_holds_none_of_the_batch() -> None:
    assert relative_error(expected_over_batches(mean_of_others, "paper", "auto")) < 1e-6
    assert relative_error(expected_over_batches(own_reward_among_the_earlier, "paper", "auto")) > 0.02


def test_cold_probe_falls_back_to_an_exact_gradient() -> None:
    assert relative_error(expected_gradient(estimator(steps=0), 2)) < 1e-6


@pytest.mark.parametrize("size", [2, 4])
def test_group_mean_shrinks_the_gradient_by_one_over_its_size(size: int) -> None:
    gradient_D = expected_gradient(estimator("group-mean"), size)
    torch.testing.assert_close(gradient_D, WORLD.exact_D * (size - 1) / size, rtol=1e-5, atol=1e-7)


def test_enumeration_rejects_a_same_rollout_baseline() -> None:
    assert relative_error(expected_gradient(estimator(), 2, same_rollout)) > 0.1


def test_enumeration_rejects_a_rollout_s_own_reward_surprise_or_weight() -> None:
    for name, least in (("reward_B", 0.05), ("squared_score_B", 0.02)):
        gradient_D = expected_gradient(estimator(form="outcome"), 2, functools.partial(with_own, name=name))
        assert relative_error(gradient_D) > least, name
    assert relative_error(expected_gradient(estimator(form="weighted"), 2, own_weight)) > 0.5


def test_absent_features_of_some_actions_leave_the_gradient_exact() -> None:
    """Where z_j is missing, rollout i falls back to its sibling's reward: another baseline, as independent of y_i."""
    warm = estimator()

    def with_holes(warm: ValueEstimator, batch: Rollouts) -> Credit:
        assert batch.features is not None
        holes = (batch.features.reasoning_BH == WORLD.reasoning_PAH[0, 1]).all(1)
        features = replace(batch.features, prompt_BH=torch.where(holes[:, None], torch.nan, batch.features.prompt_BH))
        credit = warm.credit(replace(batch, features=features))
        assert 0 < int((~credit.from_probe_B).sum()) < len(credit)
        return credit

    assert relative_error(expected_gradient(warm, 2, with_holes)) < 1e-6


def expected_over_batches(crediting: Crediting, form: str = "paper", baseline: str = "probe") -> Tensor:
    """The same expectation over whole batches (81 of them): what matters once a probe mixes the prompts of a batch."""
    warm = estimator(baseline, form=form)
    total_D = torch.zeros(PARAMETERS, dtype=torch.float64)
    for actions in itertools.product(range(ACTIONS), repeat=2 * PROMPTS):
        actions_PG = torch.tensor(actions).reshape(PROMPTS, 2)
        batch, score_BD = WORLD.batch(actions_PG)
        advantages_B = crediting(warm, batch).advantages_B.double()
        probability = WORLD.pi_PA.gather(1, actions_PG).prod()
        total_D += probability * (advantages_B[:, None] * score_BD).mean(0)
    return total_D


@pytest.mark.parametrize("form", FORMS)
def test_enumeration_of_batches_accepts_crossing_and_rejects_a_refit_before_crediting(form: str) -> None:
    assert relative_error(expected_over_batches(crossed, form)) < 1e-6
    assert relative_error(expected_over_batches(refit_first, form)) > 0.1


# --- statistics: by sampling ----------------------------------------------------------------------------------------


def largest_z(gradients_ND: Tensor) -> float:
    """max over coordinates of |mean - exact| in standard errors."""
    error_D = gradients_ND.mean(0) - WORLD.exact_D
    return float((error_D / (gradients_ND.std(0) / len(gradients_ND) ** 0.5)).abs().max())


def sampled_gradients(crediting: Crediting, count: int) -> Tensor:
    """The gradients of `count` independent batches with the probe as it stands, credited 250 at a time."""
    warm, draw, at_once = estimator(), torch.Generator().manual_seed(11), 250
    prompts_B = torch.arange(PROMPTS).repeat_interleave(2).repeat(at_once)
    groups_B = torch.arange(PROMPTS * at_once).repeat_interleave(2)
    gradients: list[Tensor] = []
    for _ in range(count // at_once):
        actions_B = WORLD.sample(2 * at_once, draw).reshape(PROMPTS, at_once, 2).transpose(0, 1).flatten()
        advantages_B = crediting(warm, WORLD.rollouts(prompts_B, actions_B, groups_B)).advantages_B
        terms_BD = advantages_B[:, None] * WORLD.score_PAD[prompts_B, actions_B]
        gradients.append(terms_BD.reshape(at_once, 2 * PROMPTS, PARAMETERS).mean(1))
    return torch.cat(gradients)


def test_sampling_accepts_crossing_and_rejects_the_same_rollout() -> None:
    assert largest_z(sampled_gradients(crossed, 10_000)) < CLEAN
    assert largest_z(sampled_gradients(same_rollout, 10_000)) > DECISIVE


def online_gradients(steps: int, refitted_first: bool) -> Tensor:
    """A whole run: credit a batch, then update with it. Every step's gradient is unbiased given the past."""
    running, draw = estimator(), torch.Generator().manual_seed(12)
    gradients: list[Tensor] = []
    for _ in range(steps):
        batch, score_BD = WORLD.batch(WORLD.sample(2, draw))
        credit = running.credit(batch)
        running.update(credit)
        if refitted_first:
            credit = running.credit(batch)
        gradients.append((credit.advantages_B.double()[:, None] * score_BD).mean(0))
    return torch.stack(gradients)


def test_sampling_accepts_a_run_in_order_and_rejects_one_that_refits_first() -> None:
    assert largest_z(online_gradients(200, refitted_first=False)) < CLEAN
    assert largest_z(online_gradients(200, refitted_first=True)) > DECISIVE


# --- variance -------------------------------------------------------------------------------------------------------


def variance_of(advantages_of: Callable[[Rollouts], Tensor]) -> float:
    """Trace of Cov of a group's mean gradient term, averaged over prompts: an exact sum over pairs of actions."""
    batch, score_BD, weight_B = WORLD.all_groups(2)
    terms_GD = (advantages_of(batch)[:, None] * score_BD).reshape(-1, 2, PARAMETERS).mean(1)
    weights_PN1 = weight_B[::2].reshape(PROMPTS, -1, 1)
    terms_PND = terms_GD.reshape(PROMPTS, -1, PARAMETERS)
    mean_P1D = (weights_PN1 * terms_PND).sum(1, keepdim=True)
    return float((weights_PN1 * (terms_PND - mean_P1D).square()).sum((1, 2)).mean())


def gradient_variance(baseline: str, steps: int = 10, form: str = "paper", capacity: int = 16) -> float:
    warm = estimator(baseline, steps, form, capacity)
    return variance_of(lambda batch: warm.credit(batch).advantages_B)


def oracle_variance(weighted: bool) -> float:
    """With b(x) = E[|s|² r | x] / E[|s|² | x], the best function of the prompt; or with b(x) = E[r | x]."""
    weight_PA = WORLD.pi_PA * (WORLD.score_PAD.square().sum(2) if weighted else 1)
    value_P = (weight_PA * WORLD.reward_PA).sum(1) / weight_PA.sum(1)
    prompts_B = torch.arange(PROMPTS).repeat_interleave(2 * ACTIONS**2)
    return variance_of(lambda batch: batch.rewards_B - value_P[prompts_B])


def test_informative_states_lower_the_variance() -> None:
    probe, leave_one_out, none = (gradient_variance(name) for name in ("probe", "leave-one-out", "none"))
    assert probe < 0.8 * leave_one_out
    assert probe < 0.5 * none


def test_the_weighted_oracle_has_the_least_variance_and_the_weighted_probe_comes_close() -> None:
    """Two prompts and a long buffer: the probe can express any function of the prompt, so it reaches its oracle."""
    best, expected = oracle_variance(weighted=True), oracle_variance(weighted=False)
    assert best < 0.97 * expected
    weighted, plain = (gradient_variance("probe", 100, form, 400) for form in ("weighted", "paper"))
    assert best <= weighted < 0.5 * (best + expected)
    assert expected <= plain


# --- independence, bit for bit --------------------------------------------------------------------------------------


kept_estimator = functools.cache(estimator)  # crediting changes nothing


def changed(batch: Rollouts, row: int, seed: int, reward: float, absent: bool) -> Rollouts:
    """The batch with another response at `row`: other reward, other states."""
    assert batch.features is not None
    draw = torch.Generator().manual_seed(seed)

    def another(values: Tensor) -> Tensor:
        values = values.clone()
        values[row] = torch.nan if absent else 100 * torch.randn(values.shape[1:], generator=draw)
        return values

    rewards_B, weights_B = batch.rewards_B.clone(), another(batch.weights_B)
    rewards_B[row] = reward
    return replace(batch, rewards_B=rewards_B, features=batch.features.map(another), weights_B=weights_B)


@pytest.mark.parametrize(
    ("baseline", "form"),
    [
        *(("probe", form) for form in FORMS),
        *((name, "paper") for name in ("leave-one-out", "shrinkage", "tracker", "none")),
    ],
)
@given(
    size=st.sampled_from([2, 3, 4, 8]),
    steps=st.sampled_from([0, 4]),
    seed=st.integers(0, 10**6),
    reward=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
    absent=st.booleans(),
    failed=st.sets(st.integers(0, 15), max_size=6),
)
def test_a_rollout_never_moves_its_own_baseline(
    baseline: str, form: str, size: int, steps: int, seed: int, reward: float, absent: bool, failed: set[int]
) -> None:
    draw = torch.Generator().manual_seed(seed)
    batch, _ = WORLD.batch(WORLD.sample(size, draw))
    rewards_B = batch.rewards_B.clone()
    rewards_B[[row for row in failed if row < len(rewards_B)]] = torch.nan
    batch = replace(batch, rewards_B=rewards_B)
    warm = kept_estimator(baseline, steps, form)
    row = seed % len(rewards_B)
    before, after = warm.credit(batch), warm.credit(changed(batch, row, seed, reward, absent))
    assert before.baselines_B[row].view(torch.int32) == after.baselines_B[row].view(torch.int32)


def test_group_mean_is_the_exception_that_moves() -> None:
    batch, _ = WORLD.batch(torch.tensor([[0, 1], [2, 0]]))
    warm = estimator("group-mean")
    after = warm.credit(changed(batch, 0, 0, 7.0, False))
    assert after.baselines_B[0] != warm.credit(batch).baselines_B[0]
