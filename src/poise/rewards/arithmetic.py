"""Arithmetic as an answer: the completion writes an expression such as `58 - 21`, and the verifier works it out.

Part of the `verify` step, for word problems and models too small to calculate: what is judged is the choice of numbers
and operations. Nothing is evaluated as code; exact fractions, a bounded length and no powers keep the work small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from poise.rewards.exact import plain, true_number
from poise.rewards.verdict import Verdict

# A sign of multiplication may be a letter x between numbers; a dollar sign says nothing about the value.
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_TOKEN = re.compile(rf"\s*(?:\$?(?P<number>{_NUMBER})(?P<percent>%?)|(?P<sign>[-+*/xX×÷()]))")
_OPERATIONS = {"x": "*", "X": "*", "×": "*", "÷": "/"}
# A word problem of a few steps needs a dozen; what is longer is no answer.
_LONGEST = 200
_DEEPEST = 8


class _NotArithmeticError(ValueError):
    """The text is no arithmetic expression, or divides by zero."""


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if the expression on the completion's first line has the value of the ground truth, else 0.

    What stands behind an equals sign is not judged: `7 - 3 = 5` has the value 4. A line that is no expression of
    numbers, `+ - * /` and brackets is wrong.
    """
    truth = true_number(example["answer"])
    if truth is None:
        return Verdict.failed(f"the ground truth {example['answer']!r} holds no number, or not one plain number")
    value = value_of(completion)
    return Verdict(float(value == truth), answer=None if value is None else str(value))


def value_of(text: str) -> Fraction | None:
    """The exact value of the expression on a text's first line, up to an equals sign; None if there is none.

    >>> value_of(" 58 - 21 = 30"), value_of("(2 + 3) x $1,000"), value_of("7 / 0"), value_of("7 apples")
    (Fraction(37, 1), Fraction(5000, 1), None, None)
    >>> value_of("50% * 20")
    Fraction(10, 1)
    """
    line = (text.strip().splitlines() or [""])[0][: _LONGEST + 1]
    said = plain(line.split("=", 1)[0]).rstrip(".")
    if not said or len(said) > _LONGEST:
        return None
    try:
        tokens = list(_tokens(said))
        value, rest = _sum(tokens, 0)
    except _NotArithmeticError:
        return None
    return None if rest else value


def _tokens(text: str) -> Iterator[Fraction | str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _NotArithmeticError(text)
        number, place = match["number"], match.end()
        if number:
            yield Fraction(number.replace(",", "")) / (100 if match["percent"] else 1)
        else:
            yield _OPERATIONS.get(match["sign"], match["sign"])


Tokens = list[Fraction | str]


def _sum(tokens: Tokens, depth: int) -> tuple[Fraction, Tokens]:
    minus = tokens[:1] == ["-"]
    value, tokens = _product(tokens[minus:], depth)
    value = -value if minus else value
    while tokens and tokens[0] in ("+", "-"):
        right, rest = _product(tokens[1:], depth)
        value, tokens = value + right if tokens[0] == "+" else value - right, rest
    return value, tokens


def _product(tokens: Tokens, depth: int) -> tuple[Fraction, Tokens]:
    value, tokens = _factor(tokens, depth)
    while tokens and tokens[0] in ("*", "/"):
        right, rest = _factor(tokens[1:], depth)
        if tokens[0] == "/" and right == 0:
            raise _NotArithmeticError("division by zero")
        value, tokens = value * right if tokens[0] == "*" else value / right, rest
    return value, tokens


def _factor(tokens: Tokens, depth: int) -> tuple[Fraction, Tokens]:
    first = tokens[0] if tokens else ""
    if isinstance(first, Fraction):
        return first, tokens[1:]
    if first != "(" or depth >= _DEEPEST:
        raise _NotArithmeticError(f"{first!r} is no number")
    value, rest = _sum(tokens[1:], depth + 1)
    if not rest or rest[0] != ")":
        raise _NotArithmeticError("a bracket is not closed")
    return value, rest[1:]
