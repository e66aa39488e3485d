"""Every reasoning-gym dataset by name: its own answer is right, junk is wrong, and no scorer executes what is said."""

import json
import time

import pytest

from poise.errors import ConfigError
from poise.rewards.procedural import _SYMBOLIC, verify, verify_partial
from poise.rewards.procedural_guard import exact_value, is_harmless
from poise.tasks.procedural import dump_entry, load_entry, load_procedural, stream

DATASETS = sorted(pytest.importorskip("reasoning_gym.factory").DATASETS)
# They judge what is said and store no answer of their own.
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
# A wrapper around others, which have to be named in its options.
WRAPPER = "composite"
JUNK = (
    "",
    "0",
    "-1",
    "nan",
    "True",
    "None",
    "{}",
    "[[1]]",
    "1e400",
    "(" * 3000,
    "[" * 3000,
    "x or 7",
    "__import__('os')",
)


@pytest.fixture(scope="module")
def rows():
    made = {}

    def first(name):
        if name not in made:
            made[name] = next(iter(stream(f"reasoning-gym:{name}", "train")))
        return made[name]

    yield first
    _SYMBOLIC.close()


def tagged(answer):
    return f"<think>hm</think><answer>{answer}</answer>"


@pytest.mark.parametrize("name", [name for name in DATASETS if name != WRAPPER])
def test_its_own_answer_is_right_and_junk_is_wrong(rows, name, tmp_path):
    row = rows(name)
    if name not in WITHOUT_ANSWER:
        assert verify(tagged(row["answer"]), row).score == 1.0
    for junk in JUNK:
        if junk != row["answer"]:
            verdict = verify(tagged(junk), row)
            assert verdict.score == 0.0, (junk, verdict)


def test_a_wrapper_of_datasets_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="'composite' refuses the options"):
        load_procedural(f"reasoning-gym:{WRAPPER}", "train", 1)


def test_those_without_an_answer_of_their_own_accept_a_right_one(rows):
    cube = rows("rubiks_cube")
    moves = load_entry(cube["info"])["entry"]["metadata"]["scramble_moves"].split()
    back = " ".join(move[:-1] if move.endswith("'") else f"{move}'" for move in reversed(moves))
    assert verify(tagged(back), cube).score == 1.0
    graph = rows("graph_color")
    puzzle = load_entry(graph["info"])["entry"]["metadata"]["puzzle"]
    assert verify(tagged(json.dumps(coloured(puzzle))), graph).score == 1.0


def coloured(puzzle, done=()):
    """A colouring of a graph, by trying."""
    if len(done) == len(puzzle["vertices"]):
        return dict(zip(map(str, puzzle["vertices"]), done, strict=True))
    vertex = puzzle["vertices"][len(done)]
    near = {a if b == vertex else b for a, b in puzzle["edges"] if vertex in (a, b)}
    used = {colour for other, colour in zip(puzzle["vertices"], done, strict=False) if other in near}
    tried = (coloured(puzzle, (*done, colour)) for colour in puzzle["color_options"] if colour not in used)
    return next((found for found in tried if found), None)


def made(name, answer, options=None, **metadata):
    entry = {"question": "?", "answer": answer, "metadata": metadata}
    return {"info": dump_entry({"dataset": name, "entry": entry, "options": options or {}})}


