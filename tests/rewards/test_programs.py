"""The code reward: right, wrong, slow and broken programs kept apart, and programs that attack their tests.

Every attack is bounded and runs inside the sandbox only.
"""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.rewards import resolve, trl_reward
from poise.rewards.code_judge import NotPlainError, from_plain, same_output, same_value
from poise.rewards.code_runner import plain
from poise.rewards.code_tests import UnreadableTestsError, read_assert, read_tests
from poise.rewards.programs import CodeVerifier, last_program
from poise.rewards.sandbox import Limits, Outcome, SandboxError

SMALL = Limits(cpu_seconds=1, wall_seconds=20.0, memory=256 << 20, output=100_000)
SUMS = {"answer": json.dumps({"stdin": [{"input": f"{i} {i + 1}\n", "output": f"{2 * i + 1}\n"} for i in range(3)]})}
ADD = {"answer": json.dumps({"call": "add", "cases": [{"args": [i, 1], "output": i + 1} for i in range(3)]})}
ASSERTS = {
    "answer": json.dumps(
        ["assert add(1, 2) == 3", "assert abs(add(0.1, 0.2) - 0.3) < 1e-9", "assert add([1], [2]) == [1, 2]"]
    )
}


def block(program):
    return f"Here it is.\n```python\n{program}\n```\n"


@pytest.fixture(scope="module")
def verify(bubblewrap):
    return CodeVerifier(bubblewrap, limits=SMALL)


@pytest.mark.usefixtures("bubblewrap")
class TestVerdicts:
    def test_a_right_program(self, verify):
        verdict = verify(block("a, b = map(int, input().split())\nprint(a + b)"), SUMS)
        assert (verdict.score, verdict.note) == (1.0, "3 of 3 passed")
        assert verify(block("def add(a, b):\n    return a + b"), ADD).score == 1.0
        assert verify(block("class Solution:\n    def add(self, a, b):\n        return a + b"), ADD).score == 1.0
        assert verify(block("def add(a, b):\n    return a + b"), ASSERTS).score == 1.0

    @pytest.mark.parametrize(
        ("program", "note"),
        [
            ("print(5)", "0 of 3 passed, test 1: wrong output"),
            (
                "print(1)",
                "1 of 3 passed, test 2: wrong output",
            ),
            ("while True: pass", "0 of 3 passed, test 1: time-out"),
            ("while True: print('x' * 999)", "0 of 3 passed, test 1: too much output"),
            ("1 / 0", "0 of 3 passed, test 1: exit code 1: ZeroDivisionError: division by zero"),
            ("def f(:", "SyntaxError"),
            ("import sys; sys.exit(0)", "0 of 3 passed, test 1: wrong output"),
            ("x = bytearray(1 << 31)", "MemoryError"),
            ("print(10**10**10)", "test 1: "),
        ],
    )
    def test_a_wrong_program_is_zero_and_says_why(self, verify, program, note):
        verdict = verify(block(program), SUMS)
        assert verdict.score == 0.0
        assert note in verdict.note

    @pytest.mark.parametrize(
        ("program", "note"),
        [
            ("def add(a, b): return a - b", "test 1: wrong value"),
            ("def sub(a, b): return a", "raised NameError"),
            ("def add(a, b): raise ValueError('no')", "raised ValueError: no"),
            ("def add(a, b):\n    while True: pass", "test 1: time-out"),
            ("raise RuntimeError('early')", "does not load: RuntimeError: early"),
            ("def add(a, b): return object()", "wrong value: a value of type object"),
            ("def add(a, b):\n    add(a, b)", "raised RecursionError"),
        ],
    )
    def test_a_wrong_function_is_zero_and_says_why(self, verify, program, note):
        verdict = verify(block(program), ADD)
        assert verdict.score == 0.0
        assert note in verdict.note

    def test_partial_credit(self):
        partial = CodeVerifier(limits=SMALL, partial=True)
        assert partial(block("def add(a, b): return 1"), ADD).score == pytest.approx(1 / 3)
        assert partial(block("print(3)"), SUMS).score == pytest.approx(1 / 3)

    def test_no_program_is_wrong(self, verify):
        assert verify("I would add them.", SUMS).note == "no program"
        assert verify("```python\nprint(1)", SUMS).note == "no program"
        assert verify("<think>\n```python\nprint(1)\n```\n</think> done", SUMS).score == 0.0

    def test_unreadable_tests_are_a_failure(self, verify):
        for answer in (
            "no json",
            "[]",
            '{"odd": 1}',
            '{"stdin": [{"input": "1"}]}',
            '["assert f(1) == LIMIT"]',
            '["x = 1"]',
            '{"fn_name": "f", "inputs": ["5\\n6"], "outputs": ["11"]}',
            '{"inputs": ["5"], "outputs": []}',
        ):
            verdict = verify(block("print(1)"), {"answer": answer})
            assert verdict.score is None
            assert verdict.failure.startswith("unreadable tests: ")

    def test_a_published_output_in_a_list_is_the_list_or_what_is_in_it(self, verify):
        example = {"answer": json.dumps({"fn_name": "f", "inputs": [[5], [6]], "outputs": [[5], [6]]})}
        for result, score in (("x", 1.0), ("[x]", 1.0), ("[[x]]", 0.0), ("[x, x]", 0.0)):
            assert verify(block(f"def f(x): return {result}"), example).score == score

    def test_a_broken_sandbox_is_a_failure(self):
        class Broken:
            def run(self, program, **kwargs):
                raise SandboxError("no room")

        verdict = CodeVerifier(Broken())(block("print(1)"), SUMS)
        assert (verdict.score, verdict.failure) == (None, "sandbox: no room")

    def test_a_batch_as_a_trl_reward(self):
        reward = trl_reward("code")
        completions = [block("def add(a, b): return a + b"), block("def add(a, b): return a"), "none"]
        answers = [ADD["answer"], ADD["answer"], "not json"]
        scores = reward(prompts=["p"] * 3, completions=completions, answer=answers)
        assert scores == pytest.approx([1.0, 0.0, float("nan")], nan_ok=True)
        assert resolve("code") is resolve("code")


