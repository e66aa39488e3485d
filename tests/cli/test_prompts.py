"""Prompts and rewards of a run: nothing on both sides, generated tasks that only grow, columns that rewards ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

import tiny_policy
from poise.errors import ConfigError
from poise.rewards import Verdict, register
from poise.runs.prompts import (
    Prompts,
    answers_as_text,
    held_out_task,
    judged,
    load_prompts,
    load_rewards,
    task_name,
    total_reward,
)
from poise.runs.settings import DataSettings
from poise.tasks.local import records_to_dataset


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_policy.tokenizer()


def file_of(tmp_path: Path, name: str, numbers: range) -> str:
    rows = [{"prompt": f"what is {n} and 1?", "answer": str(n + 1)} for n in numbers]
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(completion: str, example: dict) -> float:
    return 0.0


def test_names_of_data() -> None:
    assert task_name(DataSettings()) == "tiny"
    assert task_name(DataSettings(task="gsm8k")) == "gsm8k"
    assert task_name(DataSettings(data="sums.jsonl")) == "sums.jsonl"
    assert task_name(DataSettings(data="owner/name")) == "hub:owner/name"
    assert task_name(DataSettings(data="hub:owner/name")) == "hub:owner/name"


def test_held_out_prompts_leave_the_training_set(tmp_path: Path, tokenizer) -> None:
    data = file_of(tmp_path, "train.jsonl", range(20))
    settings = DataSettings(data=data, task_options=(f"test_file={file_of(tmp_path, 'test.jsonl', range(15, 30))}",))
    prompts = load_prompts(settings, needed=8, seed=0, tokenizer=tokenizer)
    assert prompts.held_out is not None
    assert len(prompts.held_out) == 15
    assert len(prompts.train) == 15
    assert not set(prompts.train["prompt"]) & set(prompts.held_out["prompt"])
    assert prompts.notes == ["5 training prompts are held out as well, and were dropped from training"]
    same = replace(settings, task_options=(f"test_file={data}",))
    with pytest.raises(ConfigError, match="every training prompt is held out"):
        load_prompts(same, needed=8, seed=0, tokenizer=tokenizer)


def test_a_file_to_evaluate_on_is_taken_whole_and_read_like_the_training_file(tmp_path: Path, tokenizer) -> None:
    data, other = file_of(tmp_path, "train.jsonl", range(20)), file_of(tmp_path, "other.jsonl", range(30, 45))
    settings = DataSettings(data=data, eval_task=other, task_options=("template=Q: {question}", "held_out=0.2"))
    prompts = load_prompts(settings, needed=8, seed=0, tokenizer=tokenizer)
    assert prompts.held_out is not None
    assert sorted(prompts.held_out["prompt"]) == sorted(f"Q: what is {n} and 1?" for n in range(30, 45))
    assert held_out_task(replace(settings, data=None, task="tiny", task_options=())) == (other, {"test_file": other})
    assert held_out_task(replace(settings, eval_task="gsm8k")) == ("gsm8k", {})


def test_more_steps_only_lengthen_a_generated_task(tokenizer) -> None:
    settings = DataSettings(task="chain_sum", eval_size=4)
    short = load_prompts(settings, needed=10, seed=3, tokenizer=tokenizer)
    long = load_prompts(settings, needed=25, seed=3, tokenizer=tokenizer)
    assert not short.shuffled
    assert long.train["answer"][:10] == short.train["answer"][:]
    other = load_prompts(settings, needed=10, seed=4, tokenizer=tokenizer)
    assert other.train["prompt"][:] != short.train["prompt"][:]
    assert other.held_out is not None
    assert short.held_out is not None
    assert other.held_out["prompt"][:] == short.held_out["prompt"][:]


def test_missing_ground_truths_are_counted(tmp_path: Path, tokenizer) -> None:
    rows = [{"prompt": f"what is {n}?", "answer": None if n % 3 else n} for n in range(9)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(data=str(tmp_path / "d.jsonl"), task_options=("held_out=0.001",), eval_size=0)
    prompts = load_prompts(settings, needed=8, seed=0, tokenizer=tokenizer)
    assert prompts.notes == ["6 of 9 training prompts have no ground truth"]
    assert prompts.longest == len("what is 8?")


def test_too_few_held_out_rows_are_all_taken(tmp_path: Path, tokenizer) -> None:
    settings = DataSettings(data=file_of(tmp_path, "d.jsonl", range(60)), eval_size=256)
    prompts = load_prompts(settings, needed=8, seed=0, tokenizer=tokenizer)
    assert prompts.held_out is not None
    assert 0 < len(prompts.held_out) < 20
    assert len(prompts.train) + len(prompts.held_out) == 60


def test_columns_that_a_reward_asks_for_come_out_of_info(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(completions, level, **rest):\n    return [float(x) for x in level]\n")
    rows = [{"prompt": "p", "answer": "a", "domain": "d", "info": json.dumps({"level": n})} for n in (2, 5)]
    prompts = Prompts(Dataset.from_list(rows), None)
    (reward,) = load_rewards((f"{tmp_path}/judge.py:judge",), prompts)
    assert prompts.train["level"][:] == [2, 5]
    assert reward(prompts=["p"], completions=["c"], level=[5]) == [5.0]


def test_summed_rewards_fail_together() -> None:
    register("test-half", lambda completion, example: Verdict(score=0.5))
    register(
        "test-fails-on-x",
        lambda completion, example: Verdict.failed("no x") if "x" in completion else Verdict(score=1.0),
    )
    verify = total_reward(("test-half", "test-fails-on-x"), (2.0, 3.0))
    assert verify("fine", {}).score == 4.0
    assert verify("x", {}).failure == "no x"
    assert verify("x", {}).score is None


def test_a_reward_that_does_not_apply_leaves_the_sum_to_the_others() -> None:
    """TRL's way with several kinds of problems: each reward returns None for the problems of the other."""
    register("test-sums", lambda completions, kind, **_: [2.0 if each == "sum" else None for each in kind])
    register("test-words", lambda completions, kind, **_: [3.0 if each == "word" else None for each in kind])
    verify = total_reward(("test-sums", "test-words"), (1.0, 10.0))
    assert verify("", {"kind": "sum"}).score == 2.0
    assert verify("", {"kind": "word"}).score == 30.0
    assert verify("", {"kind": "poem"}).failure == "the reward function returned None"


