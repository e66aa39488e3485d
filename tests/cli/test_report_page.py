"""Completions and studies on the page: what is shown, what is cut, that the page stays small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import planted_run
from poise.report.completions import heat, shorten, shown_completions, text_of
from poise.report.data import read_run
from poise.report.studies import find_studies, read_study
from poise.runs.folder import RunFolder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "studies" / "value"
    (folder / "figures").mkdir(parents=True)
    record = {
        "kind": "value",
        "config": {"k": 8},
        "versions": {"torch": "2.13.0"},
        "reading": ["The probe is <b>better</b>."],
        "summary": [{"predictor": "probe", "mae": 0.125}, {"predictor": "constant", "mae": None}],
    }
    (folder / "study.json").write_text(json.dumps(record))
    Image.effect_noise((2000, 1000), 60).save(folder / "figures" / "layer_sweep.png")
    return folder


def test_tokens_are_shaded_by_their_entropy() -> None:
    said = heat([("a", 0.0), ("<b>", 1.0), ("c", 2.0), ("d", 9.0)], top=2.0, room=4000)
    assert said == (
        'a<i class="e4" title="1.00">&lt;b&gt;</i><i class="e9" title="2.00">c</i><i class="e9" title="9.00">d</i>'
    )


def test_what_is_too_long_loses_its_middle_and_says_so() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("0123456789", 8) == "012345\n… 2 characters left out …\n89"
    said = heat([(str(place % 10), 0.0) for place in range(100)], top=1.0, room=400)
    assert said == f"{'0123456789' * 3}\n<b>… 60 tokens left out …</b>\n{'0123456789'}"


def test_completions_are_groups_of_siblings_with_their_tokens(tmp_path: Path) -> None:
    run = planted_run.plant(tmp_path / "rising")
    [groups], top = shown_completions([read_run(run)])
    assert [group["step"] for group in groups[::4]] == [1, 7, 13, 18, 24, 30]
    assert top == 2.0
    assert all(len(group["rollouts"]) == 2 for group in groups)
    shaded, plain = groups[0], groups[1]
    assert 'title="2.00"' in shaded["rollouts"][0]["html"]
    assert shaded["rollouts"][0]["mean_nats"] == 1.0
    assert plain["rollouts"][0]["html"] == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert plain["rollouts"][0]["mean_nats"] is None
    assert [group["step"] for group in groups if group["open"]] == [7]  # the first that the probe had a say in


def test_messages_are_told_apart_by_their_roles() -> None:
    assert text_of([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "system: a\n\nuser: b"


def test_a_study_is_a_section_of_the_page(study: Path, poise: Callable) -> None:
    told = poise("report", str(study.parent), "--out", "page.html")
    assert told.status == 0, told.err
    assert told.out.splitlines() == [f"Value study in {study}", "report: page.html"]
    text = Path("page.html").read_text()
    assert "The probe is &lt;b&gt;better&lt;/b&gt;." in text
    assert '<td class="n">0.125</td>' in text
    assert text.count("data:image/png;base64,") == 1
    assert len(text) < (study / "figures" / "layer_sweep.png").stat().st_size / 2


def test_a_study_below_a_run_is_found_once(study: Path, tmp_path: Path) -> None:
    run = planted_run.plant(tmp_path / "rising")
    study.parent.rename(run.path / "lab")
    found = find_studies([run.path, run.path / "lab"])
    assert [each.path.name for each in found] == ["value"]


def test_tables_too_large_for_a_page_are_cut_with_a_note(study: Path) -> None:
    rows = [{"": index, **{f"column {n}": n for n in range(20)}} for index in range(100)]
    (study / "study.json").write_text(json.dumps({"kind": "other", "tables": {"all": rows}}))
    found = read_study(study)
    assert found.title == "Study: other"
    [table] = found.tables
    assert (len(table.columns), len(table.rows)) == (12, 60)
    assert found.notes == ["table 'all' has 100 rows of 21 columns; shown are the first of each"]


def test_figures_of_an_earlier_study_in_the_folder_are_not_shown(study: Path) -> None:
    shutil.copy(study / "figures" / "layer_sweep.png", study / "figures" / "old.png")
    assert set(read_study(study).figures) == {"layer_sweep", "old"}
    record = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**record, "figures": ["layer_sweep"]}))
    assert set(read_study(study).figures) == {"layer_sweep"}


WRONG = ["{", "[]", '{"summary": 3}', '{"summary": [1]}', '{"config": "abc"}', '{"versions": [1, 2]}', '{"reading": 5}']


@pytest.mark.parametrize("text", WRONG)
def test_a_study_that_cannot_be_read_is_a_sentence(text: str, study: Path, poise: Callable) -> None:
    (study / "study.json").write_text(text)
    told = poise("report", str(study))
    assert told.status == 1
    assert "study.json is not the record of a study" in told.err
    assert told.err.count("\n") == 1


def test_a_page_of_long_completions_stays_small(tmp_path: Path, poise: Callable) -> None:
    import pyarrow
    import pyarrow.parquet

    run = planted_run.plant(tmp_path / "long")
    for path in run.completions.iterdir():
        table = pyarrow.parquet.read_table(path)
        long = pyarrow.array(["word " * 20_000] * len(table))
        pyarrow.parquet.write_table(table.set_column(2, "completion", long), path)
    for path in (run.path / "tokens").iterdir():
        many = {"row": [0, 1], "tokens": [["word "] * 20_000] * 2, "nats": [[2.0] * 20_000] * 2}
        pyarrow.parquet.write_table(pyarrow.table(many), path)
    told = poise("report", str(run.path))
    assert told.status == 0, told.err
    assert RunFolder(run.path).report.stat().st_size < 1_500_000
