"""What may reach a reasoning-gym scorer: text that it cannot be made to execute, and that costs it little.

Some scorers call `eval` on what should be a list, some let sympy parse (and so evaluate) an expression, some repeat a
move as often as a number in the answer says. What is refused here is a wrong answer; nothing here runs anything.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

# Scorers that call eval, and those whose sympy parses what is said.
_LISTS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
SYMBOLIC = {"simple_integration", "intermediate_integration", "polynomial_multiplication"}
ARITHMETIC = {"puzzle24", "countdown"}
_FUNCTIONS = {"sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "sqrt", "Abs"}
_LONGEST_EXPRESSION = 400
_HIGHEST_POWER = 32
# Numbers that say how often: moves of a cube, steps of a car, digits of an exponent. No solution needs a hundred.
_REPETITIONS = {
    "rubiks_cube": re.compile(r"\d{3}"),
    "rush_hour": re.compile(r"\d{3}"),
    "coin_flip": re.compile(r"[eE][-+]?\d{3}|\d{300}"),
}
# A letter or a closing bracket that no operator follows; two letters would count as a variable of their own, and the
# truth table doubles with each.
_NO_PROPOSITION = re.compile(r"[^A-Z()¬∧∨→↔]|[A-Z)][A-Z(¬]")


def is_harmless(answer: str, name: str) -> bool:
    """Whether an answer can be given to this dataset's scorer."""
    if name in _LISTS:
        return _is_plain(answer)
    if name in SYMBOLIC:
        return _is_symbolic(answer)
    if name in ARITHMETIC:
        return exact_value(answer) is not None
    if name == "propositional_logic":
        return _is_proposition(answer)
    return name not in _REPETITIONS or _REPETITIONS[name].search(answer) is None


def exact_value(answer: str) -> Fraction | None:
    """The value of an expression of whole numbers, brackets and `+ - * /`; None for anything else.

    >>> exact_value("(1 + 2)*8/1"), exact_value("-3 + 27"), exact_value("2**3"), exact_value("1/0")
    (Fraction(24, 1), Fraction(24, 1), None, None)
    """
    # Decimal digits only: the numbers that are used are counted by their digits.
    if len(answer) > _LONGEST_EXPRESSION or not re.fullmatch(r"[0-9\s()+*/-]*", answer):
        return None
    try:
        return _value(ast.parse(answer.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() as value) if value < 10**12:
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
    raise ValueError(f"not arithmetic: {ast.dump(node)[:80]}")


def _is_plain(answer: str) -> bool:
    """Whether eval has nothing to do with it: a literal, or no expression at all, or a name that stands for nothing.

    Other names would be the scorer's own variables, the right answer among them.
    """
    try:
        body = ast.parse(answer.strip(), mode="eval").body
        if isinstance(body, ast.Name):
            return body.id.isascii() and body.id.isupper() and body.id.isalpha()
        ast.literal_eval(body)
    except SyntaxError:
        return True  # to eval as well
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _is_symbolic(answer: str) -> bool:
    """A short expression of numbers, single-letter variables and known functions, with small constant powers."""
    if len(answer) > _LONGEST_EXPRESSION:
        return False
    try:
        return _degree(ast.parse(answer.strip(), mode="eval").body) <= _HIGHEST_POWER
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _degree(node: ast.expr) -> int:
    """An upper bound of an expression's degree; raises ValueError for anything but arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and abs(value) < 1e12:
            return 1
        case ast.Name(id=name) if len(name) == 1 or name == "pi":
            return 1
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _degree(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_degree(left), _degree(right))
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return _degree(left) + _degree(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _degree(left) * max(1, _constant(right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _degree(argument)
    raise ValueError(f"not arithmetic: {ast.dump(node)[:80]}")


def _constant(node: ast.expr) -> int:
    """The size of a constant exponent such as 3, -2 or 1/2."""
    match node:
        case ast.Constant(value=int() | float() as value) if abs(value) <= _HIGHEST_POWER:
            return int(abs(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _constant(operand)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return max(_constant(left), _constant(right))
    raise ValueError("an exponent must be a small number")


def _is_proposition(answer: str) -> bool:
    """Operators between single letters, its brackets in pairs: a formula that is read in one way."""
    text = "".join(answer.split())
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return False
    return depth == 0 and len(text) <= _LONGEST_EXPRESSION and _NO_PROPOSITION.search(text) is None
