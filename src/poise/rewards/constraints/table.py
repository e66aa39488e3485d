"""The table of constraints: how they are named, read from an example, and asked."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from poise.rewards.constraints.measure import seen, words

Check = Callable[..., bool]
CONSTRAINTS: dict[str, Check] = {}


class UnknownConstraintError(ValueError):
    """A constraint that cannot be checked: nobody wrote it, or its arguments are missing."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a prompt.

    Args:
        id: name in the table, such as "length_constraints:number_words".
        arguments: what it needs, such as num_words and relation.
    """

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def constraint(*ids: str) -> Callable[[Check], Check]:
    """Enters a check into the table under one or more ids; the response is its first argument."""

    def enter(check: Check) -> Check:
        for name in ids:
            CONSTRAINTS[name] = check
        return check

    return enter


def holds(wanted: Constraint, response: str) -> bool:
    """Whether a response keeps a constraint. A response without a word keeps none.

    Raises:
        UnknownConstraintError: the id is unknown, or an argument that it needs is missing.
        ValueError: an argument that should be a number is none.
    """
    check = CONSTRAINTS.get(wanted.id)
    if check is None:
        raise UnknownConstraintError(f"no constraint is called {wanted.id!r}")
    known = list(inspect.signature(check).parameters.values())[1:]
    given = {key: value for key, value in wanted.arguments.items() if value is not None}
    missing = [each.name for each in known if each.default is each.empty and each.name not in given]
    if missing:
        raise UnknownConstraintError(f"the constraint {wanted.id!r} lacks {', '.join(missing)}")
    response, kinds = seen(response), {each.name: each.annotation for each in known}
    # What a constraint asks for is looked for in the same spelling.
    given = {name: _seen(_number(value, kinds[name])) for name, value in given.items() if name in kinds}
    return bool(words(response)) and bool(check(response, **given))


def _number(value: Any, kind: str) -> Any:
    """Whole numbers may come as texts or, from a table, as floats."""
    whole = isinstance(value, str) or (isinstance(value, float) and value.is_integer())
    return int(value) if kind == "int" and whole else value


def _seen(value: Any) -> Any:
    if isinstance(value, list):
        return [_seen(each) for each in value]
    return seen(value) if isinstance(value, str) else value


def read_constraints(answer: str) -> list[Constraint]:
    """The constraints in an example's `answer`.

    Args:
        answer: JSON (or a Python literal, as IF-RLVR stores it): a list of {"id", "kwargs"}, or of {"instruction_id":
            [...], "kwargs": [...]}, or one such mapping with "instruction_id_list" as in IFEval.

    Raises:
        UnknownConstraintError: it is none of these forms, or empty.
    """
    try:
        spec = json.loads(answer)
    except json.JSONDecodeError:
        try:
            spec = ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UnknownConstraintError(f"the constraints cannot be read: {answer[:80]!r}") from error
    try:
        found = [each for group in (spec if isinstance(spec, list) else [spec]) for each in _group(group)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UnknownConstraintError(f"the constraints are in no known form: {answer[:80]!r}") from error
    if not found:
        raise UnknownConstraintError("there are no constraints")
    return found


def _group(group: Any) -> list[Constraint]:
    if isinstance(group, str):
        group = json.loads(group)
    if "id" in group:
        return [Constraint(group["id"], group.get("kwargs") or {})]
    ids = group.get("instruction_id") or group["instruction_id_list"]
    arguments = group.get("kwargs") or [None] * len(ids)
    return [Constraint(name, given or {}) for name, given in zip(ids, arguments, strict=True)]
