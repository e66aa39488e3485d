"""What a program is tested on: inputs that go into the sandbox, and expected results that never do.

A program can read, patch or imitate anything that runs beside it, so nothing that knows an expected result runs beside
it. Three kinds of tests are read from an example's `answer`, a JSON text:

    {"stdin": [{"input": "1 2\\n", "output": "3\\n"}, ...]}              a whole program
    {"call": "add", "cases": [{"args": [1, 2], "output": 3}, ...]}     a function (kwargs are optional)
    {"asserts": ["assert add(1, 2) == 3", ...]}                         as in MBPP and AceCode

and the published forms {"inputs", "outputs"[, "fn_name"]} (APPS, TACO, PRIME), {"functional": "def check(candidate):
..."} (HumanEval, LeetCode), and a bare list of asserts.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

# Names that an assert may use on our side; every other call is the program's.
_OURS = {name for name in dir(builtins) if not name.startswith("_")} | {"math"}


class UnreadableTestsError(ValueError):
    """The example's tests are not in a form that can be judged."""


@dataclass(frozen=True, slots=True)
class StdinTest:
    """A program's input and the output expected of it."""

    stdin: str
    expected: str


@dataclass(frozen=True, slots=True)
class CallTest:
    """Calls that the program evaluates, and what must be true of their values.

    Args:
        calls: Python expressions evaluated where the program is.
        expected: the value expected of the only call; unused if there is a condition.
        condition: Python expression over `value[0]`, `value[1]`, ..., judged where the program is not; None compares.
        exact: whether a tuple differs from a list, and 1.0 from 1.0000001.
        also: values that are as good as the expected one.
    """

    calls: tuple[str, ...]
    expected: Any = None
    condition: str | None = None
    exact: bool = False
    also: tuple[Any, ...] = ()


def read_tests(answer: str) -> list[StdinTest] | list[CallTest]:
    """The tests in an example's `answer`.

    Raises:
        UnreadableTestsError: it holds no tests, or tests that cannot be judged without trusting the program.
    """
    try:
        tests = json.loads(answer)
    except json.JSONDecodeError as error:
        raise UnreadableTestsError(f"the tests are not JSON: {error}") from error
    found = _read(tests)
    if not found:
        raise UnreadableTestsError("there are no tests")
    return found


def _read(tests: Any) -> list[StdinTest] | list[CallTest]:
    if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
        return [read_assert(test) for test in tests]
    if not isinstance(tests, Mapping):
        raise UnreadableTestsError(f"the tests are a {type(tests).__name__}, not one of the known forms")
    try:
        if "asserts" in tests:
            return [read_assert(test) for test in tests["asserts"]]
        if "functional" in tests:
            return [read_assert(test) for test in _asserts_of_check(tests["functional"])]
        if "stdin" in tests:
            return [StdinTest(_text(test["input"]), _text(test["output"])) for test in tests["stdin"]]
        if "call" in tests:
            return [_call(tests["call"], test) for test in tests["cases"]]
        if "inputs" in tests:
            return list(_published(tests))
    except (KeyError, TypeError) as error:
        raise UnreadableTestsError(f"the tests lack a field: {error!r}") from error
    raise UnreadableTestsError(f"the tests have the fields {', '.join(tests)}, which is none of the known forms")


