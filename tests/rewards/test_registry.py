"""Rewards by name: built-in, `module:function`, a file, TRL's signature, verl's, and clear errors for the rest."""

import json
import os
import subprocess
import sys

import pytest

from poise.errors import ConfigError
from poise.rewards import Verdict, is_trl_reward, names, register, resolve, trl_reward, verifier


def ours(completion: str, example: dict) -> Verdict:
    return Verdict(float(completion == example["answer"]))


def theirs(prompts, completions, answer, **kwargs):
    return [1.0 if said == truth else None for said, truth in zip(completions, answer, strict=True)]


def verls(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 0.25 if solution_str == ground_truth else 0.0, "acc": 1}


def neither(text):
    return 0.0


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text("def shout(completion, example):\n    from poise.rewards import Verdict\n    return Verdict(0.5)\n")
    return path


def test_built_in_names_resolve_and_are_listed():
    assert {"exact", "number"} <= set(names())
    assert resolve("exact")("Answer: Paris", {"answer": "paris"}).score == 1.0


def test_threads_that_ask_first_all_get_the_same_reward():
    """In a fresh process, as in verl's reward workers: nothing is imported yet, and the first import takes a while."""
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from poise.rewards import verifier\n"
        "from poise.tasks import reward_of\n"
        "together = Barrier(16)\n"
        "def ask(row):\n"
        "    together.wait()\n"
        "    return verifier(reward_of('chain_sum') if row % 2 else 'procedural'), verifier('math')\n"
        "with ThreadPoolExecutor(16) as threads:\n"
        "    print(len(set(threads.map(ask, range(16)))))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_two_signatures_are_told_apart():
    assert is_trl_reward(theirs)
    assert not is_trl_reward(ours)
    assert is_trl_reward(lambda **columns: [0.0])


def test_verifier_of_a_trl_reward_keeps_none_as_a_failure():
    verify = verifier(theirs)
    assert verify("4", {"prompt": "2+2", "answer": "4"}).score == 1.0
    failed = verify("5", {"prompt": "2+2", "answer": "4"})
    assert failed.score is None
    assert failed.failure == "the reward function returned None"


def test_an_asynchronous_trl_reward_is_awaited():
    async def slow(prompts, completions, **columns):
        return [0.5]

    assert verifier(slow)("x", {"prompt": "y"}).score == 0.5


def test_trl_reward_of_a_verifier_reads_columns_row_by_row():
    reward = trl_reward(ours)
    assert reward(prompts=["a", "b"], completions=["1", "2"], answer=["1", "3"]) == [1.0, 0.0]
    assert reward.__name__ == "ours"


def test_conversational_completions_reach_a_verifier_as_text():
    reward = trl_reward("exact")
    said = [[{"role": "assistant", "content": "Answer: 7"}]]
    assert reward(prompts=[[{"role": "user", "content": "?"}]], completions=said, answer=["7"]) == [1.0]


def test_a_number_is_a_score_and_nothing_is_a_failure():
    assert verifier(lambda completion, example: completion == "4")("4", {}).score == 1.0
    assert verifier(lambda completion, example: None)("4", {}).failure == "it returned None"
    assert verifier(lambda completion, example: float("nan"))("4", {}).failure == "it returned nan"
    reward = trl_reward(lambda completion, example: {"4": 0.5, "5": None}[completion])
    assert reward(prompts=["a"] * 3, completions=["4", "5", "6"]) == pytest.approx(
        [0.5, float("nan"), float("nan")], nan_ok=True
    )
    assert reward.last_failure == "<lambda>: KeyError: '6'"  # pyright: ignore


def test_a_verifier_of_the_users_keeps_its_name_and_what_it_says_of_itself():
    def mine(completion, example):
        return 1.0

    mine.concurrency = 3
    assert (verifier(mine).__name__, verifier(mine).concurrency) == ("mine", 3)


def test_a_trl_reward_may_ask_for_token_ids_alone():
    assert is_trl_reward(lambda completion_ids, **columns: [0.0])


def test_a_trl_reward_gets_stand_ins_for_what_only_training_has():
    def logs(completions, trainer_state, log_metric, **columns):
        log_metric("longest", 3)
        return [1.0 - trainer_state.global_step / trainer_state.max_steps]

    assert verifier(logs)("x", {"prompt": "y"}).score == 1.0


def test_a_class_that_wants_arguments_is_named():
    class Needs:
        def __init__(self, key):
            self.key = key

    with pytest.raises(ConfigError, match="is a class that cannot be made without arguments"):
        resolve(Needs)


