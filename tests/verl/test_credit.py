"""From a verl batch's keys and tags to rollouts, and from their credit back to rows."""

from __future__ import annotations

import pytest
import torch

from poise.core import EstimatorConfig, Features, ProbeConfig, ValueEstimator, domain_id
from poise.verl.credit import BatchRows, number_or_none, predictions_by_key, unused_rows

# Two prompts of two rollouts and one that lost a rollout, shuffled, with two padding rows; b_1 has two outputs.
KEYS = ["b_1_0", "pad9_0_0", "a_0_0", "c_1_0", "b_0_0", "a_1_0", "b_1_1", "pad9_1_0"]
TAGS = [{"is_padding": key.startswith("pad")} for key in KEYS]


def test_rows_are_read_from_keys() -> None:
    rows = BatchRows.of(KEYS, TAGS)
    assert rows.rollout_B.tolist() == [0, -1, 1, 2, 3, 4, 0, -1]
    assert rows.last_R.tolist() == [6, 2, 3, 4, 5], "the last output of b_1 stands for it"
    assert rows.first_R.tolist() == [0, 2, 3, 4, 5], "but its prompt is that of its first output"
    assert rows.groups_R.tolist() == [0, 1, 2, 0, 1]


def test_a_prompt_name_may_hold_underscores() -> None:
    rows = BatchRows.of(["x_1_0_0", "x_1_1_0", "x_2_0_0"], [{}, {}, {}])
    assert rows.groups_R.tolist() == [0, 0, 1]


def test_rewards_features_and_domains_follow_the_last_output() -> None:
    rows = BatchRows.of(KEYS, TAGS)
    states_BH = torch.arange(8.0)[:, None].expand(8, 3)
    features = Features(states_BH, states_BH + 100, states_BH + 200)
    sources = ["math"] * 4 + ["code"] * 4
    rollouts = rows.rollouts(torch.arange(8.0), features, sources)
    assert rollouts.rewards_B.tolist() == [6, 2, 3, 4, 5]
    assert rollouts.features is not None
    assert rollouts.features.reasoning_BH[:, 0].tolist() == [106, 102, 103, 104, 105]
    assert rollouts.features.prompt_BH[:, 0].tolist() == [0, 2, 3, 4, 5]
    assert rollouts.domains_B is not None
    math, code = domain_id("math"), domain_id("code")
    assert rollouts.domains_B.tolist() == [code, math, math, code, code]


def test_a_rollouts_score_is_that_of_all_its_outputs() -> None:
    rows = BatchRows.of(KEYS, TAGS)
    features, scores_B = Features(torch.zeros(8, 2), torch.zeros(8, 2), torch.zeros(8, 3)), torch.arange(1.0, 9.0)
    rollouts = rows.rollouts(torch.zeros(8), features, ["math"] * 8, (scores_B, scores_B / 2))
    assert rollouts.features is not None
    for values_B, share in ((rollouts.features.squared_score_B, 1), (rollouts.weights_B, 2)):
        assert values_B is not None
        assert (share * values_B).tolist() == [1 + 7, 3, 4, 5, 6]


@pytest.mark.parametrize("baseline", ["prompt-probe", "auto"])
def test_the_prompt_says_nothing_of_what_its_rollout_wrote(baseline: str) -> None:
    """Single rollouts of two outputs, in either order: the later prompt holds the step that decides the reward."""
    torch.manual_seed(0)
    estimator = ValueEstimator(EstimatorConfig(baseline, ProbeConfig(alpha=1e-3), cold_start_rows=1))
    outputs = [(prompt, output) for prompt in range(64) for output in ((0, 1) if prompt % 2 else (1, 0))]
    rows = BatchRows.of([f"p{prompt}_0_{output}" for prompt, output in outputs], [{}] * 128)
    prompt_B, output_B = torch.tensor(outputs).T
    for _ in range(4):
        wrote_R = (torch.rand(64) < 0.5).float()
        prompt_BH = (wrote_R[prompt_B] * output_B)[:, None].expand(128, 4)
        features = Features(prompt_BH, torch.randn(128, 4), torch.zeros(128, 3))
        credit = estimator.credit(rows.rollouts(wrote_R[prompt_B], features, ["m"] * 128))
        estimator.update(credit)
    wrong_B, right_B = (credit.baselines_B[wrote_R == reward] for reward in (0, 1))
    # The mean of the other prompts lacks the rollout's own reward, and differs by 1/63.
    assert right_B.mean().item() == pytest.approx(wrong_B.mean().item(), abs=1 / 63 + 1e-4)


