"""An imperfect teacher: written-out solutions of the bundled families whose steps slip, more often where they are hard.

The bundled model is pretrained on these texts (`pretrain`), so it starts with the teacher's habits: easy prompts nearly
always right, hard ones nearly never, and a wrong step carried on to the answer. That spread between prompts, with room
above, is what reinforcement learning and a value baseline need to have something to do.

The competence lies under the habits: at every digit and every letter the right one stays the likeliest, and what a slip
writes instead is spread over all others. Sampling therefore finds what to reinforce at any step, and a prompt is hard
only because it has many places to slip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from string import ascii_lowercase
from typing import Any

# Chance of another digit than the right one: anywhere, in a place that a carry or borrow reaches, and in every place
# once a running total has left 0 to 99. Tuned, like the next line, so that the pretrained model starts below 50% with
# pass rates spread from 0 to 1.
DIGIT_SLIP, CARRY_SLIP, SHAKEN_SLIP = 0.01, 0.15, 0.34
# Chance of another letter than the right one: anywhere, and once one of the confusing letters has been written.
LETTER_SLIP, LOST_SLIP, CONFUSING = 0.01, 0.31, "in"


class Flawless(Random):
    """Never slips: every chance comes out at the far end."""

    def random(self) -> float:
        return math.nextafter(1.0, 0.0)


def demonstrate(entry: Mapping[str, Any], rng: Random) -> str:
    """One written solution of a reasoning-gym entry, in the bundled model's form, with the teacher's slips.

    Args:
        entry: an entry of one of the bundled families.
        rng: where the slips come from.
    """
    return _TEACHERS[entry["metadata"]["source_dataset"]](entry["metadata"], rng)


def written(thought: str, answer: str) -> str:
    """The form of every completion."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def add_up(metadata: Mapping[str, Any], rng: Random) -> str:
    """A chain of running sums, `12-7=5+30=35`; a slip is carried on, and so is being shaken."""
    first, *rest = metadata["expression"].split()
    total, thought, shaken = int(first), first, False
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        change = int(sign + term)
        shaken = shaken or not (0 <= total <= 99 and 0 <= total + change <= 99)
        total = sum_step(total, change, shaken, rng)
        thought += f"{sign}{term}={total}"
    return written(thought, str(total))


def sum_step(total: int, change: int, shaken: bool, rng: Random) -> int:
    """total + change, or what the teacher makes of it: each digit may come out as another one."""
    result = total + change
    digits = str(abs(result))
    reached = {place + 1 for place in carries(total, change)}
    said = ""
    for index, digit in enumerate(digits):
        slip = SHAKEN_SLIP if shaken else CARRY_SLIP if len(digits) - 1 - index in reached else DIGIT_SLIP
        # A number of several digits does not start with 0.
        others = "0123456789" if index or len(digits) == 1 else "123456789"
        said += rng.choice(others.replace(digit, "")) if rng.random() < slip else digit
    return -int(said) if result < 0 else int(said)


def carries(total: int, change: int) -> list[int]:
    """Decimal places from which total + change carries (like signs) or borrows (unlike signs) into the next place."""
    small, large = sorted((abs(total), abs(change)))
    adding = (total < 0) == (change < 0)
    places, carry = [], 0
    for place in range(len(str(large))):
        top, bottom = large // 10**place % 10, small // 10**place % 10
        carry = int(top + bottom + carry > 9) if adding else int(top - bottom - carry < 0)
        if carry:
            places.append(place)
    return places


def spell(metadata: Mapping[str, Any], rng: Random) -> str:
    """The word letter by letter, `s p l a t`, then read from its end: slips in the spelling reach the answer."""
    letters = spelled(metadata["word"], rng)
    return written(" ".join(letters), "".join(reversed(letters)))


def spelled(word: str, rng: Random) -> list[str]:
    """The letters of a word as the teacher writes them, of which any may come out as another one."""
    letters, lost = [], False
    for letter in word:
        slipped = rng.random() < (LOST_SLIP if lost else LETTER_SLIP)
        letters.append(rng.choice(ascii_lowercase.replace(letter, "")) if slipped else letter)
        lost = lost or letter in CONFUSING
    return letters


_TEACHERS: dict[str, Callable[[Mapping[str, Any], Random], str]] = {"chain_sum": add_up, "spell_backward": spell}
