"""Deduplication, held-out split, contamination: literal cases and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.tasks.rows import row, to_dataset
from poise.tasks.select import contamination, deduplicate, fingerprint, held_out, split_by_hash, without


def rows(*prompts):
    return [row(prompt, "1") for prompt in prompts]


def test_fingerprint_ignores_case_spacing_and_punctuation_only():
    assert fingerprint("Sara 's 3 dogs .") == fingerprint("sara's 3 DOGS!")
    assert fingerprint("Sara has 3 dogs") != fingerprint("Sara has 4 dogs")


def test_deduplicate_keeps_the_first():
    assert [r["prompt"] for r in deduplicate(rows("One two", "three", "one, TWO"))] == ["One two", "three"]


def test_problems_that_differ_in_a_sign_are_two():
    different = [
        "3 + 4 = ?",
        "3 - 4 = ?",
        "3 * 4 = ?",
        "3 / 4 = ?",
        "(3 + 4) * 2",
        "3 + (4 * 2)",
        "x < 3",
        "x > 3",
        "1.5",
        "1 5",
    ]
    assert [r["prompt"] for r in deduplicate(rows(*different))] == different
    same = ["Sara 's 3 dogs cost $4.50 .", "Sara's 3 dogs cost 4.50!", "sara’s 3 dogs cost 4.50"]
    assert len(deduplicate(rows(*same))) == 1


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_every_row_is_in_exactly_one_split(prompts, share):
    made = rows(*prompts)
    train, test = (split_by_hash(made, split, share) for split in ("train", "test"))
    assert sorted(r["prompt"] for r in [*train, *test]) == sorted(prompts)


def test_a_larger_share_only_adds_to_the_held_out_rows():
    problems = [f"problem {i}" for i in range(2000)]
    small = {p for p in problems if held_out(p, 0.1)}
    large = {p for p in problems if held_out(p, 0.3)}
    assert small < large
    assert 150 < len(small) < 250


@pytest.mark.parametrize("share", [0, 1, -0.1, 2, "10%"])
def test_an_impossible_share(share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_by_hash(rows("a"), "train", share)


def test_contamination_finds_copies_and_long_shared_runs_but_not_templates():
    shared = "a farmer has twelve hens and each hen lays three eggs on every single day of the week"
    form = "Solve this with great care and write the answer on the last line please: {}"

    def filled(problem):
        return row(form.format(problem), "1", question=problem)

    evaluation = to_dataset([filled(shared), filled("short problem")])
    train = to_dataset([filled("Short problem!"), filled(shared + " how many eggs"), filled("something else entirely")])
    found = contamination(train, [evaluation])
    assert found.exact == (0,)
    assert found.overlapping == (1,)
    assert found.checked == 3
    assert [r["prompt"] for r in without(train, found.rows)] == [train[2]["prompt"]]


def test_rows_of_two_forms_are_refused():
    with pytest.raises(ConfigError, match="some prompts are text and some are lists"):
        to_dataset([row("a", "1"), row([{"role": "user", "content": "a"}], "1")])
    with pytest.raises(ConfigError, match="no row is left"):
        to_dataset([])
