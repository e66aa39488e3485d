"""The final answer is found in each form; the last statement wins; answers side by side are handed over together."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.rewards.answers import final_answers
from poise.rewards.exact import last_number, verify, verify_number


@pytest.mark.parametrize(
    ("completion", "answers"),
    [
        (r"so \boxed{\frac{1}{2}}.", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        ("**Answer:** 42", ["42"]),
        ("Final Answer: $x^2$.", ["x^2"]),
        ("the answer is: 7 apples", ["7 apples"]),
        ("work\n#### 1,024", ["1,024"]),
        ("<answer> yes\nno </answer>", ["yes\nno"]),
        (r"Answer: $\boxed{9}$", ["9"]),
        (r"<answer>\boxed{9}</answer>", ["9"]),
        (r"\boxed{1} is wrong, so \boxed{2}", ["2"]),
        ("Answer: 3\nHm, check again.\nAnswer: 4", ["4"]),
        (r"\boxed{3}, \boxed{4}", ["3", "4"]),
        (r"\boxed{3} \text{ or } \boxed{4}", ["3", "4"]),
        ("Answer: 3\nAnswer: 4", ["3", "4"]),
        (r"\boxed{5}" + "\n\nAnswer: 5", ["5"]),
        (r"<think>\boxed{1}</think>\boxed{2}", ["2"]),
        (r"<think>only thought \boxed{1}</think>nothing", []),
        (r"so $\boxed 14$.", ["14"]),
        (r"\boxed5", ["5"]),
        (r"\boxed{\boxed 5}", [r"\boxed 5"]),
        (r"\boxed 14^2", []),
        ("Answer: A. No, B", ["A. No, B"]),
        (r"\boxed{never closed", []),
        ("no statement at all: 5", []),
        ("unanswered: 5", []),
        ("Answer:", []),
        ("\\boxed{17}, no.\n\n**Answer:**\n\n18", ["18"]),
        ("**Final Answer:**\nB", ["B"]),
        ("*Answer:*\n18", ["18"]),
        ("__Answer:__\n18", ["18"]),
        ("**Answer**:\n**18**", ["18"]),
        ("<answer>17 <answer>18</answer>", ["18"]),
    ],
)
def test_final_answers(completion, answers):
    assert final_answers(completion) == answers


@given(st.text(alphabet=r"\boxed{}answer:#<>/ 12$" + "\n", max_size=300))
def test_any_text_is_read_without_error(text):
    assert all(answer for answer in final_answers(text))


@pytest.mark.parametrize(
    "flood",
    [
        r"\boxed{" * 30_000,
        r"\boxed{1}" * 30_000,
        "Answer: 1 " * 30_000,
        "<answer>" * 30_000,
        "#" * 200_000,
        "answer" + " " * 16_300,
        "answer" + "*" * 16_300,
        "answer:" + "\n" * 16_300,
    ],
)
def test_floods_of_markers_are_read_in_bounded_time(flood):
    start = time.process_time()
    final_answers(flood)
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("Answer: Paris.", "paris", 1.0),
        ("paris", "Paris", 1.0),
        ("Answer: Pаris", "Paris", 0.0),  # the second letter is Cyrillic
        ("Answer: −５", "-5", 1.0),
        ("Answer: 5²", "52", 0.0),
        ("Answer: 1\nAnswer: 2", "2", 0.0),
        ("Answer: Dr. Smith", "Dr. Smith", 1.0),
        ("Answer: Washington, D.C. USA", "Washington, D.C. USA", 1.0),
        ("Answer: Paris. That is all.", "Paris", 1.0),
        ("Answer: Paris. Or Rome", "Paris. Or Rome", 1.0),
        ("", "", None),
        ("None", None, None),
        ("anything", " .", None),
    ],
)
def test_exact(completion, answer, score):
    assert verify(completion, {"answer": answer}).score == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 - 4", "4"),
        ("5-3", "3"),
        ("x = -4", "-4"),
        ("$1,234.", "1234"),
        ("7,8", "8"),
        ("none", None),
        ("٣", None),
        ("-$5", "-5"),
        ("x = - 5", "-5"),
        ("- 5", "-5"),
        ("9 - 5", "5"),
        ("9 = 14 - 5", "5"),
        ("eggs - 5", "5"),
        ("eggs:\n- 5", "5"),
        ("1\u00a0234", "1234"),
        ("1\u202f234\u2009567", "1234567"),
        ("1 234", "234"),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_number_verifier():
    assert verify_number(" 42 apples.\n", {"answer": "42"}).score == 1.0
    assert verify_number("She has 42.0 left", {"answer": "42"}).score == 1.0
    assert verify_number("Answer: 41. Not 42", {"answer": "42"}).score == 0.0
    assert verify_number("9" * 10_000, {"answer": "42"}).score == 0.0
    assert verify_number("I do not know", {"answer": "42"}).score == 0.0
    assert verify_number("42", {"answer": "many"}).score is None
    assert {verify_number(text, {"answer": "18"}).answer for text in ("18", "18.00", "18.0 eggs", "1 18")} == {"18"}


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"\boxed{1{,}400}", "1400", 1.0),
        (r"\boxed{1\,400}", "1,400", 1.0),
        (r"\boxed{18\text{ cm}^2}", "18", 1.0),
        ("Answer: x = - 5", "-5", 1.0),
        ("Answer: x = - 5", "5", 0.0),
        ("Answer: - 5", "-5", 1.0),
        ("The answer: - 5", "5", 0.0),
        ("Answer: -$5", "-5", 1.0),
        ("Answer: -$5", "5", 0.0),
        ("Answer: 18 eggs (9 * 2)", "18", 1.0),
        ("Answer: 18 eggs (9 * 2)", "2", 0.0),
        ("Answer: (9 * 2) 18", "18", 1.0),
        ("42", "$42", 1.0),
        ("42", "42 apples.", 1.0),
        ("42", "20 + 22 = 42\n#### 42", 1.0),
        ("3/2", "1/2", None),
        ("0.5", "1/2", None),
        ("3", "1e3", None),
        ("8", "7,8", None),
        ("3", "2^3", None),
        ("2", r"\sqrt{2}", None),
        ("4", "3 or 4", None),
        ("None", None, None),
    ],
)
def test_number(completion, answer, score):
    assert verify_number(completion, {"answer": answer}).score == score
