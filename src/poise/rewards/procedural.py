"""Verifies procedural answers: the answer is extracted first, then reasoning-gym's own scorer judges it alone.

The `verify` step for `poise.tasks.procedural`. reasoning-gym gives points when the right answer merely occurs
somewhere, and several of its scorers hand the answer to `eval`. So a completion must give exactly one
`<answer>...</answer>` outside its thinking, and where a scorer would evaluate the answer, only text that cannot do
anything reaches it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from poise.errors import ConfigError
from poise.rewards.verdict import Verdict
from poise.tasks.procedural import dataset, load_entry

# Beyond this no dataset's answer goes; a longer one is a loop, and some scorers are quadratic in it.
_LONGEST_ANSWER = 20_000

# Scorers that call eval on what should be a list, and those that let sympy parse (and so evaluate) an expression.
_LISTS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
_EXPRESSIONS = {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
_FUNCTIONS = {"sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "sqrt", "Abs"}
_LONGEST_EXPRESSION = 400
_HIGHEST_POWER = 32


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if reasoning-gym gives the extracted answer full marks, else 0.

    Args:
        completion: the rollout's text.
        example: a row of a procedural task; only `info` is read.
    """
    verdict = verify_partial(completion, example)
    if verdict.score is None:
        return verdict
    return Verdict(score=float(verdict.score >= 1.0), answer=verdict.answer)


def verify_partial(completion: str, example: Mapping[str, Any]) -> Verdict:
    """reasoning-gym's own score of the extracted answer, partial credit included, in [0, 1]."""
    answer = extract_answer(completion)
    if answer is None:
        return Verdict(score=0.0)
    try:
        info = load_entry(example["info"])
        name, entry = info["dataset"], info["entry"]
        scorer = dataset(name, json.dumps(info.get("options", {}), sort_keys=True))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        return Verdict.failed(f"the row's info names no reasoning-gym entry: {type(error).__name__}: {error}")
    if len(answer) > _LONGEST_ANSWER or not is_harmless(answer, name):
        return Verdict(score=0.0, answer=answer[:_LONGEST_ANSWER])
    try:
        score = float(scorer.score_answer(answer, entry))
    except Exception as error:
        return Verdict.failed(f"reasoning-gym's scorer of {name!r} raised {type(error).__name__}: {error}")
    return Verdict(score=min(1.0, max(0.0, score)), answer=answer)


def extract_answer(completion: str) -> str | None:
    """The text of the only `<answer>...</answer>` outside the thinking; None if there is none, or more than one.

    Thinking that never ends hides everything after it, and a second answer, or a tag inside an answer, is no answer.
    """
    thought_out = re.sub(r"<think>.*?(</think>|\Z)", "", completion, flags=re.DOTALL)
    # A template may have opened <think> in the prompt: then everything up to the first </think> was thinking.
    said = thought_out.rsplit("</think>", 1)[-1]
    if said.count("<answer>") != 1 or said.count("</answer>") != 1:
        return None
    match = re.search(r"<answer>(.*)</answer>", said, re.DOTALL)
    return match.group(1).strip() if match else None


def is_harmless(answer: str, name: str) -> bool:
    """Whether an answer can be given to this dataset's scorer, which for some datasets evaluates it as code."""
    if name in _LISTS:
        return _is_plain(answer)
    if name in _EXPRESSIONS:
        return _is_arithmetic(answer)
    return True


def _is_plain(answer: str) -> bool:
    """Words, numbers and brackets: no call, no attribute, no comprehension, so nothing for eval to do."""
    return re.fullmatch(r"[\w\s,.\[\]'\"#-]*", answer) is not None and not re.search(r"__|\.\D|\bfor\b", answer)


def _is_arithmetic(answer: str) -> bool:
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
