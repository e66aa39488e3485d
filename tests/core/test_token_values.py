"""The value of a prefix: the fit against an oracle, its fold, the buffer, what is left out, and exact resumption."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from poise.core import Credit, TokenSamples, TokenStates, TokenValues, TokenValuesConfig, load_state, save_state
from poise.core.prefixes import Prefixes, PrefixValue, fit_value
from poise.core.projection import Projection
from poise.core.scores import relative_weights
from poise.core.token_values import token_metrics
from poise.errors import ConfigError

WIDTH, SAMPLES, TOKENS = 6, 4, 5
SMALL = TokenValuesConfig(samples=SAMPLES, capacity=64, cold_start=16, components=3, alpha=1.0)
DIRECTION_H = torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))


def credited(rewards_B: Tensor, baselines_B: Tensor, from_probe: bool = True) -> Credit:
    ones_B = torch.ones_like(rewards_B)
    groups_B = torch.arange(len(rewards_B)) // 2
    used_B = rewards_B.isfinite() & baselines_B.isfinite()
    return Credit(
        rewards_B=rewards_B,
        groups_B=groups_B,
        domains_B=torch.zeros_like(groups_B),
        predictions_B=baselines_B,
        baselines_B=baselines_B,
        advantages_B=(rewards_B - baselines_B).nan_to_num(0.0),
        targets_B=ones_B,
        target_weights_B=ones_B,
        weights_B=ones_B,
        from_probe_B=used_B & from_probe,
        features=None,
        version=0,
    )


def batch(values: TokenValues, rows: int = 8, seed: int = 0) -> tuple[TokenStates, Credit]:
    """Rollouts whose prefixes know the reward in part, as a capture would have read them at the value's version."""
    draw = torch.Generator().manual_seed(100 * values.version + seed)
    states_BTH = torch.randn(rows, TOKENS, WIDTH, generator=draw)
    rewards_B = states_BTH.mean(1) @ DIRECTION_H + 0.1 * torch.randn(rows, generator=draw)
    vector_H = values.warm.vector_H if values.warm is not None else torch.full((WIDTH,), torch.nan)
    projections_BT = states_BTH @ vector_H
    samples = TokenSamples(
        states_BTH[:, :SAMPLES],
        projections_BT[:, :SAMPLES],
        torch.rand(rows, SAMPLES, generator=draw),
        torch.arange(SAMPLES).expand(rows, SAMPLES) / TOKENS,
        torch.full((rows,), TOKENS),
        values.version,
    )
    baselines_B = 0.3 * rewards_B + 0.1 * torch.randn(rows, generator=draw)
    return TokenStates(projections_BT, samples), credited(rewards_B, baselines_B)


def stepped(values: TokenValues, steps: int) -> TokenValues:
    for _ in range(steps):
        tokens, credit = batch(values)
        values.update(tokens.samples, credit)
    return values


# --- the fit --------------------------------------------------------------------------------------------------------


def prefixes(rows: int = 40) -> Prefixes:
    draw = torch.Generator().manual_seed(1)
    states_BH = 5 + torch.randn(rows, WIDTH, generator=draw) * torch.arange(1, WIDTH + 1)
    baselines_B, rewards_B = torch.rand(rows, generator=draw), torch.rand(rows, generator=draw)
    return Prefixes(states_BH, baselines_B, rewards_B, torch.rand(rows, generator=draw), torch.arange(rows) // 4)


@pytest.mark.parametrize("components", [None, 3])
def test_folded_value_equals_scikit_learns_weighted_ridge(components: int | None) -> None:
    rows = prefixes()
    value = fit_value(rows, components, alpha=2.0)
    design = torch.cat([value.projection(rows.states_BH).double(), rows.baselines_B.double()[:, None]], 1)
    oracle = Ridge(alpha=2.0).fit(
        design.numpy(),
        (rows.rewards_B - rows.baselines_B).double().numpy(),
        sample_weight=relative_weights(rows.weights_B).numpy(),
    )
    wanted = rows.baselines_B.double() + torch.from_numpy(oracle.predict(design.numpy()))
    found = value((rows.states_BH @ value.vector_H)[:, None], rows.baselines_B)[:, 0]
    torch.testing.assert_close(found.double(), wanted.clamp(value.low, value.high), atol=1e-5, rtol=1e-5)


def test_much_penalty_leaves_the_sequence_level_baseline() -> None:
    rows = prefixes()
    rows = replace(rows, baselines_B=rows.baselines_B - rows.baselines_B.mean() + rows.rewards_B.mean())
    value = fit_value(replace(rows, weights_B=torch.ones(len(rows))), None, alpha=1e12)
    assert value.vector_H.abs().max() < 1e-6
    assert (abs(value.sibling), abs(value.intercept)) < (1e-6, 1e-5)


def test_value_by_hand() -> None:
    projection = Projection(torch.zeros(1), torch.ones(1), None, 1)
    value = PrefixValue(torch.ones(1), intercept=0.1, sibling=-0.5, low=0.0, high=1.0, projection=projection)
    found = value(torch.tensor([[0.2, 2.0, math.nan], [-1.0, math.inf, 0.0]]), torch.tensor([0.4, 0.8]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0, 0.4], [0.0, 1.0, 0.5]]))