def _asserts_of_check(source: str) -> list[str]:
    """The asserts in `def check(candidate): ...`, with the function in place that a last line hands to check."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise UnreadableTestsError(f"the check is no Python: {source[:80]!r}") from error
    checks = {node.name: node for node in body if isinstance(node, ast.FunctionDef) and len(node.args.args) == 1}
    given = {
        node.value.func.id: node.value.args[0]
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    }
    asserts = []
    for name, check in checks.items():
        if name not in given or not all(isinstance(line, ast.Assert) for line in check.body):
            raise UnreadableTestsError("a check that does more than assert, or that nothing is handed to")
        inside = _Rename(check.args.args[0].arg, given[name])
        asserts += [ast.unparse(inside.visit(line)) for line in check.body]
    return asserts


class _Rename(ast.NodeTransformer):
    def __init__(self, name: str, by: ast.expr) -> None:
        self.name, self.by = name, by

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.by if node.id == self.name else node


def _published(tests: Mapping[str, Any]) -> Iterator[Any]:
    name, inputs, outputs = tests.get("fn_name"), tests["inputs"], tests["outputs"]
    if len(inputs) != len(outputs):
        raise UnreadableTestsError(f"there are {len(inputs)} inputs and {len(outputs)} outputs")
    # APPS wraps every returned value in a list; PRIME does not. Where either may be meant, as in both their own judges,
    # either is right.
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    for given, expected in zip(inputs, outputs, strict=True):
        if name is None:
            yield StdinTest(_text(given), _text(expected))
        elif wrapped:
            yield replace(_call(name, {"args": given, "output": expected[0]}), also=(expected,))
        else:
            yield _call(name, {"args": given, "output": expected})


def _call(name: str, test: Mapping[str, Any]) -> CallTest:
    if not isinstance(test.get("args", []), list):
        raise UnreadableTestsError(f"the arguments of {name!r} are {test['args']!r:.60}, not a list")
    arguments = [repr(value) for value in test.get("args", [])]
    arguments += [f"{key}={value!r}" for key, value in test.get("kwargs", {}).items()]
    # LeetCode's form: the function is a method of a class Solution.
    return CallTest((f"_entry({name!r})({', '.join(arguments)})",), test["output"])


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def read_assert(source: str) -> CallTest:
    """Splits an assert into the calls that the program answers and the condition that we judge.

    Raises:
        UnreadableTestsError: it is not a single assert, or makes no call, or mixes the program into a comprehension.

    >>> read_assert("assert add(1, 2) == 3")
    CallTest(calls=('add(1, 2)',), expected=3, condition=None, exact=True, also=())
    >>> read_assert("assert abs(mean([1, 2]) - 1.5) < 1e-6").condition
    'abs(value[0] - 1.5) < 1e-06'
    """
    try:
        (statement,) = ast.parse(source.strip()).body
    except (SyntaxError, ValueError) as error:
        raise UnreadableTestsError(f"not a single statement: {source[:80]!r}") from error
    if not isinstance(statement, ast.Assert):
        raise UnreadableTestsError(f"not an assert: {source[:80]!r}")
    split = _Split()
    condition = split.visit(statement.test)
    if not split.calls:
        raise UnreadableTestsError(f"an assert that does not call the program: {source[:80]!r}")
    if split.unknown:
        raise UnreadableTestsError(f"an assert that uses {split.unknown} outside a call: {source[:80]!r}")
    simple = _literal_comparison(condition)
    if simple is not None:
        return CallTest(tuple(split.calls), expected=simple[0], exact=True)
    return CallTest(tuple(split.calls), condition=ast.unparse(condition), exact=True)


class _Split(ast.NodeTransformer):
    """Replaces the outermost calls of the program's functions by `value[i]`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.unknown: str | None = None
        self._bound: list[set[str]] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _root_name(node.func) in _OURS or _root_name(node.func) is None:
            return self.generic_visit(node)
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        if any(used & bound for bound in self._bound):
            raise UnreadableTestsError("an assert that calls the program for each item of a comprehension")
        self.calls.append(ast.unparse(node))
        return ast.parse(f"value[{len(self.calls) - 1}]", mode="eval").body

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in _OURS and not any(node.id in bound for bound in self._bound):
            self.unknown = node.id
        return node

    def _comprehension(self, node: Any) -> ast.AST:
        names = (name for generator in node.generators for name in ast.walk(generator.target))
        self._bound.append({name.id for name in names if isinstance(name, ast.Name)})
        visited = self.generic_visit(node)
        self._bound.pop()
        return visited

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension


def _root_name(function: ast.AST) -> str | None:
    """The name that a call starts from: `Solution` in `Solution().solve`; None for a method of a literal."""
    while not isinstance(function, ast.Name):
        if isinstance(function, ast.Attribute):
            function = function.value
        elif isinstance(function, ast.Call):
            function = function.func
        elif isinstance(function, ast.Subscript):
            function = function.value
        else:
            return None
    return function.id


def _literal_comparison(condition: ast.AST) -> tuple[Any] | None:
    """The literal of `value[0] == literal`; None for any other condition."""
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1 or not isinstance(condition.ops[0], ast.Eq):
        return None
    if ast.unparse(condition.left) != "value[0]":
        return None
    try:
        return (ast.literal_eval(condition.comparators[0]),)
    except ValueError:
        return None