HIJACKS = {
    "prints a fake result": 'print(\'{"value": 3}\')\nprint("3 of 3 passed")\nimport os; os._exit(0)',
    "exits at once": "import sys; sys.exit(0)",
    "exits in the function": "def add(a, b):\n    import os; os._exit(0)",
    "an object equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def add(a, b): return Any(99)""",
    "a list equal to everything": """
class Any(list):
    def __eq__(self, other): return True
    def __len__(self): return 0
def add(a, b): return Any([1, 99])""",
    "patches the runner": """
import json, sys, builtins
json.dumps = lambda *a, **k: '{"value": 1}'
builtins.eval = lambda *a, **k: 1
for frame in [sys._getframe(i) for i in range(3)]:
    frame.f_globals["plain"] = lambda value: True
def add(a, b): return 99""",
    "writes answers to every descriptor": """
import os
for descriptor in range(3, 20):
    try: os.write(descriptor, b'{"value": true}\\n' * 9)
    except OSError: pass
def add(a, b): return 99""",
    "looks for the expected values": """
import gc, glob, os
seen = [open(path).read() for path in glob.glob("/sandbox/*")]
seen += [repr(x) for x in gc.get_objects() if isinstance(x, (dict, list))]
leaked = any("expected" in text or '"output"' in text or "987654" in text for text in seen)
def add(a, b): return 987654 if leaked else 99""",
    "replaces the assert": "import builtins\nbuiltins.AssertionError = Exception\ndef add(a, b): return 99",
    "replaces abs": "import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b): return 99",
    "a value of endless depth": "x = []\nx.append(x)\ndef add(a, b): return x",
    "a number without end": "def add(a, b): return 10 ** (10 ** 6)",
    "not a number": "def add(a, b): return float('nan')",
    "a true that is one": "def add(a, b): return True",
    "a look-alike": "def add(a, b): return '３'",
    "answers written at the end": """
import atexit, os
def late():
    for descriptor in range(1, 20):
        try: os.write(descriptor, b'{"value": 3}\\n{"value": 1}\\n')
        except OSError: pass
atexit.register(late)
def add(a, b): os._exit(0)""",
    "a str that is equal to everything": """
class Any(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def add(a, b): return Any("9")""",
    "looks up the stack": """
import sys, inspect
def add(a, b):
    seen = [repr(frame.frame.f_locals)[:10000] for frame in inspect.stack()]
    return 987654 if any("987654" in text and "Solution" in text for text in seen) else 99""",
    "another thread answers": """
import os, threading
def write():
    while True:
        for descriptor in range(3, 8):
            try: os.write(descriptor, b'{"value": true}\\n')
            except OSError: pass
threading.Thread(target=write, daemon=True).start()
def add(a, b): return 99""",
    "a forged value of a hundred gigabytes": """
import os
for descriptor in range(3, 8):
    try: os.write(descriptor, b'{"value": {"bytes": 100000000000}}\\n' * 4)
    except OSError: pass
os._exit(0)""",
    "reads other processes": """
import glob
seen = []
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/fd/*"):
    try: seen.append(open(path, errors="replace").read(100000))
    except OSError: pass
def add(a, b): return 987654 if any("987654" in text for text in seen) else 99""",
}


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("attack", HIJACKS)
def test_hijacks_earn_nothing(verify, attack):
    hidden = {
        "answer": json.dumps(
            {"call": "add", "cases": [{"args": [1, 2], "output": 987654}, {"args": [0, 1], "output": 1}]}
        )
    }
    for example in (ADD, ASSERTS, hidden):
        verdict = verify(block(HIJACKS[attack]), example)
        assert verdict.score == 0.0, verdict