# What reasoning-gym 0.1.25 gives full marks and is wrong.
OVERPAID = [
    (made("spell_backward", "detnetnoc"), "detnetnoc", ["detnetnocx", "detnetnoc detnetnoc"]),
    (made("coin_flip", "0.109375"), "7/64", ["0", "0.1", "0.10"]),
    (made("coin_flip", "0.0000152587890625"), "1/65536", ["0", "0.0001", "0.00002", "-1/65536"]),
    (
        made("knights_knaves", "Zoey is a knight, and Ann is a knave."),
        "Ann is a knave and Zoey is a knight",
        ["It is false that Zoey is a knight, and Ann is a knave.", "not Zoey is a knight, not Ann is a knave"],
    ),
    (
        made("time_intervals", "34 days", task_type="date"),
        "34",
        ["34 days or 5", "34 days 5", "34 day 3", "34 hours", "34 days, or 35 days"],
    ),
    (made("time_intervals", "02:30:51.051", task_type="time_ms"), "2:30:51.051", ["02:30:51.51", "01:90:51.051"]),
    (made("time_intervals", "04:09", task_type="time"), "4:09:00", ["04:09:00:33", "05:-51"]),
    (
        made("time_intervals", "3 days, 07:33", task_type="datetime"),
        "3 days, 7:33",
        ["3 days, 07:33, or 4 days, 07:33"],
    ),
    (
        made("kakurasu", "0 1\n1 0", row_sums=[2, 1], col_sums=[2, 1], n_rows=2, n_cols=2),
        "[[0, 1],\n[1, 0]]",
        ["not 0 1\n1 0", "0 2 1\n1 0"],
    ),
    (
        made("survo", "1 2\n3 4", board_size=2, solution=[[1, 2], [3, 4]]),
        "1  2\n\n3 4",
        ["not 1 2\n3 4", "1 2\n5, 3 4"],
    ),
    (made("complex_arithmetic", "2.0 - 10.0i", result=(2.0, -10.0)), "2 - 10i", ["nan", "nan + nani"]),
    (made("game_of_life_halting", "False"), "false", ["True", "0", "maybe"]),
    (made("puzzle24", "6*(4 + 4)/2", numbers=[6, 4, 4, 2]), "(4+4)/2*6", ["6*4*1*1", "8*3*1*1", "49/2*1*1"]),
    (made("gsm_symbolic", "882"), "$882", ["882 or 883", "882, 7"]),
    (made("number_sorting", "['1.5', '2.0']", direction="ascending"), "[1.5, 2]", ["[NaN, NaN]", "[2.0, 2.0]"]),
    (made("word_sorting", "a, b", sorted_words=["a", "b"]), "a, b", ["a, b, c", "b, a"]),
    (made("letter_jumble", "hello there"), "Hello there", ["hello there friend"]),
    (made("game_of_life", "[[0,1],[1,0]]"), "[[0, 1], [1, 0]]", ["[[0,1],[1,0],[1,1]]", "[[0,1,1],[1,0]]"]),
    (
        made("fraction_simplification", "$\\dfrac{1}{2}$", simplified_numerator=1, simplified_denominator=2),
        "1/2",
        ["$\\dfrac{1}{2}$ or $\\dfrac{2}{3}$", "\\frac{1}{2}, \\frac{1}{3}"],
    ),
    (
        made("calendar_arithmetic", "-1", task="recurring_event_day"),
        "-1",
        ["5", "31"],
    ),
    (made("figlet_font", "extraordinary"), "EXTRAORDINARY", ["extraordinabc"]),
    (
        made("propositional_logic", None, variables=["P", "Q"], premises=["P", "(P → Q)"]),
        "P ∧ Q",
        ["P → Q", "((P) → Q)", "P ∨ ¬P", "Q → ¬P"],
    ),
    (made("countdown", "3*7 + 1", numbers=[3, 7, 1], target=22), "1 + 7*3", ["sqrt(3)*7 + 1", "3*7 - 1"]),
]


@pytest.mark.parametrize(
    ("row", "right", "wrong"), OVERPAID, ids=[load_entry(r["info"])["dataset"] for r, *_ in OVERPAID]
)
def test_what_its_scorer_overpays_is_wrong(row, right, wrong):
    assert verify(tagged(right), row).score == 1.0
    for answer in wrong:
        assert verify_partial(tagged(answer), row).score < 1.0, answer
        assert verify(tagged(answer), row).score == 0.0, answer


BOMBS = [
    ("rush_hour", "A+999999999"),
    ("rubiks_cube", "R999999999"),
    ("coin_flip", "1e999999999"),
    ("coin_flip", "9" * 4000),
    ("countdown", "9**9**9**9"),
    ("puzzle24", "(((2**9)**9)**9)**9"),
    ("simple_integration", "((x+1)**32)**32"),
    ("propositional_logic", "∧".join(a + b + c for a in "PQ" for b in "PQ" for c in "PQRSTU")),
    ("propositional_logic", "∧".join("(" * i + "P" for i in range(26))),
]


@pytest.mark.parametrize(("name", "bomb"), BOMBS, ids=[name for name, _ in BOMBS])
def test_bombs_are_wrong_at_once(rows, name, bomb):
    began = time.process_time()
    assert verify(tagged(bomb), rows(name)).score == 0.0
    assert time.process_time() - began < 1.0


def test_a_symbolic_answer_that_takes_too_long_is_stopped_and_costs_no_worker(rows, monkeypatch):
    row = rows("simple_integration")
    monkeypatch.setattr("poise.rewards.procedural._SECONDS", 2.0)
    assert verify(tagged(row["answer"]), row).score == 1.0
    nested = "x"
    for _ in range(7):
        nested = f"sqrt(x + {nested})"
    verdict = verify(tagged(f"{nested}*log(x + exp(x + tan(x)))"), row)
    assert verdict.score is None
    assert "no answer within 2 s" in verdict.failure
    assert verify(tagged(row["answer"] + " + x"), row).score == 0.0


# The scorers that evaluate see their own variables, the right answer among them.
@pytest.mark.parametrize("peek", ["oracle_answer", "[oracle_answer]", "entry['answer']", "answer", "self", "entry"])
@pytest.mark.parametrize("name", ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens"])
def test_a_scorers_own_variables_are_out_of_reach(rows, name, peek):
    assert not is_harmless(peek, name)
    assert verify_partial(tagged(peek), rows(name)).score == 0.0


def test_lists_still_earn_their_part(rows):
    row = rows("string_insertion")
    assert verify_partial(tagged(list(row["answer"])), row).score == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text", ["2**3", "1_0", "0x10", "True", "1.5", "pi", "f(1)", "1 if 2 else 3", "1/0", "", "1e2"]
)
def test_only_whole_numbers_have_an_exact_value(text):
    assert exact_value(text) is None
