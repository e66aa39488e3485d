"""Our rewards under verl's signature: scores as they are, failures as NaN with their reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from poise.errors import ConfigError
from poise.rewards import Verdict
from poise.tasks import load_task, reward_of
from poise.verl.convert import to_verl
from poise.verl.reward import compute_score


def length(completion: str, example: Mapping[str, Any]) -> Verdict:
    """As many points as letters, up to the answer; a verifier on its own scale."""
    if not completion:
        return Verdict.failed("nothing to measure")
    if completion == "crash":
        raise RuntimeError("the sandbox is gone")
    return Verdict(score=float(min(len(completion), int(example["answer"]))), answer=completion)


HERE = f"{__file__}:length"


def test_a_score_on_the_rewards_own_scale() -> None:
    scored = compute_score("any", "four", "9", {}, reward=HERE)
    assert scored == {"score": 4.0, "acc": 4.0, "pred": "four", "failure": ""}


@pytest.mark.parametrize(
    ("completion", "reason"), [("", "nothing to measure"), ("crash", "RuntimeError: the sandbox is gone")]
)
def test_a_failure_is_nan_and_says_why(completion: str, reason: str) -> None:
    scored = compute_score("any", completion, "9", {}, reward=HERE)
    assert math.isnan(scored["score"])
    assert math.isnan(scored["acc"])
    assert scored["failure"] == reason


def test_the_row_names_its_reward_and_an_override_wins() -> None:
    assert compute_score("any", "it is 9", "9", {"reward": "number"})["score"] == 1.0
    assert compute_score("any", "four", "9", {"reward": "number"}, reward=HERE)["score"] == 4.0


@pytest.mark.parametrize("reward", [HERE, "shutil:rmtree", "code-unsafe-local", "exakt"])
def test_a_row_may_name_registered_rewards_only(reward: str) -> None:
    with pytest.raises(ConfigError, match=r"data rows may name registered rewards only, not '.*; any other is named"):
        compute_score("any", "four", "9", {"reward": reward})
    with pytest.raises(ConfigError, match="data rows may name registered rewards only"):
        to_verl([{"prompt": "2 + 2 =", "answer": "4"}], reward=reward)


def test_a_converted_task_verifies_its_own_answers() -> None:
    pytest.importorskip("reasoning_gym")
    row = next(iter(load_task("chain_sum", "test", size=1)))
    for reward in ("", reward_of("chain_sum")):
        (verl,) = to_verl([row], reward=reward)
        arguments = (verl["reward_model"]["ground_truth"], verl["extra_info"])
        assert compute_score(verl["data_source"], f"<answer>{row['answer']}</answer>", *arguments)["score"] == 1.0
        assert compute_score(verl["data_source"], f"<answer>{row['answer']}9</answer>", *arguments)["score"] == 0.0


def test_the_math_reward_off_the_main_thread() -> None:
    """verl calls a reward from a thread, where time-outs by signal fail."""
    pytest.importorskip("math_verify")
    with ThreadPoolExecutor(1) as thread:
        scored = thread.submit(compute_score, "any", "Answer: $\\frac{1}{2}$", "0.5", {}, reward="math").result()
    assert scored == {"score": 1.0, "acc": 1.0, "pred": "1/2", "failure": ""}


def test_no_such_reward() -> None:
    with pytest.raises(ConfigError, match="exakt"):
        compute_score("any", "x", "x", {}, reward="exakt")
    with pytest.raises(ConfigError, match="openai/gsm8k"):
        compute_score("openai/gsm8k", "x", "x", {"index": 3})