@pytest.mark.usefixtures("bubblewrap")
def test_a_whole_program_cannot_see_what_is_expected(verify):
    program = """
import glob
for path in glob.glob("/sandbox/*") + glob.glob("/tmp/*") + ["/proc/self/environ", "/proc/self/cmdline"]:
    print(open(path, errors="replace").read())
"""
    example = {"answer": json.dumps({"stdin": [{"input": "1\n", "output": "secret-987654\n"}]})}
    outcome = verify.sandbox.run(program, stdin="1\n", limits=SMALL)
    assert "secret-987654" not in outcome.stdout
    assert verify(block(program), example).score == 0.0


@pytest.mark.usefixtures("bubblewrap")
def test_conditions_are_judged_where_the_program_is_not(verify):
    example = {
        "answer": json.dumps(
            {
                "asserts": [
                    "assert math.isclose(root(2), 1.41421356, rel_tol=1e-6)",
                    "assert not odd(2)",
                    "assert isinstance(names(), set) and len(names()) == 2",
                ]
            }
        )
    }
    right = "def root(x): return x ** 0.5\ndef odd(x): return x % 2\ndef names(): return {'a', 'b'}"
    assert verify(block(right), example).score == 1.0
    cheat = (
        right.replace("x ** 0.5", "0")
        + "\nimport math, builtins\nmath.isclose = lambda *a, **k: True\nbuiltins.len = lambda *a: 2"
    )
    assert "wrong value" in verify(block(cheat), example).note


RESULTS = [
    # What a program returns, a condition on it, and whether Python's assert holds.
    ("(i for i in range(3))", "list(f()) == [0, 1, 2]", True),
    ("(i for i in range(3))", "f() == [0, 1, 2]", False),
    ("map(str, [1])", "f()", True),
    ("range(3)", "sorted(f(), reverse=True) == [2, 1, 0]", True),
    ("range(3)", "f() == [0, 1, 2]", False),
    ("range(0)", "f()", False),
    ("range(3)", "len(f()) == 3", True),
    ("{1: 2}.keys()", "list(f()) == [1]", True),
    ("{}.values()", "f()", False),
    ("reversed([1, 2])", "list(f()) == [2, 1]", True),
    ("__import__('collections').deque([1])", "list(f()) == [1]", True),
    ("__import__('itertools').count()", "f()", True),
    ("__import__('re').match('a', 'a')", "f()", True),
    ("__import__('re').match('a', 'a')", "f() is not None", True),
    ("__import__('re').match('a', 'a')", "not f()", False),
    ("__import__('re').match('a', 'a')", "f() == 'a'", False),
    ("__import__('decimal').Decimal('1.5')", "f() == 1.5", True),
    ("__import__('decimal').Decimal('1.1')", "f() == 1.1", False),
    ("__import__('decimal').Decimal('1e999999999')", "f() == 1", False),
    ("__import__('decimal').Decimal('sNaN')", "f() == 1", False),
    ("__import__('fractions').Fraction(1, 2)", "f() == 0.5", True),
    ("__import__('fractions').Fraction(1, 2)", "abs(f() - 0.5) < 1e-9", True),
]


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(("value", "condition", "holds"), RESULTS)
def test_results_that_are_no_plain_data_are_judged_as_python_does(verify, value, condition, holds):
    verdict = verify(block(f"def f(): return {value}"), {"answer": json.dumps([f"assert {condition}"])})
    assert verdict.score == float(holds), verdict


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("value", ["object()", "range(3)", "{1: 2}.keys()"])
def test_what_is_no_plain_data_is_neither_equal_nor_unequal_to_anything(bubblewrap, value):
    """What a program's own `__eq__` would say is not known where it is judged."""
    asserts = [f"assert {c}" for c in ("f() != 3", "f() != f()", "f() not in [1]", "str(f()) != 'a'", "f() not in {1}")]
    partial = CodeVerifier(bubblewrap, limits=SMALL, partial=True)
    assert partial(block(f"def f(): return {value}"), {"answer": json.dumps(asserts)}).score == 0.0


