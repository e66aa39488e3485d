"""Compares what a program did with what was expected of it, on our side of the sandbox's wall."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

# Values that are put into a table one by one: the time that keys made to collide take grows with the square.
_LARGEST_TABLE = 5_000


class NotPlainError(ValueError):
    """A program's answer that is no plain data."""


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A program's answer that is equal to nothing: a condition may ask whether it is true, and go through its items."""

    kind: str


def from_plain(value: Any) -> Any:
    """The Python value behind the runner's JSON.

    Raises:
        NotPlainError: it is not the JSON of plain data, which only a forging program writes.
    """
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items() if len(value) == 1 else ((None, None),)
    try:
        if not isinstance(inside, list):
            raise NotPlainError(f"a value of type {inside if kind == 'other' else '?'}")
        if kind in ("dict", "set", "frozenset") and len(inside) > _LARGEST_TABLE:
            raise NotPlainError(f"a {kind} of {len(inside)} items")
        if kind == "dict":
            return {from_plain(key): from_plain(item) for key, item in inside}
        if kind in ("tuple", "set", "frozenset"):
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](from_plain(item) for item in inside)
        if kind == "bytes":
            return bytes(inside)
        if kind == "complex":
            return complex(*inside)
        if kind == "ratio":
            over, under = inside
            return Fraction(over, under)
        if kind in ("iter", "view"):
            list(map(from_plain, inside))
            return Opaque(kind)
        if kind == "opaque":
            return Opaque(str(*inside))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise NotPlainError(str(error)) from error
    raise NotPlainError("a value of type ?")


def answers_of(stdout: str) -> list[dict[str, Any]]:
    """The runner's answers, line by line, up to the first line that is none."""
    answers: list[dict[str, Any]] = []
    for line in stdout.split("\n"):
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(answer, dict):
            break
        answers.append(answer)
    return answers


def same_value(found: Any, expected: Any, exact: bool = False) -> bool:
    """Whether a returned value is the expected one.

    Args:
        found: from the program.
        expected: from the test.
        exact: Python's `==`; else tuples are lists, and floats may differ in the last places (1e-6 relative).
    """
    if exact:
        return bool(found == expected)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(same_value(one, other) for one, other in pairs)
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        # JSON has no keys but text.
        found = {str(key): value for key, value in found.items()}
        expected = {str(key): value for key, value in expected.items()}
        return found.keys() == expected.keys() and all(same_value(found[key], expected[key]) for key in found)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        if isinstance(found, int) and isinstance(expected, int):
            return found == expected
        return _close(found, expected)
    return type(found) is type(expected) and bool(found == expected)


def same_output(found: str, expected: str) -> bool:
    """Whether a program's output is the expected one, but for white space at line ends and floats' last places.

    >>> same_output("1 2 \\n0.30000000000000004\\n", "1 2\\n0.3")
    True
    >>> same_output("12", "1 2")
    False
    """
    lines, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (found, expected))
    if lines == wanted:
        return True
    if len(lines) != len(wanted):
        return False
    return all(_same_line(line, want) for line, want in zip(lines, wanted, strict=True))


def _same_line(line: str, wanted: str) -> bool:
    if line == wanted:
        return True
    tokens, others = line.split(), wanted.split()
    return len(tokens) == len(others) and all(map(_same_token, tokens, others))


def _same_token(token: str, wanted: str) -> bool:
    if token == wanted:
        return True
    # Only where a float is expected: 1e0 is not the integer 1, and a list of digits is no number.
    if "." not in wanted or len(token) > 64 or not token.isascii() or "_" in token:
        return False
    try:
        return _close(float(token), float(wanted))
    except ValueError:
        return False


def _close(found: float, expected: float) -> bool:
    try:
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9) or (found != found and expected != expected)
    except OverflowError:
        return False
