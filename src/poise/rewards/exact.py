"""Two verifiers that need no library: the answer as text, and the answer as the last number.

Part of the `verify` step. Comparison is by characters, after a fixed table of typographic variants has been undone:
look-alikes of other scripts (a Cyrillic letter, a superscript digit) are never equal to the real thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from poise.rewards.answers import final_answers, visible
from poise.rewards.verdict import Verdict

# Full-width digits and dash variants are the same characters typed otherwise; superscripts and letters are not.
_VARIANTS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "﹣": "-",
        "－": "-",
        "，": ",",
        "．": ".",
        "％": "%",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
    }
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
# A sign stands at its number; one with a space between is a sign only behind `=`, `:` or nothing.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]])[-+](?:\\?\$)?|(?:(?<=[=:] )|(?<=[=:])|^)[-+] )?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
)
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
# Thousands separators of LaTeX, spaces that do not break; the power of a unit, as in cm^2; a working behind an answer.
_SEPARATOR = re.compile(r"(?<=[0-9])(?:\{,\}|\\text\{,\}|\\[,;: ]|[\u00a0\u202f\u2009])(?=[0-9]{3}(?![0-9]))")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^\{?-?[0-9]\}?")
_WORKING = re.compile(r"\s\([^()]*\)[\s.]*$")
# A ground truth: one number, perhaps in words and with a unit, but no part of a quotient, a power, a root or 1e3.
_ONLY_NUMBER = re.compile(
    r"[^0-9*+/^\\({.-]*([-+]?(?:\\?\$)?[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+))"
    r"(?:[^0-9*+^!\\]|\\(?:text|mathrm|[ ,%]))*"
)
# Python reads at most 4,300 digits as an integer; no ground truth comes near a hundred.
_LONGEST = 100


def plain(text: str) -> str:
    """Text with typographic variants of ASCII characters undone and white space collapsed.

    >>> plain("  −５  apples ")
    '-5 apples'
    """
    return " ".join(text.translate(_VARIANTS).split())


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if the final answer is the ground truth, character by character (case and a last full stop aside), else 0.

    A completion that states no answer in one of the known forms is compared as a whole, without its reasoning.
    """
    truth = "" if example["answer"] is None else _folded(str(example["answer"]))
    if not truth:
        return Verdict.failed("the example has no ground truth")
    stated = final_answers(completion) or [visible(completion)]
    # A sentence ends where the next begins, or at `Dr. Smith`: the answer may be all that its line says.
    whole = final_answers(completion, whole_lines=True)
    if len(whole) == 1 and _folded(whole[0]) == truth:
        stated = whole
    if len(stated) > 1:
        return Verdict(0.0, answer=" | ".join(stated))
    said = _folded(stated[0])
    return Verdict(float(said == truth), answer=said)


def verify_number(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if the last number of the final answer (of the completion, if none is stated) equals the ground truth, else 0.

    Meant for word problems and small models, whose answers come in no fixed form. Thousands may be separated by commas,
    LaTeX or no-break spaces; a plain space separates two numbers. Of a stated answer, what stands in brackets behind it
    is not read. A ground truth that is not one plain number, such as 1/2, is a failure.
    """
    truth = true_number(example["answer"])
    if truth is None:
        return Verdict.failed(f"the ground truth {example['answer']!r} holds no number, or not one plain number")
    stated = [_before_working(answer) for answer in final_answers(completion)] or [visible(completion)]
    said = last_number(stated[0]) if len(stated) == 1 else None
    value = None if said is None else Fraction(said)
    return Verdict(float(value == truth), answer=None if value is None else str(value))


def true_number(answer: Any) -> Fraction | None:
    """The value of a ground truth: of one plain number, or of what a worked solution states; None for anything else.

    >>> true_number("$1,400"), true_number("2 + 2\\n#### 4"), true_number("1/2"), true_number("1e3"), true_number(None)
    (Fraction(1400, 1), Fraction(4, 1), None, None, None)
    """
    stated = final_answers(str(answer)) or [str(answer)]
    match = _ONLY_NUMBER.fullmatch(_undressed(stated[0])) if len(stated) == 1 else None
    number = None if match is None else last_number(match.group(1))
    return None if number is None else Fraction(number)


def last_number(text: str) -> str | None:
    """The last number in a text, without thousands separators; None if there is none.

    >>> last_number("4 crates of 1,250.50 dollars.")
    '1250.50'
    >>> last_number("the pair 7,8"), last_number("1{,}400\\\\text{ cm}^2"), last_number("-$5")
    ('8', '1400', '-5')
    """
    found = _NUMBER.findall(_undressed(text))
    if not found:
        return None
    last = "".join(found[-1].split()).rstrip(",").replace("\\$", "").replace("$", "")
    last = last.replace(",", "") if _GROUPED.fullmatch(last) else last.rsplit(",", 1)[-1]
    return last if len(last) <= _LONGEST else None


def _undressed(text: str) -> str:
    return _UNIT_POWER.sub("", _SEPARATOR.sub(",", text[-4096:]).translate(_VARIANTS))


def _before_working(answer: str) -> str:
    """A stated answer without the brackets at its end, if a number stands before them."""
    working = _WORKING.search(answer)
    return answer[: working.start()] if working and _NUMBER.search(answer, 0, working.start()) else answer


def _folded(text: str) -> str:
    return plain(text).casefold().rstrip(".").strip()