def test_a_renamed_column_is_handed_to_the_reward_that_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(completions, solution, **rest):\n    return solution\n")
    prompts = Prompts(records_to_dataset([{"prompt": "p", "solution": 5}], answer="solution"), None)
    load_rewards((f"{tmp_path}/judge.py:judge",), prompts)
    assert (prompts.train["answer"][:], prompts.train["solution"][:]) == (["5"], [5])


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            [["0", "x"], "y"],
            ["""1 of 2 answers are no text in the data, and rewards get them as text: ['0', 'x'] as \'["0", "x"]\'"""],
        ),
        ([4, 4.0], ["2 of 2 answers are no text in the data, and rewards get them as text: 4 as '4'"]),
        (["4", None], []),
    ],
)
@pytest.mark.parametrize("column", ["answer", "solution"])
def test_answers_that_are_no_text_are_told_of(column: str, answers: list[object], said: list[str]) -> None:
    register("test-own", own)
    rows = records_to_dataset([{"prompt": "p", column: answer} for answer in answers], answer=column)
    options = {"answer": column} if column != "answer" else {}
    assert answers_as_text(rows, options) == answers_as_text(rows, options, ("exact", "test-own")) == said
    assert answers_as_text(rows, options, ("exact",)) == []


def test_a_built_in_reward_without_any_ground_truth_is_refused() -> None:
    rows = records_to_dataset([{"prompt": "1+1=", "solution": "2"}, {"prompt": "1+2=", "solution": "3"}])
    for name in ("math", "exact", "number", "code"):
        with pytest.raises(
            ConfigError, match=r"no row has a ground truth, .* --answer-column, .*\(the data has: solution\)"
        ):
            judged(rows, "tiny", (name,))
    register("test-needs-none", lambda completion, example: None)
    judged(rows, "tiny", ("test-needs-none",))
