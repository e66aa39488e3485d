"""Token-level baselines keep the policy gradient unbiased and lower its variance: exact sums over pairs of rollouts.

A policy of two prompts, three tokens and two steps: 9 responses of each prompt, 81 pairs of siblings. States are read
by a real capture of a stand-in block. The same sums must reject three mistakes: the state *after* token t for token t,
a fit on the batch's own rewards, and GAE with λ < 1 - which is offered, and named biased.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from poise.core import (
    Credit,
    EstimatorConfig,
    Features,
    ProbeConfig,
    Rollouts,
    StateCapture,
    StateSpec,
    TokenLayout,
    TokenStates,
    TokenValues,
    TokenValuesConfig,
    ValueEstimator,
)

PROMPTS, TOKENS, STEPS, PARAMETERS, WIDTH = 2, 3, 2, 5, 6
RESPONSES = torch.tensor(list(itertools.product(range(TOKENS), repeat=STEPS)))  # (9, 2)
PAIRS = torch.tensor(list(itertools.product(range(len(RESPONSES)), repeat=2)))  # (81, 2)


class World:
    """log π(y_t | x, y_<t) is a softmax of linear logits; rewards and states are arbitrary functions of the prefix."""

    def __init__(self, seed: int = 7) -> None:
        draw = torch.Generator().manual_seed(seed)
        # Prefix 0 is the prompt alone, 1 + y_1 is one token on, 4 + number of the response its end.
        direction = torch.randn(PROMPTS, 1 + TOKENS, TOKENS, PARAMETERS, generator=draw).double()
        weights_D = 0.3 * torch.randn(PARAMETERS, generator=draw).double()
        pi = (direction @ weights_D).softmax(2)
        score = direction - (pi[..., None] * direction).sum(2, keepdim=True)
        first = RESPONSES[:, 0]
        steps_RT = torch.stack([torch.zeros_like(first), 1 + first], 1)
        self.score_PRTD = score[:, steps_RT, RESPONSES]
        self.pi_PR = pi[:, steps_RT, RESPONSES].prod(2)
        # The first token decides most of the reward: what a prefix knows and a sibling does not.
        main = torch.tensor([[2.0, 0.0, -1.0], [0.5, 3.0, 1.0]])
        self.reward_PR = main[:, first] + 0.3 * torch.randn(PROMPTS, len(RESPONSES), generator=draw)
        states = torch.randn(PROMPTS, 1 + TOKENS + len(RESPONSES), WIDTH, generator=draw)
        ends = 1 + TOKENS + torch.arange(len(RESPONSES))
        self.states_PRTH = states[:, torch.stack([*steps_RT.T, ends], 1)]
        self.exact_PD = (self.pi_PR * self.reward_PR)[..., None].mul(self.score_PRTD.sum(2)).sum(1)

    def sample(self, size: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        responses_PG = torch.multinomial(self.pi_PR, size, replacement=True, generator=draw)
        return torch.arange(PROMPTS).repeat_interleave(size), responses_PG.flatten()


WORLD = World()
STACK = nn.Module()
STACK.layers = nn.ModuleList([nn.Identity()])
MASK = torch.ones(1, STEPS).bool()


class Learner:
    """What an engine holds: the sequence-level estimator and the token-level value on top."""

    def __init__(self, lam: float = 1.0, shift: int = 0) -> None:
        probe = ProbeConfig(prompt_components=None, reasoning_components=None, alpha=1.0)
        self.estimator = ValueEstimator(EstimatorConfig("probe", probe, capacity=64, cold_start_rows=4))
        settings = TokenValuesConfig(lam, samples=4, capacity=512, cold_start=16, components=None, alpha=0.5)
        self.tokens = TokenValues(settings)
        self.shift = shift  # 1 is the planted mistake: state after token t for token t

    def credit(self, prompts_B: Tensor, responses_B: Tensor, groups_B: Tensor) -> tuple[Credit, TokenStates]:
        hidden_BTH = WORLD.states_PRTH[prompts_B, responses_B].roll(-self.shift, 1)
        rows = len(prompts_B)
        layout = TokenLayout.padded(
            torch.zeros(rows, 1).long(), torch.ones(rows, 1), RESPONSES[responses_B], MASK.expand(rows, 2)
        )
        reading = self.tokens.reading(layout)
        with StateCapture(STACK, StateSpec(1, 1, window=1)).armed(layout, tokens=reading) as states:
            STACK.layers[0](hidden_BTH)
        # The probe sees prompt and end of the response, whatever the shift.
        true_BTH = WORLD.states_PRTH[prompts_B, responses_B]
        features = Features(true_BTH[:, 0], true_BTH[:, -1], torch.zeros(rows, 3))
        credit = self.estimator.credit(Rollouts(WORLD.reward_PR[prompts_B, responses_B], groups_B, features))
        log_probs_BT = torch.full((rows, STEPS), 0.5).log()
        return credit, TokenStates.of(reading, states.projections_BT, states.sampled_BMH, log_probs_BT)

    def advantages(self, credit: Credit, tokens: TokenStates) -> Tensor:
        return self.tokens.advantages(tokens, credit, MASK.expand(len(credit), STEPS)).double()

    def update(self, credit: Credit, tokens: TokenStates) -> dict[str, float]:
        return self.estimator.update(credit) | self.tokens.update(tokens.samples, credit)

    def copy(self) -> Learner:
        """With the same sequence-level estimator, and a value of its own."""
        made = Learner(self.tokens.config.gae_lambda, self.shift)
        made.estimator = self.estimator
        made.tokens.load_state_dict(self.tokens.state_dict())
        return made


@cache
def trained(lam: float = 1.0, shift: int = 0) -> Learner:
    learner, draw = Learner(lam, shift), torch.Generator().manual_seed(5)
    for _ in range(12):
        prompts_B, responses_B = WORLD.sample(4, draw)
        learner.update(*learner.credit(prompts_B, responses_B, prompts_B))
    return learner


Crediting = Callable[[Learner, Tensor, Tensor, Tensor], Tensor]


def token_level(learner: Learner, prompts_B: Tensor, responses_B: Tensor, groups_B: Tensor) -> Tensor:
    credit, tokens = learner.credit(prompts_B, responses_B, groups_B)
    assert learner.tokens.warm is not None
    assert credit.from_probe_B.all()
    return learner.advantages(credit, tokens)


def sequence_level(learner: Learner, prompts_B: Tensor, responses_B: Tensor, groups_B: Tensor) -> Tensor:
    credit, _ = learner.credit(prompts_B, responses_B, groups_B)
    return credit.advantages_B.double()[:, None].expand(-1, STEPS)


def refit_first(learner: Learner, prompts_B: Tensor, responses_B: Tensor, groups_B: Tensor) -> Tensor:
    """Planted mistake: the value learns the batch's rewards, then credits the batch."""
    eager = learner.copy()
    credit, tokens = eager.credit(prompts_B, responses_B, groups_B)
    eager.tokens.update(tokens.samples, credit)
    return eager.advantages(*eager.credit(prompts_B, responses_B, groups_B))


