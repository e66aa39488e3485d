"""Files that survive a kill: torn lines, atomic replacement, values that JSON cannot say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from poise.errors import ConfigError
from poise.runs.journal import Journal, finite, replace_text


def test_a_line_torn_by_a_kill_is_ignored_and_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"step": 1})
    journal.append({"step": 2})
    with journal.path.open("a") as file:
        file.write('{"step": 3, "rew')
    assert journal.read() == [{"step": 1}, {"step": 2}]
    assert journal.keep(lambda record: record["step"] <= 1) == 1
    assert journal.path.read_text() == '{"step": 1}\n'
    journal.append({"step": 2})
    assert [record["step"] for record in journal.read()] == [1, 2]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    records = [{"domain/a\u2028b\u0085c": 0.5}, {"step": 1}]
    for record in records:
        journal.append(record)
    assert journal.read() == records


def test_a_broken_line_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .*j\.jsonl is damaged"):
        Journal(path).read()


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"nan": math.nan, "inf": -math.inf, "np": np.float32(0.5), "int": np.int64(3), "deep": [math.nan]})
    assert json.loads(journal.path.read_text(), parse_constant=pytest.fail) == {
        "nan": None,
        "inf": None,
        "np": 0.5,
        "int": 3,
        "deep": [None],
    }
    assert finite(True) is True


def test_replacing_leaves_the_old_text_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    replace_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert path.read_text() == "old"
