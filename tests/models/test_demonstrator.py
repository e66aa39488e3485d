"""The imperfect teacher: right when it does not slip, wrong to the end when it does, and mostly right."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.models import demonstrator
from poise.models.demonstrator import Flawless, carries, demonstrate, spelled, sum_step
from poise.rewards.procedural import extract_answer


def sums(expression):
    return {"metadata": {"source_dataset": "chain_sum", "expression": expression}}


def word(text):
    return {"metadata": {"source_dataset": "spell_backward", "word": text}}


class TestWithoutSlips:
    @pytest.mark.parametrize(
        ("entry", "text"),
        [
            (sums("12 - 7 + 30"), "<think>12-7=5+30=35</think><answer>35</answer>"),
            (sums("4 - 11 + 2"), "<think>4-11=-7+2=-5</think><answer>-5</answer>"),
            (word("splat"), "<think>s p l a t</think><answer>talps</answer>"),
            (word("Anna"), "<think>A n n a</think><answer>annA</answer>"),
        ],
    )
    def test_literal_solutions(self, entry, text):
        assert demonstrate(entry, Flawless()) == text


class TestCarries:
    @pytest.mark.parametrize(
        ("total", "change", "places"),
        [(12, 7, []), (15, 7, [0]), (99, 1, [0, 1]), (50, 60, [1]), (40, -7, [0]), (100, -1, [0, 1]), (7, -40, [0]),
         (-15, -7, [0]), (-40, 7, [0]), (0, 0, []), (999, 999, [0, 1, 2])],
    )  # fmt: skip
    def test_literal_places(self, total, change, places):
        assert carries(total, change) == places

    @given(st.integers(-2000, 2000), st.integers(-2000, 2000))
    def test_as_many_as_the_digit_sums_say(self, total, change):
        """Each carry (in larger = difference + smaller, each borrow) lowers the sum of digits by nine."""
        digits = lambda number: sum(map(int, str(abs(number))))  # noqa: E731
        large, small = sorted((abs(total), abs(change)), reverse=True)
        parts = (total, change) if (total < 0) == (change < 0) else (large - small, small)
        whole = sum(map(abs, parts))
        assert 9 * len(carries(total, change)) == sum(map(digits, parts)) - digits(whole)


class TestSlips:
    @given(st.integers(-1500, 1500), st.integers(-99, 99), st.integers(0, 10**6))
    @settings(max_examples=300)
    def test_a_slip_is_a_wrong_result_of_the_same_length(self, total, change, seed):
        said = sum_step(total, change, True, Always(seed))
        assert said != total + change or said == 0
        assert len(str(abs(said))) == len(str(abs(total + change)))

    @given(st.lists(st.integers(0, 99), min_size=2, max_size=5), st.integers(0, 10**6))
    @settings(max_examples=200)
    def test_the_answer_is_what_the_last_step_says(self, terms, seed):
        text = demonstrate(sums(" - ".join(map(str, terms))), Random(seed))
        thought = re.search("<think>(.*)</think>", text)[1]
        assert extract_answer(text) == thought.rsplit("=", 1)[1]

    @given(st.text("abcdefgh", min_size=3, max_size=10), st.integers(0, 10**6))
    def test_every_letter_slips_to_another(self, text, seed):
        letters = spelled(text, Always(seed))
        assert len(letters) == len(text)
        assert all(said != meant for said, meant in zip(letters, text, strict=True))

    def test_digits_slip_where_they_are_hard(self):
        def share(*step):
            rng = Random(0)
            return sum(sum_step(*step, rng) != step[0] + step[1] for _ in range(3000)) / 3000

        # One digit, two with a carry into the tens, two digits when shaken.
        assert share(2, 5, False) == pytest.approx(demonstrator.DIGIT_SLIP, abs=0.01)
        carrying = 1 - (1 - demonstrator.CARRY_SLIP) * (1 - demonstrator.DIGIT_SLIP)
        assert share(15, 7, False) == pytest.approx(carrying, abs=0.03)
        assert share(12, 7, True) == pytest.approx(1 - (1 - demonstrator.SHAKEN_SLIP) ** 2, abs=0.03)

    @pytest.mark.parametrize("expression", ["3 - 4 + 20 + 5", "60 + 60 - 90 + 5"])
    def test_a_total_outside_0_to_99_shakes_the_rest_of_the_sum(self, expression):
        rng = Random(0)
        last = [re.findall(r"(-?\d+)\+5=(-?\d+)<", demonstrate(sums(expression), rng))[0] for _ in range(3000)]
        # Two digits and no carry: an easy step, had no total been outside before.
        easy = [(int(before), int(after)) for before, after in last if int(before) in range(10, 100)]
        right = [after == before + 5 for before, after in easy if before % 10 < 5]
        assert sum(right) / len(right) == pytest.approx((1 - demonstrator.SHAKEN_SLIP) ** 2, abs=0.05)

    def test_letters_slip_after_a_confusing_one(self):
        rng = Random(0)
        texts = ["".join(spelled("rabitef", rng)) for _ in range(3000)]
        wrong = [sum(text[place] != "rabitef"[place] for text in texts) / 3000 for place in range(7)]
        assert wrong[:4] == pytest.approx([demonstrator.LETTER_SLIP] * 4, abs=0.01)
        assert wrong[4:] == pytest.approx([demonstrator.LOST_SLIP] * 3, abs=0.03)

    def test_the_right_one_is_the_likeliest_by_far(self):
        """What reinforcement can raise by sharpening alone: no wrong digit or letter comes near the right one."""
        rng = Random(0)
        for said in (
            Counter(sum_step(-3, -4, True, rng) for _ in range(2000)),
            Counter(spelled("na", rng)[1] for _ in range(2000)),
        ):
            (_, first), (_, second) = said.most_common(2)
            assert first == max(said[-7], said["a"]) > 5 * second

    def test_the_same_seed_slips_the_same(self):
        entry = sums("99 - 77 + 88 - 99")
        one, same = ([demonstrate(entry, rng) for _ in range(50)] for rng in (Random(3), Random(3)))
        assert one == same
        assert len(set(one)) > 10


class Always(Random):
    """Slips at every chance."""

    def random(self) -> float:
        return 0.0