def terms(
    learner: Learner, crediting: Crediting, prompts: int = PROMPTS, at_once: bool = True
) -> tuple[Tensor, Tensor]:
    """Each group's mean gradient term Σ_t A_t ∇log π(y_t | s_t), (P, 81, D), and its probability, (P, 81)."""
    prompts_B = torch.arange(prompts).repeat_interleave(PAIRS.numel())
    responses_B, groups_B = PAIRS.flatten().repeat(prompts), torch.arange(prompts * len(PAIRS)).repeat_interleave(2)
    batches = [slice(None)] if at_once else [slice(2 * g, 2 * g + 2) for g in range(prompts * len(PAIRS))]
    parts = [crediting(learner, prompts_B[rows], responses_B[rows], groups_B[rows]) for rows in batches]
    terms_BD = (torch.cat(parts)[..., None] * WORLD.score_PRTD[prompts_B, responses_B]).sum(1)
    probability_PN = WORLD.pi_PR[:prompts, PAIRS].prod(2)
    return terms_BD.reshape(prompts, len(PAIRS), 2, PARAMETERS).mean(2), probability_PN


def relative_error(
    learner: Learner, crediting: Crediting = token_level, prompts: int = PROMPTS, at_once: bool = True
) -> float:
    terms_PND, probability_PN = terms(learner, crediting, prompts, at_once)
    mean_D, exact_D = (probability_PN[..., None] * terms_PND).sum(1).mean(0), WORLD.exact_PD[:prompts].mean(0)
    return float((mean_D - exact_D).norm() / exact_D.norm())


def variance(learner: Learner, crediting: Crediting = token_level) -> float:
    """Trace of the covariance of a group's term, averaged over prompts."""
    terms_PND, probability_PN = terms(learner, crediting)
    weight_PN1 = probability_PN[..., None]
    mean_P1D = (weight_PN1 * terms_PND).sum(1, keepdim=True)
    return float((weight_PN1 * (terms_PND - mean_P1D).square()).sum((1, 2)).mean())


def test_token_level_gradient_is_exact() -> None:
    assert relative_error(trained()) < 1e-6


def test_the_state_after_the_token_is_rejected() -> None:
    assert relative_error(trained(shift=1)) > 0.1


def test_a_value_that_learnt_the_batch_is_rejected() -> None:
    assert relative_error(trained(), refit_first, prompts=1, at_once=False) > 0.01


@pytest.mark.parametrize("lam", [0.0, 0.9])
def test_gae_below_one_is_biased(lam: float) -> None:
    assert relative_error(trained(lam)) > 0.01


def test_a_cold_value_is_the_sequence_level_baseline() -> None:
    learner = trained().copy()
    learner.tokens = TokenValues(learner.tokens.config)
    rows = torch.arange(PROMPTS).repeat_interleave(2), torch.tensor([0, 4, 8, 2]), torch.tensor([0, 0, 1, 1])
    credit, tokens = learner.credit(*rows)
    assert torch.equal(learner.advantages(credit, tokens), sequence_level(learner, *rows))
    assert relative_error(learner, lambda *given: learner.advantages(*learner.credit(*given[1:]))) < 1e-6


def test_what_the_prefix_knows_lowers_the_variance() -> None:
    learner = trained()
    token, sequence = variance(learner), variance(learner, sequence_level)
    assert token < 0.8 * sequence


def test_a_token_and_what_follows_never_move_its_own_baseline() -> None:
    """Bit for bit: another second token moves neither value; another first token moves V_2 alone."""
    learner, zeros = trained(), torch.zeros(2).long()

    def values(response: int) -> list[float]:
        credit, tokens = learner.credit(zeros, torch.tensor([response, 7]), zeros)
        unrewarded = replace(credit, rewards_B=torch.zeros(2))
        return learner.advantages(unrewarded, tokens)[0].tolist()

    assert values(2) == values(0)
    assert values(4)[0] == values(0)[0]
    assert abs(values(4)[1] - values(0)[1]) > 0.05
