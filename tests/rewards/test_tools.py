"""Tool calls compared by name and arguments: types, order, optional arguments, and ways of cheating."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.rewards import resolve
from poise.rewards.tools import UnreadableCallsError, calls_in, same

VERIFY = resolve("tools")
WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}
TIME = {"name": "time", "arguments": {"zone": "CET"}}


def tagged(*calls):
    return "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>\n" for call in calls)


def score(completion, wanted):
    return VERIFY(completion, {"answer": json.dumps(wanted)}).score


@pytest.mark.parametrize(
    "completion",
    [
        tagged(WEATHER),
        "<think>{}</think>" + tagged(WEATHER),
        "I will look it up.\n" + tagged(WEATHER),
        f"```json\n{json.dumps(WEATHER)}\n```",
        f"```json\n[{json.dumps(WEATHER)}]\n```",
        json.dumps(WEATHER),
        json.dumps({"name": "weather", "parameters": {"days": 3.0, "city": " Oslo "}}),
        json.dumps({"name": "weather", "arguments": json.dumps(WEATHER["arguments"])}),
        json.dumps([{"type": "function", "function": WEATHER}]),
        f"```python\nx = 1\n```\nSo I call\n```json\n{json.dumps(WEATHER)}\n```",
        f"```\npip install weather\n```\n```\n{json.dumps(WEATHER)}\n```",
    ],
)
def test_forms_of_the_same_call(completion):
    assert score(completion, [WEATHER]) == 1.0


@pytest.mark.parametrize(
    "made",
    [
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"name": "weather", "arguments": {"city": "Oslo", "days": "3"}},
        {"name": "weather", "arguments": {"city": "Oslo", "days": True}},
        {"name": "weather", "arguments": {"city": "oslo", "days": 3}},
        {"name": "weather", "arguments": {"city": ["Oslo"], "days": 3}},
        {"name": "weather", "arguments": {"city": "Oslo", "days": 3, "extra": None}},
        {"name": "Weather", "arguments": {"city": "Oslo", "days": 3}},
        {"name": "weather", "arguments": [1]},
        {"name": "weather"},
        {"name": "weather", "arguments": {"city": "Оslo", "days": 3}},  # the first letter is Cyrillic
    ],
)
def test_wrong_calls(made):
    assert score(tagged(made), [WEATHER]) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "```python\nx = 1\n```\nthen\n```python\ny = 2\n```",
        "```\npip install x\n```",
        "[Note] I cannot.",
        "[1] says that it rains.",
        "[]",
    ],
)
def test_text_and_programs_call_nothing(completion):
    assert score(completion, []) == 1.0


def test_what_is_only_thought_is_not_called():
    assert score("<think>" + tagged(WEATHER), [WEATHER]) == 0.0
    assert score("<think>" + tagged(TIME) + "</think>" + tagged(WEATHER), [WEATHER]) == 1.0
    assert score("<think>" + tagged(TIME), []) == 1.0


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", "3.5", '"3"', "[3]", "null"])
def test_no_other_json_value_is_a_number(value):
    assert score(tagged(WEATHER).replace("3", value), [WEATHER]) == 0.0


def test_calls_missing_added_or_repeated():
    assert score("no call", [WEATHER]) == 0.0
    assert score(tagged(WEATHER, WEATHER), [WEATHER]) == 0.0
    assert score(tagged(WEATHER, TIME), [WEATHER]) == 0.0
    assert score(tagged(WEATHER), [WEATHER, WEATHER]) == 0.0
    assert score("nothing to call", []) == 1.0
    assert score(tagged(TIME), []) == 0.0


def test_order_counts_only_where_it_is_strict():
    assert score(tagged(TIME, WEATHER), [WEATHER, TIME]) == 1.0
    assert score(tagged(TIME, WEATHER), {"calls": [WEATHER, TIME], "order": "strict"}) == 0.0
    assert score(tagged(WEATHER, TIME), {"calls": [WEATHER, TIME], "order": "strict"}) == 1.0


def test_optional_arguments_and_alternatives():
    wanted = [{**WEATHER, "optional": {"unit": "C"}, "alternatives": {"unit": ["celsius"], "city": ["Christiania"]}}]
    for arguments, expected in [
        ({"city": "Oslo", "days": 3}, 1.0),
        ({"city": "Oslo", "days": 3, "unit": "C"}, 1.0),
        ({"city": "Christiania", "days": 3, "unit": "celsius"}, 1.0),
        ({"city": "Oslo", "days": 3, "unit": "F"}, 0.0),
        ({"days": 3, "unit": "C"}, 0.0),
    ]:
        assert score(tagged({"name": "weather", "arguments": arguments}), wanted) == expected


def test_calls_are_paired_as_a_whole_not_one_by_one():
    loose = {"name": "f", "arguments": {}, "optional": {"x": 1}}
    exact = {"name": "f", "arguments": {}}
    made = [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": 1}}]
    assert score(tagged(*made), [loose, exact]) == 1.0
    assert score(tagged(*reversed(made)), [exact, loose]) == 1.0
    assert score(tagged(made[1], made[1]), [loose, exact]) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "<tool_call>{not json}</tool_call>",
        "<tool_call>" + json.dumps(WEATHER),
        tagged(WEATHER) + "<tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "city": "Rome", "days": 3}}</tool_call>',
        '<tool_call>{"name": 3}</tool_call>',
        "[" * 50_000,
        tagged(WEATHER).replace("3", "[" * 900 + "]" * 900),
        "[" * 950 + json.dumps(WEATHER) + "]" * 950,
        tagged({**WEATHER, "parameters": {"city": "Rome"}}),
        tagged({"name": "time", "function": WEATHER}),
        tagged(*[WEATHER] * 100),
        '{"name": "weather", "arguments": {"days": ' + "9" * 10_000 + "}}",
    ],
)
def test_unreadable_and_excessive_calls_are_wrong(completion):
    with pytest.raises(UnreadableCallsError):
        calls_in(completion)
    assert score(completion, [WEATHER]) == 0.0


@pytest.mark.parametrize("flood", ["<tool_call>" * 9_000, "</tool_call>" * 4_000 + "<tool_call>" * 4_000])
def test_tags_without_end_take_no_time(flood):
    began = time.process_time()
    assert score(flood, [WEATHER]) == 0.0
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "answer",
    [
        "no json",
        "[3]",
        '[{"arguments": {}}]',
        '{"calls": [null]}',
        json.dumps([{**WEATHER, "alternatives": ["Rome"]}]),
        json.dumps([{**WEATHER, "alternatives": {"city": "Rome"}}]),
        json.dumps([{**WEATHER, "optional": ["unit"]}]),
    ],
)
def test_an_unreadable_truth_is_a_failure(answer):
    verdict = VERIFY(tagged(WEATHER), {"answer": answer})
    assert verdict.score is None
    assert "unreadable tool calls" in verdict.failure


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(JSON_VALUES, JSON_VALUES)
def test_equality_is_json_equality(one, other):
    assert same(one, one)
    assert same(one, other) == same(other, one)
    if isinstance(one, str) or isinstance(other, str):
        return
    if json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True):
        assert same(one, other)