@pytest.mark.usefixtures("bubblewrap")
def test_an_answer_that_cannot_be_written_costs_its_own_test_only(bubblewrap):
    partial = CodeVerifier(bubblewrap, limits=SMALL, partial=True)
    verdict = partial(block("def add(a, b): return 10**5000 if a == 0 else a + b"), ADD)
    assert verdict.score == pytest.approx(2 / 3)
    assert "test 1: raised ValueError: Exceeds the limit" in verdict.note


def test_the_same_verdicts_on_a_fusion_server(fusion):
    remote = CodeVerifier(f"sandbox-fusion:{fusion.url}")
    assert remote(block("a, b = map(int, input().split())\nprint(a + b)"), SUMS).score == 1.0
    assert remote(block("def add(a, b): return a + b"), ADD).score == 1.0
    assert remote(block("def add(a, b): return a + b"), ASSERTS).score == 1.0
    assert remote(block("def add(a, b): return a"), ASSERTS).score == 0.0
    hasty = CodeVerifier(f"sandbox-fusion:{fusion.url}", limits=Limits(wall_seconds=0.5))
    assert "time-out" in hasty(block("while True: pass"), SUMS).note


def test_the_fusion_reward_names_its_variable(monkeypatch):
    monkeypatch.delenv("POISE_SANDBOX_FUSION", raising=False)
    with pytest.raises(ConfigError, match="set POISE_SANDBOX_FUSION"):
        resolve("code-sandbox-fusion")


@pytest.mark.usefixtures("bubblewrap")
def test_missing_isolation_stops_the_run_when_the_reward_is_named(monkeypatch):
    from poise.rewards import registry

    monkeypatch.setitem(registry._REWARDS, "code", "poise.rewards.programs:CodeVerifier")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="not installed"):
        resolve("code")


def test_published_forms():
    assert [t.expected for t in read_tests('{"inputs": ["1\\n"], "outputs": ["2\\n"]}')] == ["2\n"]
    (test,) = read_tests('{"fn_name": "f", "inputs": [[1, "a"]], "outputs": [[2]]}')
    assert (test.calls, test.expected, test.also) == (("_entry('f')(1, 'a')",), 2, ([2],))
    lists = read_tests('{"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [1, 2]]}')
    assert [(test.expected, test.also) for test in lists] == [([1], ()), ([1, 2], ())]
    (test,) = read_tests('{"call": "f", "cases": [{"args": [1], "kwargs": {"k": null}, "output": [1, 2]}]}')
    assert test.calls == ("_entry('f')(1, k=None)",)


@pytest.mark.parametrize(
    ("source", "calls", "condition"),
    [
        ("assert f(1) == 2", ("f(1)",), None),
        ("assert f(g(1)) == [1, (2,)]", ("f(g(1))",), None),
        ("assert f(1)", ("f(1)",), "value[0]"),
        ("assert not f(1)", ("f(1)",), "not value[0]"),
        ("assert f(1) is None", ("f(1)",), "value[0] is None"),
        ("assert sorted(f(1)) == [1]", ("f(1)",), "sorted(value[0]) == [1]"),
        ("assert f(1) == 1 and f(2) == 4, 'msg'", ("f(1)", "f(2)"), "value[0] == 1 and value[1] == 4"),
        ("assert f(1) == g(1)", ("f(1)", "g(1)"), "value[0] == value[1]"),
        ("assert Solution().f(1) == 3", ("Solution().f(1)",), None),
        ("assert 3 == f(1)", ("f(1)",), "3 == value[0]"),
        ("assert all(x > 0 for x in f(3))", ("f(3)",), "all((x > 0 for x in value[0]))"),
        ("assert f([i for i in range(3)]) == 3", ("f([i for i in range(3)])",), None),
    ],
)
def test_asserts_are_split_between_the_program_and_the_judge(source, calls, condition):
    test = read_assert(source)
    assert (test.calls, test.condition) == (calls, condition)


