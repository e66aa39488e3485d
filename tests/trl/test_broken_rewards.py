"""Rewards that are None, NaN, raise or time out: such rollouts leave the update and the buffer, never as zeros."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny_policy
from poise.errors import RewardError
from poise.rewards import Verdict, as_trl_reward
from poise.trl.guard import RewardGuard, mark_failed_models, total_rewards

NAN, INF = float("nan"), float("inf")


def call(function: Any, rows: int = 2, timeout: float | None = None) -> list[float | None]:
    return RewardGuard(timeout).wrap(function)(prompts=["p"] * rows, completions=["c"] * rows)


def test_values_keep_their_meaning() -> None:
    assert call(lambda **_: [1, None, NAN, -INF, torch.tensor(0.5), True], rows=6) == [1.0, None, INF, INF, 0.5, 1.0]


def test_exception_fails_every_rollout_of_the_call() -> None:
    guard = RewardGuard(None)

    def broken(**columns: Any) -> list[float]:
        raise KeyError("answer")

    assert guard.wrap(broken)(prompts=["p"] * 3, completions=["c"] * 3) == [INF] * 3
    assert guard.last_failure == "broken raised KeyError: 'answer'"


def misses_a_column(completions: list[str], solution: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def takes_no_more(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


async def later(completions: list[str], solution: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def of_one(completion: str, example: Any) -> float:
    return 0.0


WRONG = [
    (misses_a_column, r"takes \(completions, solution, columns\) and .*; the dataset has no column 'solution'"),
    (later, "the dataset has no column 'solution'"),
    (takes_no_more, r"unexpected keyword argument 'prompts'; end its parameters with \*\*columns"),
    (of_one, "wrap a function of one completion and its row in poise.rewards.as_trl_reward"),
]


@pytest.mark.parametrize(("function", "said"), WRONG)
def test_a_function_that_cannot_be_called_is_wrong_and_not_a_judge_that_failed(function: Any, said: str) -> None:
    guarded = RewardGuard(None).wrap(function)

    async def called() -> None:
        rewards = guarded(prompts=["p"], completions=["c"], answer=["a"])
        assert asyncio.iscoroutine(rewards)
        await rewards

    with pytest.raises(RewardError, match=said):
        asyncio.run(called())


def test_a_type_error_within_a_function_is_a_failure() -> None:
    assert call(lambda completions, **_: [0.0 + None]) == [INF, INF]


def test_time_out_fails_the_call_and_returns_in_time() -> None:
    began = time.monotonic()
    assert call(lambda **_: time.sleep(30), timeout=0.1) == [INF, INF]
    assert time.monotonic() - began < 5


def test_in_time_is_untouched_and_its_exceptions_are_seen_through_the_thread() -> None:
    assert call(lambda **_: [0.25, 0.75], timeout=5) == [0.25, 0.75]

    def broken(**columns: Any) -> list[float]:
        raise ZeroDivisionError

    assert call(broken, timeout=5) == [INF, INF]


def test_async_rewards_are_guarded_too() -> None:
    async def slow(**columns: Any) -> list[float]:
        await asyncio.sleep(30)
        return [1.0]

    class Fine:
        async def __call__(self, **columns: Any) -> list[float]:
            return [1.0, NAN]

    columns = {"prompts": ["p"] * 2, "completions": ["c"] * 2}
    assert asyncio.run(RewardGuard(0.1).wrap(slow)(**columns)) == [INF, INF]
    for fine in (Fine(), functools.partial(Fine(), unused=0), Fine().__call__):
        assert asyncio.run(RewardGuard(None).wrap(fine)(**columns)) == [1.0, INF]


def test_names_and_the_callers_list_survive(tmp_path: Path) -> None:
    functions = [tiny_policy.reward, functools.partial(sometimes_broken, unused=0)]
    given = list(functions)
    assert tiny_policy.trainer(tmp_path, functions).reward_func_names == ["reward", "sometimes_broken"]
    assert functions == given


def test_reward_models_pass_and_their_nan_is_a_failure() -> None:
    """Of a function it says that it does not apply; a model applies to every rollout."""
    module = nn.Linear(1, 1)
    assert RewardGuard(None).wrap(module) is module
    rewards_BF = torch.tensor([[1.0, NAN], [NAN, 1.0]])
    marked_BF = mark_failed_models(rewards_BF, [module, tiny_policy.reward])
    torch.testing.assert_close(marked_BF, torch.tensor([[1.0, NAN], [INF, 1.0]]), equal_nan=True)


class Judge:
    """An environment that rewards its rollouts itself, and cannot always say what they are worth."""

    made = 0

    def __init__(self) -> None:
        self.number = Judge.made
        Judge.made += 1

    def reset(self, **row: Any) -> None:
        return None

    def get_reward(self) -> float:
        return NAN if self.number % 4 == 1 else 1.0


def test_a_reward_of_the_environment_may_fail_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another reward its NaN is not a zero either."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setattr(Judge, "made", 0)
    prompts = tiny_policy.prompts(conversational=True)
    trainer = tiny_policy.trainer(tmp_path, environment_factory=Judge, train_dataset=prompts)
    trainer.train()
    assert trainer._rewards_B.isnan().tolist() == [place % 4 == 1 for place in range(32)]
    assert trainer.state.log_history[0]["poise/failed"] == 8.0


def test_total_rewards_by_hand() -> None:
    rewards_BF = torch.tensor([[1.0, 0.5], [1.0, NAN], [NAN, NAN], [1.0, INF], [0.0, 1.0]])
    total_B, clean_BF = total_rewards(rewards_BF, torch.tensor([1.0, 2.0]))
    expected = torch.tensor([2.0, 1.0, NAN, NAN, 2.0])
    torch.testing.assert_close(total_B, expected, equal_nan=True)
    assert clean_BF[3].isnan().all()  # TRL must not average the half of a failed rollout's reward
    torch.testing.assert_close(clean_BF[1], rewards_BF[1], equal_nan=True)


def sometimes_broken(completions: list[str], target: list[str], **columns: Any) -> list[float | None]:
    """Every fourth rollout fails: one of each second pair."""
    rewards = tiny_policy.reward(completions, target)
    return [NAN if index % 4 == 1 else reward for index, reward in enumerate(rewards)]


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"baseline": "leave-one-out"}])
def test_failed_rollouts_leave_loss_and_buffer(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = tiny_policy.trainer(tmp_path, sometimes_broken, max_steps=4, **settings)
    batches: list[Any] = []
    prepare = trainer._compute_loss

    def spy(model: Any, inputs: Any) -> Any:
        loss = prepare(model, inputs)
        batches.append({name: inputs[name].clone() for name in ("tool_mask", "advantages", "completion_mask")})
        batches[-1]["items"] = float(inputs["num_items_in_batch"])
        return loss

    trainer._compute_loss = spy
    trainer.train()
    last = batches[-1]
    failed_B = last["tool_mask"].sum(1) == 0
    assert int(failed_B.sum()) == 8
    assert (last["advantages"][failed_B] == 0).all()
    assert last["completion_mask"][failed_B].any()  # its tokens are still attended to: its sibling needs its states
    assert last["items"] == float((last["completion_mask"] * last["tool_mask"]).sum())
    logged = [entry for entry in trainer.state.log_history if "poise/failed" in entry]
    assert logged[-1]["poise/failed"] == 8.0
    if trainer.capture_mode == "none":
        # The failed sibling says nothing: the mean of the other prompts serves, so no honest rollout is lost.
        assert logged[-1]["poise/unused"] == 8.0
    else:
        windows = 4 // settings.get("num_iterations", 1)
        # Of each four rollouts: a pair with a failure teaches nothing, the other pair both ways.
        assert sum(len(buffer) for buffer in trainer.estimator.buffers.values()) == windows * 16
        assert logged[-1]["poise/probe_share"] == 1.0


def test_failure_in_one_of_two_functions_fails_the_rollout(tmp_path: Path) -> None:
    def second(completions: list[str], **columns: Any) -> list[float | None]:
        return [NAN if index < 2 else None if index < 4 else 1.0 for index in range(len(completions))]

    trainer = tiny_policy.trainer(tmp_path, [tiny_policy.reward, second], reward_weights=[1.0, 0.5])
    trainer.train()
    rewards_B = trainer._rewards_B
    assert rewards_B[:2].isnan().all()
    assert rewards_B[2:].isfinite().all()
    assert rewards_B[4:].min() >= 0.5
    assert rewards_B[2:4].max() <= 1.0


def test_nothing_but_failures_stops_with_the_reason(tmp_path: Path) -> None:
    def broken(**columns: Any) -> list[float]:
        raise ConnectionError("sandbox is down")

    trainer = tiny_policy.trainer(tmp_path, broken, max_steps=10)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(RewardError, match=r"last 3 generation batches.*broken raised ConnectionError: sandbox is down"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_why_a_verifier_failed_is_remembered() -> None:
    def verify(completion: str, example: Any) -> Verdict:
        return Verdict.failed("the ground truth holds no number")

    guard = RewardGuard(None)
    assert guard.wrap(as_trl_reward(verify))(prompts=["p"], completions=["c"]) == [INF], (
        "beside another reward, None would be a zero"
    )
    assert guard.last_failure == "verify: the ground truth holds no number"
