"""An expression is worked out exactly, and nothing but an expression is."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.rewards import resolve, trl_reward
from poise.rewards.arithmetic import value_of, verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 58 - 21", 37),
        ("58 - 21 = 30", 37),  # what stands behind the equals sign is not judged
        ("58 - 21\nQ: 1 + 1", 37),
        ("\n 2 + 3 * 4.", 14),
        ("(2 + 3) * 4", 20),
        ("20 - 5 - 3", 12),
        ("24 / 4 / 2", 3),
        ("7 x 6", 42),
        ("7 × 6", 42),
        ("8 ÷ 2", 4),
        ("$1,250.50 + $0.50", 1251),
        ("1 / 3", Fraction(1, 3)),
        ("50% * 20", 10),
        ("100 - 25%", Fraction(399, 4)),
        ("42", 42),
        ("６ − ２", 4),
        ("-5", -5),
        ("-2 + 10", 8),
        ("- 7", -7),
        ("2 * (-3 + 1)", -4),
    ],
)
def test_value_of_an_expression(text, value):
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "= 4",
        "7 apples",
        "x = 4",
        "7 -",
        "--7",
        "7 * -2",
        "(7",
        "7)",
        "7 7",
        "7 / 0",
        "7 / (3 - 3)",
        "2 ** 5",
        "2 ^ 5",
    ],
)
def test_what_is_no_expression_has_no_value(text):
    assert value_of(text) is None


@pytest.mark.parametrize(
    "attack",
    [
        "9" * 5000,
        "9 * " * 5000 + "9",
        "(" * 5000 + "1" + ")" * 5000,
        "(" * 90 + "1" + ")" * 90,
        "__import__('os').getpid()",
        "1e400 + 1",
        "٣ + ٤",  # digits of another script
        "1\u0338 + 1",
        "4 or 5 or 6",
        "4, 5, 6",
        "4,5,6",
        "1,2345",
    ],
)
def test_attacks_have_no_value_and_cost_nothing(attack):
    began = time.process_time()
    assert value_of(attack) is None
    assert time.process_time() - began < 0.1


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6), st.lists(st.sampled_from("+-*"), min_size=5, max_size=5))
def test_agrees_with_python_on_whole_numbers(numbers, signs):
    text = str(numbers[0]) + "".join(f" {sign} {number}" for sign, number in zip(signs, numbers[1:], strict=False))
    assert value_of(text) == eval(text)


class TestVerdict:
    @pytest.mark.parametrize(
        ("completion", "truth", "score"),
        [(" 58 - 21", "37", 1.0), ("58 + 21", "37", 0.0), ("0.9 - 0.2", "0.7", 1.0), ("I do not know", "37", 0.0)],
    )
    def test_score(self, completion, truth, score):
        assert verify(completion, {"answer": truth}).score == score

    def test_equal_values_are_one_vote(self):
        votes = {verify(text, {"answer": "4"}).answer for text in ("2 + 2", "8 / 2", "4")}
        assert votes == {"4"}

    def test_a_ground_truth_without_a_number_is_a_failure_not_a_zero(self):
        assert verify("2 + 0", {"answer": "1/2"}).score is None
        verdict = verify("2 + 2", {"answer": "four"})
        assert verdict.score is None
        assert "'four' holds no number" in verdict.failure

    def test_it_has_a_name_and_trl_form(self):
        assert resolve("arithmetic") is verify
        assert trl_reward("arithmetic")(prompts=["", ""], completions=["1 + 1", "3"], answer=["2", "2"]) == [1.0, 0.0]
