"""`poise data convert`: files to verl's form and back, a task straight into it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from poise.cli.convert import ConvertSettings
from poise.cli.parse import parse_flags
from poise.tasks import reward_of


def test_a_file_there_and_back(poise: Callable, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1 = ?", "solution": n + 1, "level": None if n else "easy"} for n in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    there = ["sums.jsonl", "verl.parquet", "--answer", "solution", "--domain", "sums", "--reward", "exact"]
    told = poise("data", "convert", *there)
    assert (told.status, told.out) == (0, "3 rows of sums.jsonl -> verl.parquet, in the form of verl\n"), told.err
    written = pq.read_table(tmp_path / "verl.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in written] == ["1", "2", "3"]
    assert [(row["data_source"], row["extra_info"]["reward"]) for row in written] == [("sums", "exact")] * 3
    assert poise("data", "convert", "verl.parquet", "back.jsonl", "--to", "trl").status == 0
    assert (tmp_path / "back.jsonl").read_text() == (tmp_path / "sums.jsonl").read_text()


def test_a_task_becomes_a_verl_file(poise: Callable, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    told = poise("data", "convert", "chain_sum", "test.parquet", "--split", "test", "--size", "4", "--data-seed", "3")
    assert told.status == 0, told.err
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2, 3]
    assert {(row["data_source"], row["extra_info"]["reward"]) for row in rows} == {("chain_sum", "procedural")}
    assert {row["extra_info"]["split"] for row in rows} == {"test"}


def test_a_task_of_local_files_takes_their_place(poise: Callable, tmp_path: Path) -> None:
    """GSM8K as published: the ground truth is what follows the hashes, not the worked solution before it."""
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}) + "\n")
    told = poise("data", "convert", "gsm8k", "train.parquet", "--to", "verl", "--task-options", "path=train.jsonl")
    assert told.status == 0, told.err
    (row,) = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert (row["reward_model"]["ground_truth"], row["extra_info"]["reward"]) == ("4", "math")


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["only.jsonl"], 2, "needs SOURCE and TARGET before its options, got 1 names: only.jsonl"),
        (["a.jsonl", "b.parquet", "--too", "verl"], 2, "unknown flag --too"),
        (["a.jsonl", "b.parquet", "--to", "hdf5"], 2, "--to"),
        (["none.jsonl", "b.parquet"], 1, "there is no file none.jsonl"),
        (["torn.jsonl", "b.parquet"], 1, "line 1 of torn.jsonl is not JSON"),
        (["chain_sums", "b.parquet"], 1, "chain_sum"),
        (["chain_sum", "b.parquet", "--to", "trl"], 2, "a task already has our form"),
        (["torn.jsonl", "b.parquet", "--task-options", "chat=true"], 2, "options of a task, and torn.jsonl is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(poise: Callable, words: list[str], status: int, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    told = poise("data", "convert", *words)
    assert told.status == status, told
    assert sentence in told.err
    assert "Traceback" not in told.err


ROOT = Path(__file__).parents[2]
WRITTEN = [
    line.split(" #")[0].split()[3:]
    for page in ("docs/verl.md", "recipes/verl-qwen3-4b/README.md")
    for line in (ROOT / page).read_text().splitlines()
    if line.startswith("poise data convert ")
]


@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_the_commands_in_the_documentation_are_understood(words: list[str]) -> None:
    source, target, *flags = words
    parse_flags(ConvertSettings(), flags, "poise data convert")
    assert target.endswith(".parquet")
    assert Path(source).suffix in (".parquet", ".jsonl") or reward_of(source) == "math"


def test_a_line_separator_within_a_text_ends_no_row(poise: Callable, tmp_path: Path) -> None:
    text = json.dumps({"prompt": "one\u2028two\x85three", "answer": "3"}, ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    assert poise("data", "convert", "a.jsonl", "there.jsonl").status == 0
    assert poise("data", "convert", "there.jsonl", "back.jsonl", "--to", "trl").status == 0
    assert (tmp_path / "back.jsonl").read_text("utf-8") == text


def test_a_table_keeps_all_its_rows(poise: Callable, tmp_path: Path) -> None:
    """A .csv file is a file, and no task with a held-out split."""
    (tmp_path / "a.csv").write_text("prompt,answer\n" + "".join(f"{n}+1=,{n + 1}\n" for n in range(40)))
    told = poise("data", "convert", "a.csv", "a.parquet")
    assert (told.status, told.out) == (0, "40 rows of a.csv -> a.parquet, in the form of verl\n"), told.err