# --- credit ---------------------------------------------------------------------------------------------------------


def test_advantages_are_reward_minus_value_and_zero_for_the_failed() -> None:
    values = stepped(TokenValues(SMALL), 3)
    tokens, credit = batch(values, rows=4)
    rewards_B = credit.rewards_B.clone()
    rewards_B[1] = torch.nan
    credit = credited(rewards_B, credit.baselines_B)
    mask_BT = torch.ones(4, TOKENS).bool()
    mask_BT[2, 3:] = False
    found = values.advantages(tokens, credit, mask_BT)
    assert values.warm is not None
    for b in (0, 2, 3):
        for t in range(TOKENS):
            raw = float(tokens.projections_BT[b, t]) + values.warm.intercept
            raw += (1 + values.warm.sibling) * float(credit.baselines_B[b])
            wanted = float(rewards_B[b]) - min(max(raw, values.warm.low), values.warm.high)
            assert found[b, t] == pytest.approx(wanted if mask_BT[b, t] else 0.0, abs=1e-6)
    assert (found[1] == 0).all()


def test_order_is_enforced() -> None:
    values = TokenValues(SMALL)
    tokens, credit = batch(values)
    values.update(tokens.samples, credit)
    with pytest.raises(ConfigError, match="version 0, the value is at 1"):
        values.update(tokens.samples, credit)
    with pytest.raises(ConfigError, match="version 0, the value is at 1"):
        values.advantages(tokens, credit, torch.ones(8, TOKENS))


# --- what it learns from --------------------------------------------------------------------------------------------


def test_failed_empty_and_overflown_rollouts_teach_nothing() -> None:
    values = TokenValues(SMALL)
    tokens, credit = batch(values)
    rewards_B, states_BMH, tokens_B = credit.rewards_B.clone(), tokens.samples.states_BMH.clone(), torch.full((8,), 5)
    rewards_B[0], states_BMH[1, 2, 3], tokens_B[2] = torch.nan, torch.inf, 0
    samples = replace(tokens.samples, states_BMH=states_BMH, tokens_B=tokens_B)
    values.update(samples, credited(rewards_B, credit.baselines_B))
    held = values.buffer.pairs
    assert held is not None
    assert len(values.buffer) == 5 * SAMPLES
    assert torch.equal(held.rewards_B, credit.rewards_B[3:].repeat_interleave(SAMPLES))
    assert torch.equal(held.states_BH, tokens.samples.states_BMH[3:].reshape(-1, WIDTH))


def test_cold_baselines_teach_nothing_once_the_probe_is_there() -> None:
    values = TokenValues(SMALL)
    tokens, credit = batch(values)
    mixed_B = torch.arange(8) < 2
    values.update(tokens.samples, replace(credit, from_probe_B=mixed_B))
    assert len(values.buffer) == 2 * SAMPLES
    tokens, credit = batch(values)
    values.update(tokens.samples, replace(credit, from_probe_B=torch.zeros(8).bool()))
    assert len(values.buffer) == 10 * SAMPLES


