"""Batches, groups and credits: rows stay together whatever their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.core import Credit, EstimatorConfig, Features, Rollouts, ValueEstimator, domain_id, map_tensors
from poise.core.rollouts import Grouping
from poise.errors import ConfigError


def features_of(rows: int) -> Features:
    return Features(torch.randn(rows, 4), torch.randn(rows, 3), torch.rand(rows, 3))


def test_grouping_by_hand() -> None:
    grouping = Grouping.of(torch.tensor([5, -1, 5, 5, -1]))
    assert grouping.pack(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])).nan_to_num(-1).tolist() == [[1, 4, -1], [0, 2, 3]]
    assert grouping.unpack(torch.tensor([[1.0, 4.0, 9.0], [0.0, 2.0, 3.0]])).tolist() == [0, 1, 2, 3, 4]


@given(groups=st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_unpacking_undoes_packing(groups: list[int]) -> None:
    values_B = torch.arange(float(len(groups)))
    grouping = Grouping.of(torch.tensor(groups))
    packed_PG = grouping.pack(values_B)
    assert grouping.unpack(packed_PG).tolist() == values_B.tolist()
    rows = [[i for i, group in enumerate(groups) if group == name] for name in sorted(set(groups))]
    assert [row[~row.isnan()].tolist() for row in packed_PG] == rows


@pytest.mark.usefixtures("without_type_checks")
def test_rows_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"'rewards': 3, 'groups': 3, 'features': 2"):
        Rollouts(torch.zeros(3), torch.zeros(3, dtype=torch.long), features_of(2))
    with pytest.raises(ConfigError, match=r"'domains': 4"):
        Rollouts(torch.zeros(3), torch.zeros(3, dtype=torch.long), None, torch.zeros(4, dtype=torch.long))


def test_features_with_and_without_outcomes_are_not_joined() -> None:
    bare = features_of(4)
    earned = replace(bare, reward_B=torch.ones(4))
    both, score = replace(earned, squared_score_B=torch.ones(4)), replace(bare, squared_score_B=torch.ones(4))
    for parts in ([bare, earned], [earned, both], [both, earned], [earned, score]):
        with pytest.raises(ConfigError, match="some of these features carry"):
            Features.cat(parts)


def test_features_select_and_cat() -> None:
    features = features_of(5)
    joined = Features.cat([features.select(slice(0, 2)), features.select(torch.tensor([2, 3, 4]))])
    assert len(joined) == 5
    for name in ("prompt_BH", "reasoning_BH", "entropy_BE"):
        assert torch.equal(getattr(joined, name), getattr(features, name))


def credit_of(rows: int, with_features: bool = True, updates: int = 0) -> Credit:
    estimator = ValueEstimator(EstimatorConfig("probe" if with_features else "leave-one-out"))
    batch = Rollouts(torch.rand(rows), torch.arange(rows) // 2, features_of(rows) if with_features else None)
    for _ in range(updates):
        estimator.update(estimator.credit(batch))
    return estimator.credit(batch)


def test_credits_of_one_step_are_joined() -> None:
    first, second = credit_of(4), credit_of(2)
    joined = Credit.cat([first, second])
    assert len(joined) == 6
    assert joined.features is not None
    assert len(joined.features) == 6
    assert torch.equal(joined.advantages_B, torch.cat([first.advantages_B, second.advantages_B]))
    assert len(Credit.cat([credit_of(2, False), credit_of(4, False)])) == 6


def test_credits_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one probe, got versions \[0, 1\]"):
        Credit.cat([credit_of(2), credit_of(2, updates=1)])
    with pytest.raises(ConfigError, match="1 of 2 credits of one update carry features"):
        Credit.cat([credit_of(2), credit_of(2, with_features=False)])


def test_credit_maps_every_tensor() -> None:
    credit = credit_of(4)
    reversed_credit = credit.map(lambda tensor: tensor.flip(0))
    assert torch.equal(reversed_credit.rewards_B.flip(0), credit.rewards_B)
    assert reversed_credit.features is not None
    assert credit.features is not None
    assert torch.equal(reversed_credit.features.entropy_BE.flip(0), credit.features.entropy_BE)
    assert reversed_credit.version == credit.version


def test_map_tensors_walks_dicts_and_leaves_the_rest() -> None:
    tree = {"a": torch.ones(2), "b": {"c": torch.ones(1), "d": "text"}, "e": None}
    doubled = map_tensors(tree, lambda tensor: 2 * tensor)
    assert doubled["a"].tolist() == [2, 2]
    assert doubled["b"]["c"].tolist() == [2]
    assert (doubled["b"]["d"], doubled["e"]) == ("text", None)


def test_domain_ids_are_stable_and_fit_an_int64() -> None:
    assert domain_id("math") == 24953238152996721  # the first 7 bytes of `printf math | sha256sum`
    assert all(0 < domain_id(name) < 2**63 for name in ("", "code", "math", "Mathe"))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no rollout"):
        Rollouts(torch.empty(0), torch.empty(0, dtype=torch.long))