@pytest.mark.parametrize(
    "source",
    ["assert [f(i) for i in range(3)] == [0, 1, 2]", "assert 1 == 1", "x = f(1)", "assert f(1) == LIMIT", "def f(:"],
)
def test_asserts_that_would_have_to_trust_the_program_are_refused(source):
    with pytest.raises(UnreadableTestsError):
        read_assert(source)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_values_keep_their_types_on_the_way_out(value):
    back = from_plain(json.loads(json.dumps(plain(value))))
    assert same_value(back, value, exact=True)
    assert type(back) is type(value) or isinstance(value, bytes)
    assert same_value(back, value)


@pytest.mark.parametrize(
    "forged",
    [
        {"bytes": 10**11},
        {"bytes": [300]},
        {"tuple": 5},
        {"set": "abc"},
        {"set": [[]]},
        {"complex": [1, 2, 3]},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"a": 1, "b": 2},
        {"other": {}},
        {"opaque": 5},
        {"opaque": [1, 2]},
        {"iter": 5},
        {"view": [{"a": 1, "b": 2}]},
        {"ratio": ["1e999999999"]},
        {"ratio": ["1e999999999", 1]},
        {"ratio": [1, 0]},
        {"set": [place * (2**61 - 1) for place in range(40_000)]},
        {"dict": [[place * (2**61 - 1), 0] for place in range(30_000)]},
    ],
    ids=lambda forged: json.dumps(forged)[:24],
)
def test_forged_values_cost_us_neither_memory_nor_time(forged):
    """A program may write what the runner never would: room for a hundred gigabytes, keys that all collide."""
    began = time.process_time()
    with pytest.raises(NotPlainError):
        from_plain(forged)
    assert time.process_time() - began < 1.0


def test_values_are_compared_as_json_has_them():
    assert same_value((1, [2]), [1, (2,)])
    assert same_value({1: 2.0000001}, {"1": 2})
    assert same_value(0.1 + 0.2, 0.3)
    assert same_value(math.nan, math.nan)
    assert not same_value(True, 1)
    assert not same_value("1", 1)
    assert not same_value([1], [1, 2])
    assert not same_value(10**400, 1.0)
    assert not same_value((1, 2), [1, 2], exact=True)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1 2 \n", "1 2", True),
        ("1\n2\n\n\n", "1\n2", True),
        ("0.3333333", "0.33333333", True),
        ("3.0", "3", False),
        ("1  2", "1 2", True),
        ("1e0", "1", False),
        ("１", "1", False),
        ("inf", "1.0", False),
        ("1\n2", "1 2", False),
        ("YES", "Yes", False),
        ("", "1", False),
    ],
)
def test_outputs_are_compared_line_by_line(found, expected, same):
    assert same_output(found, expected) is same


def test_the_last_closed_block_is_the_program():
    assert last_program("```\na\n```\ntext\n```py\nb\n```") == "b\n"
    assert last_program("```json\n{}\n```") is None
    assert last_program("```python\n" + "x" * 200_000 + "\n```") is None
    assert last_program("```\n" * 10_000) in (None, "")


@pytest.mark.parametrize(
    "after", ["Example output:\n```\n3\n```", "Run it:\n```\npython main.py\n```", "```bash\nls\n```", "```py\nopen"]
)
def test_a_block_of_no_language_after_the_program_is_not_the_program(after):
    assert last_program(f"```python\nprint(3)\n```\n{after}") == "print(3)\n"


def test_a_block_in_an_item_of_a_list_is_dedented():
    assert last_program("1. So:\n   ```python\n   if x:\n       y\n   ```") == "if x:\n    y\n"
    assert last_program("  ```python\nif x:\n  y\n  ```") == "if x:\n  y\n"
    assert last_program("```python\nif x:\n  \n  y\n```") == "if x:\n  \n  y\n"


@pytest.mark.parametrize("flood", ["```python\n", "```\n", "```", " ", "```python\n```x\n"])
def test_fences_without_end_take_no_time(flood):
    began = time.process_time()
    last_program(flood * 40_000)
    assert time.process_time() - began < 1.0


def test_a_sandbox_may_be_anything_that_runs():
    class Echo:
        def run(self, program, *, files=None, stdin="", limits=None):
            return Outcome("finished", 0, stdin)

    example = {"answer": json.dumps({"stdin": [{"input": "x", "output": "x"}]})}
    assert CodeVerifier(Echo())(block("anything"), example).score == 1.0
