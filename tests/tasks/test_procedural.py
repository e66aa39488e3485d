"""Procedural tasks: splits that never meet, streams that repeat, rows that carry everything, attacks that fail."""

import json
import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.rewards.procedural import extract_answer, verify, verify_partial
from poise.rewards.procedural_guard import is_harmless
from poise.rewards.registry import resolve
from poise.rewards.verdict import as_trl_reward
from poise.tasks.procedural import (
    FAMILIES,
    dump_entry,
    first_seed,
    is_held_out,
    is_procedural,
    load_entry,
    load_procedural,
    stream,
)


def questions(rows):
    return [prompt[0]["content"] for prompt in rows["prompt"]]


def sum_row(answer="26", name="chain_sum"):
    entry = {"question": "20 + 6 =", "answer": answer, "metadata": {"source_dataset": name, "expression": "20 + 6"}}
    return {"answer": answer, "info": dump_entry({"dataset": name, "entry": entry, "options": {}})}


class TestRows:
    def test_the_contract_of_a_row(self):
        rows = load_procedural("chain_sum", "train", size=3)
        assert rows.column_names == ["prompt", "answer", "domain", "info"]
        row = rows[0]
        (message,) = row["prompt"]
        assert message["role"] == "user"
        assert message["content"].startswith("State the final answer to the following arithmetic problem: ")
        assert row["domain"] == "chain_sum"
        expression = json.loads(row["info"])["entry"]["metadata"]["expression"]
        assert row["answer"] == str(sum(int(term) for term in expression.replace("- ", "-").replace("+ ", "").split()))

    def test_the_mix_takes_turns(self):
        assert load_procedural("tiny", "test", size=5)["domain"] == [*FAMILIES, *FAMILIES, "chain_sum"]

    def test_options_reach_the_dataset_and_its_scorer(self):
        rows = load_procedural("reasoning-gym:chain_sum", "train", size=20, min_terms=7, max_terms=7)
        assert all(json.loads(info)["entry"]["metadata"]["num_terms"] == 7 for info in rows["info"])
        assert json.loads(rows["info"][0])["options"] == {"min_terms": 7, "max_terms": 7}

    def test_tuples_and_number_keys_survive_json(self):
        entry = {"grid": ((1, 2), (3, 4)), "edges": [(0, 1)], "colors": {0: "a", (1, 2): ["b"]}}
        assert load_entry(dump_entry(entry)) == entry

    @pytest.mark.parametrize("name", ["rearc", "graph_color", "letter_counting", "sudoku", "propositional_logic"])
    def test_other_datasets_go_through_json_unharmed(self, name):
        for row in islice(stream(f"reasoning-gym:{name}", "train"), 2):
            info = load_entry(row["info"])
            entry = info["entry"]
            assert load_entry(dump_entry(entry)) == entry
            assert row["domain"] == info["dataset"] == name
            assert entry["question"] == row["prompt"][0]["content"]


class TestSplits:
    @pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "reasoning-gym:coin_flip"])
    def test_no_question_is_in_both(self, name):
        # coin_flip has a few hundred questions in all, so its unsplit streams would meet at once.
        train = questions(load_procedural(name, "train", size=1500, seed=3))
        test = questions(load_procedural(name, "test", size=60, seed=3))
        assert not set(train) & set(test)
        assert not any(map(is_held_out, train))
        assert all(map(is_held_out, test))

    def test_without_the_hash_the_same_streams_do_meet(self):
        """The guard is needed: easy sums from seeds far apart are often the same question."""
        import reasoning_gym

        options = {**FAMILIES["chain_sum"], "size": 1500}
        streams = [
            {
                reasoning_gym.create_dataset("chain_sum", seed=first_seed("chain_sum", split, 3), **options)[i][
                    "question"
                ]
                for i in range(1500)
            }
            for split in ("train", "test")
        ]
        assert len(streams[0] & streams[1]) > 10

    def test_test_questions_are_distinct(self):
        test = questions(load_procedural("chain_sum", "test", size=1000))
        assert len(set(test)) == 1000

    @given(st.integers(0, 10**9), st.integers(0, 10**9))
    def test_test_streams_start_beyond_every_train_stream(self, one, other):
        assert first_seed("chain_sum", "train", one) + 2**20 <= 2**31 <= first_seed("chain_sum", "test", other)
        assert first_seed("chain_sum", "test", other) + 2**20 <= 2**32

    def test_about_a_quarter_is_held_out(self):
        assert 0.22 < sum(is_held_out(f"question {i}") for i in range(4000)) / 4000 < 0.28


