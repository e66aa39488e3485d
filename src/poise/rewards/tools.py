"""The tool-calling reward: are the calls in the completion the calls that were wanted?

Calls are read from `<tool_call>` tags, from JSON code blocks, or from a completion that is JSON itself. Names are
equal, arguments are equal with their JSON types, nothing is left out, nothing is added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.rewards.answers import spoken
from poise.rewards.blocks import code_blocks
from poise.rewards.verdict import Verdict

# Text in brackets, such as [Note], is no JSON.
_LOOKS_LIKE_JSON = re.compile(r"\s*(?:\{|\[\s*[\[{\]])")
_MOST = 64
_LONGEST = 100_000
_DEEPEST = 64  # of JSON in JSON; arguments of real tools have a handful of levels


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool.

    Args:
        name: of the tool.
        arguments: by name; in a wanted call, those that must be there.
        optional: in a wanted call, arguments that may be left out, with the values they must have if they are not.
        alternatives: in a wanted call, for some arguments, all values that are as good.
    """

    name: str
    arguments: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)
    alternatives: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class UnreadableCallsError(ValueError):
    """Text that should hold calls and does not."""


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if the completion makes exactly the calls in `example["answer"]`, else 0.

    The answer is JSON: a list of {"name", "arguments"[, "optional", "alternatives"]}, or {"calls": that list, "order":
    "any" | "strict"}; calls may come in any order unless it is strict. An empty list wants no call at all.
    """
    try:
        wanted, strict = _wanted(str(example["answer"]))
    except (UnreadableCallsError, ValueError, TypeError, AttributeError) as error:
        return Verdict.failed(f"unreadable tool calls in the example: {error}")
    try:
        made = calls_in(completion)
    except UnreadableCallsError as error:
        return Verdict(0.0, note=str(error))
    note = f"{len(made)} calls made, {len(wanted)} wanted"
    answer = json.dumps([[call.name, dict(call.arguments)] for call in made], sort_keys=True)[:500]
    return Verdict(float(_match(made, wanted, strict)), answer=answer, note=note)


def calls_in(completion: str) -> list[Call]:
    """The calls that a completion makes, in order; none if it makes none.

    Raises:
        UnreadableCallsError: it tries to call and does not write JSON, or writes too much of it.
    """
    text = spoken(completion).strip()[:_LONGEST]
    tagged = [part.partition("</tool_call>") for part in text.split("<tool_call>")[1:]]
    if tagged:
        if not all(closed for _, closed, _ in tagged):
            raise UnreadableCallsError("a tool call is not closed")
        return _limited([call for part, *_ in tagged for call in _calls(_json(part))])
    fenced = [block for _, language, block in code_blocks(text) if _holds_calls(language, block)]
    if fenced:
        return _limited([call for part in fenced for call in _calls(_json(part))])
    return _limited(_calls(_json(text))) if _LOOKS_LIKE_JSON.match(text) else []


def same(made: Any, wanted: Any) -> bool:
    """Equality of JSON values with their types: 1 is 1.0, and is neither true nor "1".

    >>> same({"n": 1}, {"n": 1.0}), same(1, "1"), same(1, True)
    (True, False, False)
    """
    if isinstance(made, bool) or isinstance(wanted, bool):
        return made is wanted
    if isinstance(made, int | float) and isinstance(wanted, int | float):
        return made == wanted
    if isinstance(made, Mapping) and isinstance(wanted, Mapping):
        return made.keys() == wanted.keys() and all(same(made[key], wanted[key]) for key in made)
    if isinstance(made, list) and isinstance(wanted, list):
        return len(made) == len(wanted) and all(map(same, made, wanted))
    if isinstance(made, str) and isinstance(wanted, str):
        return made.strip() == wanted.strip()
    return made is None and wanted is None


def fits(made: Call, wanted: Call) -> bool:
    """Whether a call that was made is a call that was wanted."""
    if made.name != wanted.name or not wanted.arguments.keys() <= made.arguments.keys():
        return False
    for name, value in made.arguments.items():
        if name not in wanted.arguments and name not in wanted.optional:
            return False
        expected = wanted.arguments[name] if name in wanted.arguments else wanted.optional[name]
        if not any(same(value, good) for good in (expected, *wanted.alternatives.get(name, ()))):
            return False
    return True


def _match(made: list[Call], wanted: list[Call], strict: bool) -> bool:
    if len(made) != len(wanted):
        return False
    if strict:
        return all(map(fits, made, wanted))
    return _all_paired([[fits(call, want) for want in wanted] for call in made])


def _all_paired(fitting: list[list[bool]]) -> bool:
    """Whether every row can be given a column of its own where it is true (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, good in enumerate(fitting[row]):
            if good and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fitting)))


def _wanted(answer: str) -> tuple[list[Call], bool]:
    spec = json.loads(answer)
    strict = isinstance(spec, Mapping) and spec.get("order", "any") == "strict"
    listed = spec["calls"] if isinstance(spec, Mapping) and "calls" in spec else spec
    calls = []
    for each in listed if isinstance(listed, list) else [listed]:
        (call,) = _calls(each)
        optional, alternatives = each.get("optional") or {}, each.get("alternatives") or {}
        if not isinstance(optional, Mapping) or not all(isinstance(good, list) for good in alternatives.values()):
            raise UnreadableCallsError("optional is an object, and alternatives is an object of lists")
        calls.append(Call(call.name, call.arguments, optional, alternatives))
    return calls, strict


def _holds_calls(language: str, block: str) -> bool:
    """Whether a code block is there to call; one without a language may as well hold a command or a program."""
    return language in ("json", "tool_call") or (not language and _LOOKS_LIKE_JSON.match(block) is not None)


def _calls(value: Any) -> list[Call]:
    if isinstance(value, list):
        return [call for each in value for call in _calls(each)]
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        if "name" in value or "arguments" in value or "parameters" in value:
            raise UnreadableCallsError("a tool call inside another says two things at once")
        value = value["function"]
    if isinstance(value, Mapping) and "arguments" in value and "parameters" in value:
        raise UnreadableCallsError("a tool call has arguments or parameters, not both")
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UnreadableCallsError("a tool call has a name and arguments")
    arguments = value.get("arguments", value.get("parameters", {}))
    arguments = _json(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise UnreadableCallsError(f"the arguments of {value['name'][:80]!r} are not a JSON object")
    return [Call(value["name"], arguments)]


def _limited(calls: list[Call]) -> list[Call]:
    if len(calls) > _MOST:
        raise UnreadableCallsError(f"{len(calls)} tool calls are more than {_MOST}")
    return calls


def _json(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise UnreadableCallsError(f"a tool call is not JSON: {error}") from error
    level, deeper = [value], 0
    while level:
        if deeper > _DEEPEST:
            raise UnreadableCallsError(f"a tool call has more than {_DEEPEST} levels")
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level, deeper = [item for items in inside for item in items], deeper + 1
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; two values for one key would be two answers in one."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made