@pytest.mark.parametrize("weights", ["none", "score"])
def test_every_token_counts_equally_or_by_its_squared_score(weights: str) -> None:
    values = TokenValues(replace(SMALL, weights=weights))
    tokens, credit = batch(values, rows=2)
    samples = replace(tokens.samples, tokens_B=torch.tensor([2, 10]))
    values.update(samples, credit)
    held = values.buffer.pairs
    assert held is not None
    wanted_BM = torch.tensor([[0.5], [2.5]]) * (samples.surprise_BM if weights == "score" else 1.0)
    torch.testing.assert_close(held.weights_B, wanted_BM.expand(2, SAMPLES).flatten())


def test_whole_rollouts_are_evicted_oldest_first() -> None:
    values = TokenValues(replace(SMALL, capacity=18, cold_start=4))
    stepped(values, 1)
    assert len(values.buffer) == 4 * SAMPLES
    held = values.buffer.pairs
    assert held is not None
    assert held.groups_B.tolist() == [group for group in range(4, 8) for _ in range(SAMPLES)]


def test_a_value_learns_what_prefixes_know() -> None:
    values = TokenValues(replace(SMALL, capacity=4096, components=None))
    assert values.warm is None
    for _ in range(30):
        tokens, credit = batch(values, rows=32)
        metrics = values.update(tokens.samples, credit)
    assert metrics["token_gain"] > 0.15
    assert metrics["token_buffer_rows"] == 30 * 32 * SAMPLES


def test_metrics_by_hand() -> None:
    """Errors of V: .5 and 0 in the first rollout, 1 and .5 in the second; of b: .5 and 1."""
    samples = TokenSamples(
        torch.zeros(2, 2, 1), torch.zeros(2, 2), torch.tensor([[1.0, 0.5], [0.25, 1.0]]),
        torch.tensor([[0.0, 0.75], [0.25, 0.9]]), torch.tensor([2, 4]), 0,
    )  # fmt: skip
    values_BM = torch.tensor([[0.5, 1.0], [1.0, 0.5]])
    found = token_metrics(samples, values_BM, credited(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0])))
    # Σ w e²: 2·1·.25 + 0 + 4·.25·1 + 4·1·.25 = 2.5; of b: 2·1.5·.25 + 4·1.25·1 = 5.75
    assert found["token_gain"] == pytest.approx(1 - 2.5 / 5.75)
    # Around the mean .5, each token's spread is .25: first third 2·.25 + 4·1 over 6·.25, last 0 + 4·.25 over 6·.25
    assert found["token_explained_variance_1"] == pytest.approx(1 - 4.5 / 1.5)
    assert math.isnan(found["token_explained_variance_2"])
    assert found["token_explained_variance_3"] == pytest.approx(1 - 1 / 1.5)


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_resumed_value_takes_the_same_next_step(steps: int, tmp_path: Path) -> None:
    values, resumed = stepped(TokenValues(SMALL), steps), TokenValues(SMALL)
    save_state(tmp_path / "tokens", values.state_dict())
    resumed.load_state_dict(load_state(tmp_path / "tokens"))
    stepped(values, 2)
    stepped(resumed, 2)
    one, other = values.state_dict(), resumed.state_dict()
    assert one["meta"] == other["meta"]
    assert one["tensors"].keys() == other["tensors"].keys()
    assert all(torch.equal(one["tensors"][name], other["tensors"][name]) for name in one["tensors"])


def test_followers_hold_the_main_processs_value() -> None:
    main = TokenValues(SMALL)
    follower = TokenValues(SMALL, is_main=False, broadcast=lambda _: main.value)
    for _ in range(3):
        tokens, credit = batch(main)
        main.update(tokens.samples, credit)
        follower.update(tokens.samples, credit)
    assert main.warm is not None
    assert follower.warm is main.value


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gae_lambda": 1.5}, "between 0 and 1, got 1.5"),
        ({"samples": 0}, "at least one sampled prefix"),
        ({"cold_start": 9, "capacity": 8}, "cold_start=9"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TokenValuesConfig(**wrong)
