"""`poise lab value` and `poise lab variance` from command line to folder, at a minute size on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minute_study import MINUTE
from poise.cli import main
from poise.lab.settings import QUICK_VALUE, QUICK_VARIANCE
from poise.lab.study import number
from poise.report.studies import read_study

VALUE = ["lab", "value", "--quick", *MINUTE, "--held-out-prompts", "10", "--k", "12", "--row-counts", "16"]
VALUE += ["--windows", "10", "--alphas", "100", "--component-counts", "8"]
VARIANCE = ["lab", "variance", "--quick", *MINUTE, "--prompts", "8", "--oracle-rollouts", "3", "--pilot-prompts", "2"]


def rows_of(folder: Path) -> list[dict]:
    """Rows without what depends on the clock."""
    record = json.loads((folder / "study.json").read_text("utf-8"))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in record["rows"]]


def test_nothing_is_less_than_zero_by_its_sign_alone() -> None:
    assert number({"mean": -1e-6, "low": -0.02, "high": -0.0}) == "0.000 [-0.020, 0.000]"


def test_value_study_end_to_end_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*VALUE, "--out", str(tmp_path / "value")]
    assert main(command) == 0
    assert "Var p explained" in capsys.readouterr().out
    first = rows_of(tmp_path / "value")
    names = {row["name"] for row in first}
    assert {"constant", "sibling's reward (RLOO-2)", "critic (prompt)", "probe", "probe + sibling's outcome"} <= names
    assert {row["table"] for row in first} >= {"rivals", "features", "layer", "window", "rows", "head", "alpha"}
    assert {row["domain"] for row in first} == {"all", "chain_sum", "spell_backward"}
    constant = next(row for row in first if row["name"] == "constant")
    assert constant["metrics"]["pearson"]["mean"] is None
    assert {path.stem for path in (tmp_path / "value" / "figures").glob("*.png")} == {"rivals", "sweeps", "calibration"}
    assert (tmp_path / "value" / "predictions.parquet").exists()
    study = read_study(tmp_path / "value")
    assert study.kind == "value"
    assert len(study.reading) >= 4
    # Killed before its last chunk was written, the study goes on to the same numbers.
    sorted((tmp_path / "value" / "rollouts").glob("test-*.safetensors"))[-1].unlink()
    assert main(command) == 0
    assert rows_of(tmp_path / "value") == first


def test_variance_study_end_to_end_and_resumed(tmp_path: Path) -> None:
    command = [*VARIANCE, "--out", str(tmp_path / "variance")]
    assert main(command) == 0
    first = rows_of(tmp_path / "variance")
    by = {(row["name"], row["m"], row["metric"], row["domain"]): row for row in first if row["table"] == "variance"}
    assert by["RLOO", 2, "sum", "all"]["relative"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    for name, m in (
        ("no baseline", 1),
        ("probe", 2),
        ("self-choosing", 2),
        ("shrinkage", 8),
        ("critic", 1),
        ("oracle b*", 1),
    ):
        for metric in ("sum", "token-mean", "adam"):
            assert by[name, m, metric, "all"]["variance"]["mean"] > 0
    assert {row["name"] for row in first if row["table"] == "proxies"} == {"one_minus_pi", "residual", "nll", "length"}
    assert {row["m"] for row in first if row["table"] == "decomposition"} == {1, 2, 4, 8}
    assert {path.stem for path in (tmp_path / "variance" / "figures").glob("*.png")} == {
        "methods",
        "allocations",
        "decomposition",
        "proxies",
    }
    assert read_study(tmp_path / "variance").tables
    (tmp_path / "variance" / "gradients" / "prompt-000003.safetensors").unlink()
    assert main(command) == 0
    assert rows_of(tmp_path / "variance") == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lab"], "usage: poise lab"),
        (["lab", "valu"], "unknown command 'valu'; did you mean 'value'"),
        (["lab", "value", "--k", "8"], "--k must be at least 10, got 8"),
        (["lab", "value", "--temperature", "0"], "--temperature must be above 0"),
        (["lab", "value", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["lab", "value", "--row-counts", "16", "0"], "--row-counts must be at least 1, got 0"),
        (["lab", "value", "--component-counts", "4", "-2"], "--component-counts must be at least 1, or -1 for the"),
        (["lab", "value", "--alphas", "0"], "--alphas must be above 0, and finite, got 0"),
        (["lab", "value", "--critic-rates", "-1"], "--critic-rates must be above 0, and finite, got -1"),
        (["lab", "variance", "--score-batch", "0"], "--score-batch must be at least 1, got 0"),
        (["lab", "value", "--task", "no-such"], "no task is called 'no-such'"),
        (["lab", "value", "--rows", "8"], "unknown flag --rows"),
        (["lab", "value", "--prompt-layer", "9"], "layer 9.0 names no block"),
        (["lab", "variance", "--rollouts", "1"], "--rollouts must be at least 2"),
        (["lab", "variance", "--model", "/no/such"], "no model '/no/such': there is no such folder"),
        (["lab", "variance", "--critic-rates"], "--critic-rates needs at least one"),
    ],
)
def test_wrong_input_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--train-prompts", "4", "--out", str(tmp_path / "x")] if len(words) > 2 else []
    assert main([*words[:2], *small, *words[2:]]) != 0
    captured = capsys.readouterr()
    assert said in (captured.out if words == ["lab"] else captured.err)
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 1


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "settings.json").write_text('{"k": 3}')
    (tmp_path / "rollouts" / "train-000000.safetensors").touch()
    assert main([*VALUE, "--out", str(tmp_path)]) == 1
    assert "k was 3 and is 12" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["value", "variance", "compare"])
def test_documented_flags_exist(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "lab.md").read_text("utf-8")
    commands = [line.split(" #")[0] for line in document.splitlines() if line.startswith(f"poise lab {study}")]
    assert commands
    assert main(["lab", study, "--help"]) == 0
    helped = capsys.readouterr().out
    assert all(word in helped for line in commands for word in line.split() if word.startswith("--"))


def test_quick_settings_are_smaller() -> None:
    assert QUICK_VALUE.held_out_prompts < type(QUICK_VALUE)().held_out_prompts
    assert QUICK_VARIANCE.prompts < type(QUICK_VARIANCE)().prompts