class TestDeterminism:
    def test_same_seed_same_rows_another_seed_others(self):
        one, same, other = (load_procedural("tiny", "train", size=40, seed=seed) for seed in (5, 5, 6))
        assert one.to_list() == same.to_list()
        assert len(set(questions(one)) & set(questions(other))) <= 4

    def test_a_longer_draw_begins_like_a_shorter_one(self):
        assert load_procedural("tiny", "test", size=30).to_list()[:10] == load_procedural("tiny", "test", 10).to_list()

    def test_another_process_draws_the_same(self):
        code = "from poise.tasks.procedural import load_procedural as l; print(l('tiny', 'test', 4)['prompt'][:])"
        said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == str(load_procedural("tiny", "test", 4)["prompt"][:])


class TestWrongInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"name": "chain_sums"}, "no procedural task 'chain_sums'"),
            ({"name": "reasoning-gym:nope"}, "no dataset 'nope'"),
            ({"name": "chain_sum", "split": "dev"}, "got 'dev'"),
            ({"name": "chain_sum", "size": 0}, "size=0"),
            ({"name": "chain_sum", "max_term": 3}, "max_term"),
            ({"name": "chain_sum", "min_terms": 9}, "refuses the options"),
            ({"name": "tiny", "max_terms": 3}, "takes no options"),
            ({"name": "reasoning-gym:coin_flip", "split": "test", "size": 500}, "ran out of test questions"),
        ],
    )
    def test_one_sentence_that_names_it(self, arguments, says):
        with pytest.raises(ConfigError, match=says):
            load_procedural(**arguments)

    def test_which_names_are_ours(self):
        assert [is_procedural(name) for name in ("tiny", "chain_sum", "reasoning-gym:x", "gsm8k")] == [True] * 3 + [
            False
        ]


class TestExtraction:
    @pytest.mark.parametrize(
        ("completion", "answer"),
        [
            ("<think>20+6=26</think><answer>26</answer>", "26"),
            ("<answer> 26\n</answer>", "26"),
            # The chat template opened <think> in the prompt.
            ("20+6=26</think><answer>26</answer>", "26"),
            # Trying answers while thinking is no answer, and does not spoil the one given.
            ("<think><answer>7</answer>no</think><answer>26</answer>", "26"),
            ("<answer>7</answer></think><answer>26</answer>", "26"),
            ("<think><answer>26</answer></think>", None),
            ("<think>20+6<answer>26</answer>", None),
            ("<think>a</think><think><answer>26</answer>", None),
            ("<answer>26</answer><answer>27</answer>", None),
            ("<answer>26<answer>26</answer></answer>", None),
            ("<answer>26", None),
            ("</answer>26<answer>", None),
            ("26", None),
            ("", None),
        ],
    )
    def test_exactly_one_outside_thinking(self, completion, answer):
        assert extract_answer(completion) == answer

    @given(st.text(alphabet="<>/ae26", max_size=40), st.text(alphabet="ae26 ", max_size=10))
    @settings(max_examples=200, deadline=None)
    def test_a_second_answer_never_helps(self, noise, guess):
        assert extract_answer(f"<answer>{guess}</answer>{noise}<answer>26</answer>") is None