def test_leave_one_out_credit_by_hand() -> None:
    """a: 1 and 0; b: 1 and a failure; c: 1, alone."""
    rows = BatchRows.of(KEYS, TAGS)
    nan = torch.nan
    rewards_B = torch.tensor([9.0, 7.0, 1.0, 1.0, nan, 0.0, 1.0, 7.0])
    estimator = ValueEstimator(EstimatorConfig(baseline="leave-one-out"))
    credit = estimator.credit(rows.rollouts(rewards_B, None, ["math"] * 8))
    # b_1's sibling failed and c_1 has none: the mean reward of the other prompts, (1 + 0 + 1) / 3, serves both.
    by_row = rows.spread(credit.advantages_B, padding=0.0).tolist()
    assert by_row == pytest.approx([1 / 3, 0, 1, 1 / 3, 0, -1, 1 / 3, 0])
    assert unused_rows(rows, credit) == [4]
    dumped = predictions_by_key(KEYS, rows, credit)
    assert dumped["a_1_0"] == {"prediction": None, "baseline": 1.0, "advantage": -1.0}
    assert dumped["b_0_0"]["advantage"] is None, "it left the update"
    assert dumped["pad9_0_0"] == {"prediction": None, "baseline": None, "advantage": None}


def test_padding_rows_never_enter_the_buffer() -> None:
    rows = BatchRows.of(KEYS, TAGS)
    torch.manual_seed(0)
    features = Features(torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 3))
    estimator = ValueEstimator(EstimatorConfig(cold_start_rows=1))
    rewards_B = torch.tensor([1.0, 7.0, 1.0, 1.0, torch.nan, 0.0, 1.0, 7.0])
    credit = estimator.credit(rows.rollouts(rewards_B, features, ["math"] * 8))
    metrics = estimator.update(credit)
    # Pairs: a_0 -> r(a_1), a_1 -> r(a_0). b_0's reward failed, so b_1 has no target; c_1 has no sibling.
    assert metrics["buffer_rows"] == 2
    assert metrics["failed"] == 1
    (buffer,) = estimator.buffers.values()
    assert buffer.pairs is not None
    assert sorted(buffer.pairs.targets_B.tolist()) == [0.0, 1.0]


def test_a_domain_has_its_own_buffer() -> None:
    keys = [f"{prompt}_{rollout}_0" for prompt in "abcd" for rollout in range(2)]
    rows = BatchRows.of(keys, [{}] * 8)
    features = Features(torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 3))
    estimator = ValueEstimator(EstimatorConfig())
    sources = ["math"] * 4 + ["code"] * 4
    estimator.update(estimator.credit(rows.rollouts(torch.rand(8), features, sources)))
    assert {key: len(buffer) for key, buffer in estimator.buffers.items()} == {
        domain_id("math"): 4,
        domain_id("code"): 4,
    }


def test_a_batch_of_padding_only() -> None:
    rows = BatchRows.of(["p_0_0"], [{"is_padding": True}])
    assert rows.spread(torch.empty(0), padding=0.0).tolist() == [0.0]


def test_json_has_no_nan() -> None:
    assert [number_or_none(value) for value in (0.5, float("nan"), "text", None, 3)] == [0.5, None, "text", None, 3]
