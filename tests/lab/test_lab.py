"""`poise lab value` and `poise lab variance` from command line to folder, at a minute size on the bundled model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minute_study import MINUTE
from poise.cli import main
from poise.lab.metrics import Targets
from poise.lab.policy import Prompts
from poise.lab.settings import QUICK_VALUE, QUICK_VARIANCE, ValueSettings, described
from poise.lab.study import number
from poise.lab.value_page import _against_the_probe, reading, reliability, rivals_figure
from poise.report.studies import read_study
from poise.rewards import Verdict

VALUE = ["lab", "value", "--quick", *MINUTE, "--held-out-prompts", "20", "--k", "12", "--row-counts", "16"]
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
        (["lab", "variance", "--oracle-rollouts", "1"], "--oracle-rollouts must be at least 2"),
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
    said = capsys.readouterr().err
    assert "k was 3 and is 12" in said
    assert "prompts_hash was None and is '" in said  # a folder made before prompts were looked at


def test_cached_parts_depend_on_what_was_judged_and_how(tmp_path: Path) -> None:
    judge, row = tmp_path / "judge.py", {"prompt": "1+1=", "answer": "2", "info": {"level": 1}}
    judge.write_text("def judge(text, row): return 1.0")
    settings = ValueSettings(task="mine.jsonl", reward=(f"{judge}:judge", "exact"), reward_weights=(1.0, 0.1))
    other = {**row, "answer": "3"}

    def of(train: list, held_out: list, weight: float = 0.1) -> dict:
        chosen = replace(settings, reward_weights=(1.0, weight))
        return described(chosen, Prompts(train, held_out, lambda *_: Verdict(1.0)).fingerprint, ())

    known = of([row], [other])
    assert of([dict(reversed(row.items()))], [other]) == known
    assert of([row], [other], 5.0) != known
    assert all(of([row | change], [other]) != known for change in ({"prompt": "2"}, {"answer": "3"}, {"info": {}}))
    assert of([other], [row]) != known
    judge.write_text("def judge(text, row): return 0.0")
    assert of([row], [other]) != known


@pytest.mark.parametrize("study", ["value", "variance", "compare"])
def test_documented_flags_exist(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "lab.md").read_text("utf-8")
    commands = [line.split(" #")[0] for line in document.splitlines() if line.startswith(f"poise lab {study}")]
    assert commands
    assert main(["lab", study, "--help"]) == 0
    helped = capsys.readouterr().out
    assert all(word in helped for line in commands for word in line.split() if word.startswith("--"))


def test_what_is_better_than_the_probe_is_counted_among_all_that_was_tried() -> None:
    """Three methods beside the probe, one of them under two names."""

    def row(name: str, gap: float) -> dict:
        return {"name": name, "domain": "all", "mse_true_minus_probe": {"mean": gap, "low": gap - 1, "high": gap + 1}}

    rows = [row("probe", 0.0), row("a", -0.5), row("b", 2.0), row("c", -3.0), row("c again", -3.0), row("ridge", 0.0)]
    [said] = _against_the_probe(rows)
    assert "paired over prompts: c (-3.0000 [-4.0000, -2.0000]). 3 variants and rivals were tried, and 1 were" in said
    assert said.endswith("chance alone would make it about 0.1.")
    assert _against_the_probe(rows[:3])[0].endswith("beyond its interval; 2 variants and rivals were tried.")


def test_rewards_that_are_all_the_same_leave_nothing_to_read() -> None:
    targets = Targets.of(torch.zeros(20, 4))
    with np.errstate(all="raise"):
        assert np.isnan(reliability(targets))
    said = "All held-out rollouts earned 0: there is nothing to predict. Check the reward, the model, and the length "
    assert reading([], targets) == [said + "limit (--max-new-tokens)."]


def test_any_number_of_domains_of_any_name_can_be_drawn(tmp_path: Path) -> None:
    explained = {"explained": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    domains = ["all", "_hidden", *(f"${number}^" for number in range(9))]
    figure = rivals_figure(
        [{"table": "rivals", "name": "probe", "domain": domain, "metrics": explained} for domain in domains]
    )
    figure.savefig(tmp_path / "rivals.png", dpi=20)
    assert len(figure.axes[0].get_legend().get_texts()) == len(domains)


def test_quick_settings_are_smaller() -> None:
    assert QUICK_VALUE.held_out_prompts < type(QUICK_VALUE)().held_out_prompts
    assert QUICK_VARIANCE.prompts < type(QUICK_VARIANCE)().prompts
