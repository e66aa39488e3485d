"""The code reward: does the completion's program pass its tests? Programs run in a sandbox, never here.

The last fenced Python block of the completion is the program. Score 1 if it passes every test, 0 if it is wrong, too
slow or too greedy (the verdict's note says which test and why). A sandbox that does not work, or tests that cannot be
judged, are failures: they say nothing about the program.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.rewards.answers import visible
from poise.rewards.blocks import code_blocks
from poise.rewards.code_judge import NotPlainError, Opaque, answers_of, from_plain, same_output, same_value
from poise.rewards.code_tests import CallTest, StdinTest, UnreadableTestsError, read_tests
from poise.rewards.sandbox import Limits, Outcome, Sandbox, SandboxError, open_sandbox
from poise.rewards.verdict import Verdict

_RUNNER = Path(__file__).with_name("code_runner.py")
_LONGEST = 100_000  # characters of a program; published solutions are a hundredth of that
# What decides conditions: plain data in, one true or false a line out. The program is not where this runs.
_JUDGE = """
import json, math, os
folder = "/sandbox" if os.path.isdir("/sandbox") else "."
conditions = json.load(open(os.path.join(folder, "conditions.json")))
class Opaque:
    __eq__ = __ne__ = __hash__ = __repr__ = None
class View(Opaque):
    def __init__(self, items):
        self.items = list(items)
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
def back(value):
    if isinstance(value, list):
        return [back(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "dict":
        return {back(key): back(item) for key, item in inside}
    if kind == "complex":
        return complex(*inside)
    if kind == "ratio":
        from fractions import Fraction
        return Fraction(*inside)
    if kind == "opaque":
        return Opaque()
    kinds = {"tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes, "iter": iter, "view": View}
    return kinds[kind](map(back, inside))
for condition, values in conditions:
    try:
        print(json.dumps(bool(eval(condition, {"math": math, "value": [back(value) for value in values]}))))
    except Exception:
        print("false")
"""


class CodeVerifier:
    """Runs completions' programs against the tests in the example's `answer` (see `code_tests`).

    Args:
        sandbox: "bubblewrap", "sandbox-fusion:URL", "unsafe-local", or a Sandbox.
        limits: what one run of a program may use.
        partial: score the share of passed tests instead of all or nothing.
        most_tests: tests beyond this many are not run; None runs all.

    Raises:
        SandboxError: the sandbox does not work here.
    """

    # Programs wait for their sandbox most of the time, so a batch of rollouts is verified side by side.
    concurrency = 4

    def __init__(
        self,
        sandbox: str | Sandbox = "bubblewrap",
        limits: Limits | None = None,
        partial: bool = False,
        most_tests: int | None = 64,
    ) -> None:
        self.sandbox = open_sandbox(sandbox) if isinstance(sandbox, str) else sandbox
        self.limits = limits or Limits()
        self.partial = partial
        self.most_tests = most_tests
        self.__name__ = "code"

    def __call__(self, completion: str, example: Mapping[str, Any]) -> Verdict:
        """Whether the completion's program passes the tests in `example["answer"]`."""
        try:
            tests = read_tests(str(example["answer"]))[: self.most_tests]
            whole = [test for test in tests if isinstance(test, StdinTest)]
            calls = [test for test in tests if isinstance(test, CallTest)]
        except UnreadableTestsError as error:
            return Verdict.failed(f"unreadable tests: {error}")
        program = last_program(completion)
        if program is None:
            return Verdict(0.0, note="no program")
        try:
            marks = self._stdin(program, whole) if whole else self._calls(program, calls)
        except SandboxError as error:
            return Verdict.failed(f"sandbox: {error}")
        return self._verdict(marks, len(tests))

    def _verdict(self, marks: Sequence[str], tests: int) -> Verdict:
        passed = sum(mark == "passed" for mark in marks)
        trouble = next((f", test {place}: {mark}" for place, mark in enumerate(marks, 1) if mark != "passed"), "")
        score = passed / tests if self.partial else float(passed == tests)
        return Verdict(score, note=f"{passed} of {tests} passed{trouble}")

    def _stdin(self, program: str, tests: Sequence[StdinTest]) -> list[str]:
        marks: list[str] = []
        for test in tests:
            outcome = self.sandbox.run(program, stdin=test.stdin, limits=self.limits)
            trouble = _trouble(outcome)
            marks.append(trouble or ("passed" if same_output(outcome.stdout, test.expected) else "wrong output"))
            # A time-out is not tried again on every other test; without partial credit any trouble ends it.
            if marks[-1] != "passed" and (not self.partial or outcome.status != "finished"):
                break
        return marks

    def _calls(self, program: str, tests: Sequence[CallTest]) -> list[str]:
        calls = [call for test in tests for call in test.calls]
        files = {"solution.py": program, "calls.json": json.dumps(calls)}
        outcome = self.sandbox.run(_RUNNER.read_text(), files=files, limits=self.limits)
        answers = answers_of(outcome.stdout)
        if answers and "broken" in answers[0]:
            return [f"the program does not load: {answers[0]['broken']}"]
        marks: list[str] = []
        conditions: list[tuple[str, list[Any]]] = []
        taken = 0
        for test in tests:
            mine = answers[taken : taken + len(test.calls)]
            taken += len(test.calls)
            mark = self._mark(test, mine, outcome)
            if mark == "undecided":
                conditions.append((test.condition or "", [answer.get("value") for answer in mine]))
            marks.append(mark)
        return self._judged(marks, conditions)

    def _mark(self, test: CallTest, answers: list[dict[str, Any]], outcome: Outcome) -> str:
        for answer in answers:
            if "value" not in answer:
                return f"raised {answer.get('error', 'something')}"[:200]
        if len(answers) < len(test.calls):
            return _trouble(outcome) or "ended before it answered"
        try:
            values = [from_plain(answer["value"]) for answer in answers]
            if test.condition is not None:
                return "undecided"
            if isinstance(values[0], Opaque):
                return f"wrong value: a value of type {values[0].kind}"
            good = any(same_value(values[0], value, test.exact) for value in (test.expected, *test.also))
            return "passed" if good else "wrong value"
        except (NotPlainError, RecursionError) as error:
            return f"wrong value: {error}"

    def _judged(self, marks: list[str], conditions: list[tuple[str, list[Any]]]) -> list[str]:
        """Decides the undecided marks in a second sandbox, where the program is not."""
        if not conditions:
            return marks
        outcome = self.sandbox.run(_JUDGE, files={"conditions.json": json.dumps(conditions)}, limits=self.limits)
        if outcome.status == "finished" and outcome.exit_code != 0:
            raise SandboxError(f"the judge did not run: {outcome.stderr[-300:]}")
        said = iter(outcome.stdout.split())
        return [
            mark if mark != "undecided" else "passed" if next(said, "false") == "true" else "wrong value"
            for mark in marks
        ]


def last_program(completion: str) -> str | None:
    """The last closed Python code block of a completion's visible part; None if there is none.

    Blocks without a language count if none is Python: beside one that is, they show commands and output.

    >>> last_program("First:\\n```python\\nx = 1\\n```\\nBetter:\\n```python\\nx = 2\\n```")
    'x = 2\\n'
    """
    python, untold = None, None
    for indent, language, block in code_blocks(visible(completion)[-4 * _LONGEST :]):
        program = textwrap.dedent(block) if indent else block  # in an item of a list
        if language in ("python", "python3", "py"):
            python = program
        elif not language:
            untold = program
    program = untold if python is None else python
    return program if program is not None and len(program) <= _LONGEST else None


def _trouble(outcome: Outcome) -> str | None:
    if outcome.status == "timeout":
        return "time-out"
    if outcome.status == "output":
        return "too much output"
    if outcome.exit_code != 0:
        last = outcome.stderr.strip().rsplit("\n", 1)[-1]
        return f"exit code {outcome.exit_code}: {last[:200]}"
    return None


class PartialCode(CodeVerifier):
    """The code reward in bubblewrap, scored by the share of passed tests."""

    def __init__(self) -> None:
        super().__init__(partial=True)


class UnsafeLocalCode(CodeVerifier):
    """The code reward without isolation; see `sandbox.unsafe_local`."""

    def __init__(self) -> None:
        super().__init__("unsafe-local")


class FusionCode(CodeVerifier):
    """The code reward on the SandboxFusion server that the environment variable POISE_SANDBOX_FUSION names.

    Raises:
        ConfigError: the variable is not set.
    """

    concurrency = 16

    def __init__(self) -> None:
        url = os.environ.get("POISE_SANDBOX_FUSION")
        if not url:
            raise ConfigError("set POISE_SANDBOX_FUSION to the server's URL, such as http://sandbox:8080")
        super().__init__(f"sandbox-fusion:{url}")
