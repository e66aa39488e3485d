"""The per-prompt tracker with literal numbers, against a dictionary, and through the estimator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.core import EstimatorConfig, Rollouts, Tracker, TrackerConfig, ValueEstimator
from poise.errors import ConfigError, StateMismatchError

SHORT = TrackerConfig(prior=0.5, half_life=1.0)  # keeps 0.875 per visit


def test_kept_is_a_half_life_within_bounds() -> None:
    kept = TrackerConfig(half_life=16.0).kept(torch.tensor([0, 1, 2, 100]))
    torch.testing.assert_close(kept.tolist(), [0.96, 2 ** (-1 / 16), 2 ** (-1 / 8), 0.875])
    assert TrackerConfig().prior_count == 8


def test_two_batches_by_hand() -> None:
    tracker = Tracker.start(SHORT)
    assert tracker.predict(torch.tensor([7, 3])).tolist() == [0.5, 0.5]
    tracker = tracker.updated(torch.tensor([7, 3, 7, 7]), torch.tensor([1.0, 1.0, 0.0, 1.0]), SHORT)
    # 8 prior rollouts of 0.5 each, then 3 and 1 more; all prompts together: 7 of 0.5, then 4.
    torch.testing.assert_close(
        tracker.predict(torch.tensor([3, 7, 9])), torch.tensor([5 / 9, 6 / 11, 6.5 / 11]), atol=1e-6, rtol=0
    )
    tracker = tracker.updated(torch.tensor([9, 7, 1]), torch.tensor([math.nan, 0.0, 1.0]), SHORT)
    seven, one = 0.875 * 11 * (6 / 11) / (0.875 * 11 + 1), (8 * 6.5 / 11 + 1) / 9
    torch.testing.assert_close(
        tracker.predict(torch.tensor([1, 3, 7])), torch.tensor([one, 5 / 9, seven]), atol=1e-6, rtol=0
    )
    assert tracker.prompts_K.tolist() == [1, 3, 7]
    assert (tracker.seen_K.tolist(), int(tracker.updates)) == ([2, 1, 2], 2)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, -2.5, math.nan])), max_size=8), max_size=6
    ),
    st.floats(0.5, 50),
)
def test_tracker_equals_a_dictionary(batches: list[list[tuple[int, float]]], half_life: float) -> None:
    config = TrackerConfig(prior=0.25, half_life=half_life)
    tracker, known, fresh, fresh_count = Tracker.start(config), {}, 0.25, 8.0
    for step, batch in enumerate(batches, start=1):
        prompts, rewards = [row[0] for row in batch], [row[1] for row in batch]
        tracker = tracker.updated(torch.tensor(prompts, dtype=torch.int64), torch.tensor(rewards), config)
        good = [(prompt, reward) for prompt, reward in batch if not math.isnan(reward)]
        for prompt in {prompt for prompt, _ in good}:
            own = [reward for other, reward in good if other == prompt]
            value, count, seen = known.get(prompt, (fresh, 8.0, None))
            count *= 1 if seen is None else min(0.96, max(0.875, 2 ** (-(step - seen) / half_life)))
            known[prompt] = ((count * value + sum(own)) / (count + len(own)), count + len(own), step)
        fresh_count *= min(0.96, max(0.875, 2 ** (-1 / half_life)))
        fresh = (fresh_count * fresh + sum(reward for _, reward in good)) / (fresh_count + len(good))
        fresh_count += len(good)
    wanted = [known[prompt][0] if prompt in known else fresh for prompt in range(7)]
    torch.testing.assert_close(tracker.predict(torch.arange(7)), torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def estimator() -> ValueEstimator:
    return ValueEstimator(EstimatorConfig("tracker", tracker=SHORT))


def rollouts(prompts: list[int], rewards: list[float]) -> Rollouts:
    ids = torch.tensor(prompts)
    return Rollouts(torch.tensor(rewards), torch.arange(len(prompts)), prompts_B=ids)


def test_a_batch_is_credited_before_it_is_remembered() -> None:
    made = estimator()
    credit = made.credit(rollouts([7, 3], [1.0, 0.0]))
    assert credit.advantages_B.tolist() == [0.5, -0.5]
    metrics = made.update(credit)
    assert (metrics["prediction_mean"], metrics["mae"], metrics["tracked_prompts"]) == (0.5, 0.5, 2.0)
    again = made.credit(rollouts([7], [1.0]))
    torch.testing.assert_close(again.baselines_B, torch.tensor([5 / 9]))


def test_state_goes_on_where_it_stopped() -> None:
    made, copy = estimator(), estimator()
    for prompts, rewards in (([5, 2, 5], [1.0, 0.0, 1.0]), ([2, 8], [1.0, math.nan])):
        made.update(made.credit(rollouts(prompts, rewards)))
    copy.load_state_dict(made.state_dict())
    batch = rollouts([2, 5, 8, 9], [0.0, 1.0, 1.0, 0.0])
    first, second = made.credit(batch), copy.credit(batch)
    assert torch.equal(first.baselines_B, second.baselines_B)
    assert made.update(first).items() >= {"tracked_prompts": 4.0}.items()
    copy.update(second)
    for name, tensor in made.state_dict()["tensors"].items():
        assert torch.equal(tensor, copy.state_dict()["tensors"][name]), name
    with pytest.raises(StateMismatchError, match="half_life"):
        ValueEstimator(EstimatorConfig("tracker")).load_state_dict(made.state_dict())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="needs the prompts' ids"):
        estimator().credit(Rollouts(torch.ones(2), torch.zeros(2, dtype=torch.int64)))