def test_a_verl_reward_is_adapted():
    assert verifier(verls)("4", {"answer": "4"}).score == 0.25


def test_a_function_in_a_file(user_file):
    assert verifier(f"{user_file}:shout")("anything", {}).score == 0.5


def test_a_file_is_run_once_and_its_class_made_once_until_it_changes(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Judge:\n"
        f"    def __init__(self):\n        os.mkdir({str(tmp_path / 'made')!r})\n"
        "    def __call__(self, completion, example):\n        return 1.0\n"
    )
    for ask in (verifier, resolve, trl_reward, verifier):
        assert callable(ask(f"{path}:Judge"))  # a folder cannot be made twice
    path.write_text("class Judge:\n    def __call__(self, completion, example):\n        return 0.5\n")
    os.utime(path, ns=(0, 0))
    assert verifier(f"{path}:Judge")("x", {}).score == 0.5


def test_a_file_imports_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper_beside_it.py").write_text("half = 0.5\n")
    (tmp_path / "judge.py").write_text(
        "from helper_beside_it import half\n\ndef score(completion, example):\n    return half\n"
    )
    assert verifier(f"{tmp_path}/judge.py:score")("x", {}).score == 0.5


def test_a_module_in_the_current_folder(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    assert verifier("my_rewards:shout")("anything", {}).score == 0.5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("exct", "did you mean 'exact'"),
        ("poise.rewards.exact:verfy", "did you mean 'verify'"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here:f'"),
        ("poise.rewards.exact:_VARIANTS", "cannot be called"),
    ],
)
def test_wrong_names_say_what_is_near(spec, said):
    with pytest.raises(ConfigError, match=said):
        resolve(spec)


def test_a_function_with_neither_signature_is_refused():
    with pytest.raises(ConfigError, match=r"takes \(text\); expected"):
        resolve(neither)


def test_what_takes_too_little_or_says_nothing_of_it_is_refused():
    with pytest.raises(ConfigError, match=r"write \(completions, answer, \*\*columns\)"):
        resolve(lambda completions, answer: [0.0])
    with pytest.raises(ConfigError, match="builtins:max does not say what it takes"):
        resolve("builtins:max")


@pytest.mark.parametrize("scores", [1.0, [1.0, 0.0], ["good"], None, [[1.0]]])
def test_a_trl_reward_that_returns_no_list_of_numbers_says_so(scores):
    with pytest.raises(ConfigError, match="must return a list with one number or None per rollout, got"):
        verifier(lambda completions, **columns: scores)("x", {"prompt": "y"})


@pytest.mark.parametrize("said", ["good", {"score": 1.0}, [1.0]])
def test_a_verifier_that_returns_no_number_says_so(said):
    with pytest.raises(TypeError, match="return a number or a Verdict, not "):
        verifier(lambda completion, example: said)("x", {})


def test_a_verifier_cannot_be_asynchronous():
    async def slow(completion, example):
        return 1.0

    with pytest.raises(TypeError, match=r"only a reward of the form \(completions, \*\*columns\) may be async"):
        verifier(slow)("x", {})


def test_a_second_argument_that_is_not_called_the_row_is_refused():
    """`answer` would be the whole row there, and `completion in answer` a question about its columns."""
    with pytest.raises(
        ConfigError, match=r"takes \(completion, answer\): .* name it `example` and read example\['answer'\]"
    ):
        resolve(lambda completion, answer: completion in answer)
    for reward in (lambda said, row: 1.0, lambda said, _: 1.0, lambda said, _row: 1.0):
        assert verifier(reward)("4", {}).score == 1.0


def test_a_name_cannot_be_taken_twice():
    register("test-ours", ours)
    register("test-ours", ours)
    assert resolve("test-ours") is ours
    with pytest.raises(ConfigError, match="already taken"):
        register("test-ours", theirs)


def test_a_row_of_a_mixture_names_no_code(tmp_path):
    trace = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\ndef f(completion, example):\n    return 1.0\n")
    verify = resolve("mixed")
    for name in (f"{tmp_path}/evil.py:f", "shutil:rmtree", "code-unsafe-local", "exct"):
        said = verify("4", {"answer": "4", "info": json.dumps({"reward": name})})
        assert said.failure.startswith(f"data rows may name registered rewards only, not {name!r}"), said
    assert not trace.exists()
    assert verify("4", {"answer": "4", "info": '{"reward": "exact"}'}).score == 1.0
