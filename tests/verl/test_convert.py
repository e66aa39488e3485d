"""Datasets go to verl and back, and from verl and back, row for row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.verl.convert import convert_file, from_verl, info_of, to_verl

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 = ?"}]
ROW = {"prompt": MESSAGES, "answer": "4", "domain": "chain_sum", "info": '{"terms": 2}'}
FOREIGN = {
    "data_source": "openai/gsm8k",
    "prompt": MESSAGES,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"answer": "long text", "index": 3, "split": "train"},
    "agent_name": None,
}


def test_literal_row() -> None:
    assert to_verl([ROW], split="test", reward="procedural") == [
        {
            "data_source": "chain_sum",
            "prompt": MESSAGES,
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {
                "index": 0,
                "split": "test",
                "reward": "procedural",
                "info": '{"terms": 2}',
                "is_plain_prompt": False,
                "plain": "prompt,answer,domain,info",
                "columns": "{}",
            },
        }
    ]


def test_a_text_prompt_becomes_one_user_message_and_text_again() -> None:
    (verl,) = to_verl([{**ROW, "prompt": "2 + 2 = ?"}])
    assert verl["prompt"] == [{"role": "user", "content": "2 + 2 = ?"}]
    assert from_verl([verl]) == [{**ROW, "prompt": "2 + 2 = ?"}]


def test_a_row_of_verls_own_reads_as_ours() -> None:
    (row,) = from_verl([FOREIGN])
    assert (row["prompt"], row["answer"], row["domain"]) == (MESSAGES, "72", "openai/gsm8k")
    assert json.loads(row["info"])["verl"]["extra_info"]["index"] == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
OURS = st.fixed_dictionaries(
    {
        "prompt": st.text()
        | st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1, max_size=3),
    },
    # What other TRL datasets have: no answer, another kind of it, columns of their own.
    optional={
        "answer": st.text() | JSON,
        "domain": st.text() | st.none(),
        "info": st.dictionaries(st.text(), JSON, max_size=3).map(json.dumps) | JSON,
        "level": JSON,
        "question": st.text(),
        "solution": JSON,
    },
)
THEIRS = st.fixed_dictionaries(
    {
        "data_source": st.text(),
        "prompt": st.just(MESSAGES),
        "reward_model": st.fixed_dictionaries({"ground_truth": JSON, "style": st.text()}),
    },
    optional={"extra_info": st.dictionaries(st.text(), JSON, max_size=3), "ability": st.text()},
)


@given(st.lists(OURS, max_size=3), st.sampled_from(["prompt", "question"]), st.sampled_from(["answer", "solution"]))
def test_ours_to_verl_and_back(rows: list[dict[str, Any]], prompt: str, answer: str) -> None:
    rows = [row for row in rows if prompt in row]
    assert from_verl(to_verl(rows, prompt=prompt, answer=answer)) == rows


def test_a_problem_may_have_another_name() -> None:
    """GSM8K's columns; what is called `prompt` besides is kept, too."""
    row = {"question": "2 + 2 = ?", "answer": "Four.\n#### 4", "prompt": "Solve!"}
    (verl,) = to_verl([row], prompt="question", domain="gsm8k")
    assert verl["prompt"] == [{"role": "user", "content": "2 + 2 = ?"}]
    assert (verl["data_source"], verl["reward_model"]["ground_truth"]) == ("gsm8k", "Four.\n#### 4")
    assert from_verl([verl]) == [row]


def test_any_trl_dataset_has_a_verl_form() -> None:
    row = {"prompt": "2 + 2 = ?", "solution": 4, "info": {"terms": 2}}
    (verl,) = to_verl([row], answer="solution", domain="sums")
    assert (verl["data_source"], verl["reward_model"]["ground_truth"]) == ("sums", "4")
    assert info_of(verl["extra_info"]) == '{"terms": 2}'
    assert from_verl([verl]) == [row]
    row = {"prompt": "2 + 2 = ?", "info": '{"verl": "is a word here"}'}
    assert from_verl(to_verl([row])) == [row]


@given(st.lists(THEIRS, max_size=3))
def test_theirs_to_ours_and_back(rows: list[dict[str, Any]]) -> None:
    assert to_verl(from_verl(rows)) == rows


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_files_both_ways(tmp_path: Path, ending: str) -> None:
    ours, verl, back = (tmp_path / f"{name}.{ending}" for name in ("ours", "verl", "back"))
    ours.write_text(json.dumps(ROW) + "\n") if ending == "jsonl" else _parquet([ROW], ours)
    assert convert_file(ours, verl, "verl", reward="procedural") == 1
    assert convert_file(verl, back, "trl") == 1
    assert back.read_bytes() == ours.read_bytes()


def test_a_foreign_parquet_both_ways(tmp_path: Path) -> None:
    source, ours, back = (tmp_path / f"{name}.parquet" for name in ("source", "ours", "back"))
    _parquet([FOREIGN, {**FOREIGN, "ability": "logic", "agent_name": "tool_agent"}], source)
    convert_file(source, ours, "trl")
    convert_file(ours, back, "verl")
    import pyarrow.parquet as pq

    assert pq.read_table(back).to_pylist() == pq.read_table(source).to_pylist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda path: to_verl([{"answer": "1"}]), "row 0 has no prompt; expected the columns prompt, and as a rule"),
        (lambda path: to_verl([{**ROW, "picture": b"GIF"}]), "row 0 holds what a text row cannot"),
        (
            lambda path: to_verl([{"prompt": MESSAGES, "info": '{"verl": {"ability": "math"}}'}]),
            "row 0 has no domain; expected the columns prompt, domain and info, as a row that came from verl has them",
        ),
        (lambda path: from_verl([{"prompt": MESSAGES}]), "row 0 has no data_source, reward_model"),
        (lambda path: from_verl([{**FOREIGN, "images": [b"\x89PNG"]}]), "row 0 holds what a text row cannot"),
        (lambda path: convert_file(path / "none.parquet", path / "x.parquet", "verl"), "there is no file"),
        (lambda path: convert_file(path, path, "hdf5"), "to 'verl' or 'trl', got 'hdf5'"),
        (lambda path: convert_file(_parquet([ROW], path / "a.parquet"), path / "b.csv", "verl"), "neither .parquet"),
    ],
)
def test_refusals(tmp_path: Path, call: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        call(tmp_path)


def test_info_for_a_verifier() -> None:
    assert info_of(to_verl([ROW])[0]["extra_info"]) == ROW["info"]
    assert json.loads(info_of(FOREIGN["extra_info"]))["answer"] == "long text"


def _parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