class TestVerdicts:
    @pytest.mark.parametrize("answer", ["26", " 26 "])
    def test_right(self, answer):
        assert verify(f"<think>x</think><answer>{answer}</answer>", sum_row()).score == 1.0

    @pytest.mark.parametrize(
        "answer", ["27", "-26", "", "25 26 27", "26 or 27", " ".join(map(str, range(1000))), "2 6", "0x1a", "26" * 9000]
    )
    def test_wrong_however_it_is_stuffed(self, answer):
        assert verify(f"<answer>{answer}</answer>", sum_row()).score == 0.0

    def test_partial_credit_only_where_asked(self):
        row = load_procedural("spell_backward", "train", size=1)[0]
        nearly = row["answer"][:-1] + "#"
        partial = verify_partial(f"<answer>{nearly}</answer>", row)
        assert partial.score == pytest.approx((len(nearly) - 1) / len(nearly))
        assert partial.answer == nearly
        assert verify(f"<answer>{nearly}</answer>", row).score == 0.0

    @pytest.mark.parametrize(
        "row",
        [
            {"answer": "26"},
            {"info": "not json"},
            {"info": "{}"},
            {"info": "[]"},
            {"info": None},
            sum_row(name="no_such_dataset"),
            {"info": dump_entry({"dataset": "countdown", "entry": {"answer": "1"}, "options": {"no_option": 1}})},
        ],
    )
    def test_a_broken_row_is_a_failure_and_not_a_zero(self, row):
        verdict = verify("<answer>26</answer>", row)
        assert verdict.score is None
        assert verdict.failure

    def test_a_scorer_that_raises_is_a_failure(self):
        verdict = verify("<answer>26</answer>", {"info": dump_entry({"dataset": "chain_sum", "entry": {}})})
        assert verdict.score is None
        assert "KeyError" in verdict.failure

    def test_through_trl_s_signature(self):
        rows = load_procedural("tiny", "test", size=2).to_list()
        said = [[{"role": "assistant", "content": f"<think></think><answer>{row['answer']}</answer>"}] for row in rows]
        reward = as_trl_reward(resolve("procedural"), "procedural")
        columns = {key: [row[key] for row in rows] for key in ("answer", "domain", "info")}
        assert reward(prompts=[row["prompt"] for row in rows], completions=said, **columns) == [1.0, 1.0]
        columns["info"][1] = "broken"
        scores = reward(prompts=[row["prompt"] for row in rows], completions=said, **columns)
        assert scores == pytest.approx([1.0, float("nan")], nan_ok=True)


class TestScorersThatEvaluate:
    """reasoning-gym passes some answers to eval or to sympy's parser; nothing that could act may reach them."""

    HOSTILE = (
        "__import__('os').system('touch {path}')",
        "[open('{path}', 'w') for _ in [1]]",
        "(lambda: open('{path}', 'w'))()",
        "().__class__.__base__.__subclasses__()",
        'exec(\'open("{path}", "w")\')',
    )

    @pytest.mark.parametrize(
        "name", ["n_queens", "binary_matrix", "spiral_matrix", "countdown", "polynomial_multiplication"]
    )
    @pytest.mark.parametrize("attack", HOSTILE)
    def test_code_is_a_wrong_answer_and_never_runs(self, name, attack, tmp_path):
        row = next(iter(stream(f"reasoning-gym:{name}", "train")))
        target = tmp_path / "touched"
        assert verify_partial(f"<answer>{attack.format(path=target)}</answer>", row).score == 0.0
        assert not target.exists()

    @pytest.mark.parametrize(
        "bomb", ["9**9**9**9", "((x+1)**32)**32", "2**10000000", "factorial(10**9)", "(" * 5000, "x.y"]
    )
    def test_arithmetic_bombs_are_refused(self, bomb):
        assert not is_harmless(bomb, "countdown")

    @pytest.mark.parametrize("name", ["n_queens", "string_insertion", "simple_integration", "countdown", "puzzle24"])
    def test_the_right_answer_still_passes(self, name):
        for row in islice(stream(f"reasoning-gym:{name}", "train"), 5):
            assert verify(f"<answer>{row['answer']}</answer>", row).score == 1.0
