"""What a right answer must fulfil beyond reasoning-gym's scorer, where that gives full marks to wrong ones.

Found by scoring wrong answers to entries of every dataset of version 0.1.25. Each check is asked only for answers that
the scorer gave full marks, and sees the entry as reasoning-gym made it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from poise.rewards.procedural_guard import exact_value

Entry = Mapping[str, Any]
Check = Callable[[str, Entry], bool]
_TIME = r"\d+:[0-5]\d(?::[0-5]\d(?:\.\d{3})?)?"


def is_right(name: str, answer: str, entry: Entry) -> bool:
    """Whether an answer with full marks deserves them."""
    if answer == str(entry.get("answer")):
        return True
    try:
        return CHECKS[name](answer, entry) if name in CHECKS else True
    except (KeyError, TypeError, ValueError, SyntaxError, ArithmeticError, RecursionError):
        return False


def _is_same_text(answer: str, entry: Entry) -> bool:
    """The scorer gives full marks for a right beginning, for a near miss, or for any answer at all."""
    return answer.split() == entry["answer"].split() or _folded(answer) == _folded(entry["answer"])


def _folded(text: str) -> str:
    return "".join(text.split()).casefold()


def _is_close(answer: str, entry: Entry) -> bool:
    """The scorer counts leading characters in common, and to it every probability below 1 in 10,000 is 0."""
    right = Fraction(entry["answer"])
    return abs(Fraction(answer.replace(",", "")) - right) <= right / 1000


def _is_finite(answer: str, _: Entry) -> bool:
    """The distance to nan is nan, and min(1.0, nan) is 1.0."""
    return not re.search("nan|inf", answer, re.IGNORECASE)


def _is_one_fraction(answer: str, _: Entry) -> bool:
    """The scorer reads the first fraction and ignores what follows."""
    bare = answer.strip().strip("$").strip()
    return re.fullmatch(r"\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|[-+\d\s]+/[-+\d\s]+", bare) is not None


def _is_one_number(answer: str, entry: Entry) -> bool:
    """The scorer reads the first number and ignores what follows."""
    return {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", answer)} == {float(entry["answer"])}


def _is_same_json(answer: str, entry: Entry) -> bool:
    """The scorer looks for the expected cells and ignores further ones."""
    return json.loads(answer) == json.loads(entry["answer"])


def _is_same_list(answer: str, entry: Entry) -> bool:
    """The scorer lets every number be wrong by one, and nan by any amount."""
    said = json.loads(answer.replace("'", '"'))
    return [float(number) for number in said] == [float(number) for number in ast.literal_eval(entry["answer"])]


def _are_all_words(answer: str, entry: Entry) -> bool:
    """The scorer compares as many words as were asked for."""
    return re.split(r",\s*", answer.strip()) == entry["metadata"]["sorted_words"]


def _is_24(answer: str, entry: Entry) -> bool:
    """The scorer counts four numbers in range, whichever they are, and cuts fractions off."""
    used = sorted(int(number) for number in re.findall(r"\d+", answer))
    return exact_value(answer) == 24 and used == sorted(entry["metadata"]["numbers"])


def _is_target(answer: str, entry: Entry) -> bool:
    return exact_value(answer) == entry["metadata"]["target"]


def _is_drawn(answer: str, entry: Entry) -> bool:
    """A premise said again follows from the premises, and is no conclusion."""
    said = re.sub(r"[\s()]", "", answer)
    return all(re.sub(r"[\s()]", "", premise) != said for premise in entry["metadata"]["premises"])


def _is_one_assignment(answer: str, entry: Entry) -> bool:
    """The scorer passes over words that it does not know, `not` among them."""
    return set(re.findall(r"\w+", answer.casefold())) <= {*re.findall(r"\w+", entry["answer"].casefold()), "a", "an"}


def _is_one_duration(answer: str, _: Entry) -> bool:
    """The scorer ignores what follows a number of days, and takes seconds of .51 for .051."""
    return re.fullmatch(rf"\d+(?: days?)?\.?|(?:\d+ days?, )?{_TIME}", answer.strip(), re.IGNORECASE) is not None


def _is_bare_grid(answer: str, _: Entry) -> bool:
    """The scorer passes over everything but ones and zeros."""
    return re.fullmatch(r"[01\s\[\](),;|]*", answer) is not None


def _are_bare_numbers(answer: str, _: Entry) -> bool:
    """The scorer passes over what is no number."""
    return re.fullmatch(r"[\d\s]*", answer) is not None


CHECKS: dict[str, Check] = {
    "calendar_arithmetic": _is_same_text,
    "coin_flip": _is_close,
    "complex_arithmetic": _is_finite,
    "countdown": _is_target,
    "figlet_font": _is_same_text,
    "fraction_simplification": _is_one_fraction,
    "game_of_life": _is_same_json,
    "game_of_life_halting": _is_same_text,
    "gsm_symbolic": _is_one_number,
    "kakurasu": _is_bare_grid,
    "knights_knaves": _is_one_assignment,
    "letter_jumble": _is_same_text,
    "number_sorting": _is_same_list,
    "propositional_logic": _is_drawn,
    "puzzle24": _is_24,
    "spell_backward": _is_same_text,
    "survo": _are_bare_numbers,
    "time_intervals": _is_one_duration,
    "word_sorting": _are_all_words,
}
