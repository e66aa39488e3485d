"""The word-problem recipe on problems of MAWPS's schema: its prompts, its reward and its adapters are what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from poise.cli import main
from poise.cli.evaluate import names_task, with_defaults_of
from poise.eval.command import EvalConfig
from poise.lab.settings import ValueSettings
from poise.runs.configfile import read_settings
from poise.runs.folder import RunFolder
from poise.runs.policy import lora
from poise.runs.prompts import reward_names, task_options
from poise.runs.settings import TrainSettings
from poise.tasks import load_task, named_options

CONFIG = Path(__file__).parents[2] / "recipes" / "smollm2-word-problems" / "config.toml"
# SmolLM2-135M has thirty blocks.
DEPTH = 30


@pytest.fixture(scope="module")
def settings() -> TrainSettings:
    return read_settings(CONFIG, TrainSettings())


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems that share no run of thirteen words: such copies of held-out ones would leave the training split."""
    names = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo"]
    rows = [
        {"input": f"{name} has {8 + number} {name} pens and loses {number} of them. How many?", "target": 8.0}
        for name in names
        for number in (1, 2, 3)
    ]
    file = tmp_path_factory.mktemp("mawps") / "mawps_singleop.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_prompt_shows_two_examples_and_asks_for_a_third(settings: TrainSettings, problems: Path) -> None:
    options = {**task_options(settings.data), "path": str(problems)}
    rows = load_task(settings.data.task or "", "train", **options)
    assert len(rows) > 0
    for prompt, answer in zip(rows["prompt"], rows["answer"], strict=True):
        assert prompt.startswith("Q: Tom had 7 eggs and ate 3. How many are left?\nA: 7 - 3\nQ: ")
        assert prompt.count("\nA:") == 3
        assert prompt.endswith(" of them. How many?\nA:")
        assert answer == "8"


def test_a_run_is_evaluated_on_prompts_of_the_same_form(settings: TrainSettings, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make()
    run.write_settings(settings)
    evaluated = with_defaults_of(run, EvalConfig())
    assert "chat=false" in evaluated.task_options
    assert named_options("task", evaluated.task_options) == task_options(settings.data)
    assert (evaluated.task, evaluated.reward, evaluated.max_new_tokens) == ("mawps-singleop", ("arithmetic",), 12)


def test_another_task_comes_with_its_own_options_and_reward(settings: TrainSettings, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make()
    run.write_settings(settings)
    evaluated = with_defaults_of(run, EvalConfig(task="gsm8k"), another_task=True)
    assert (evaluated.task, evaluated.task_options, evaluated.reward) == ("gsm8k", (), ())
    assert evaluated.max_new_tokens == 12


def test_a_file_names_the_task_that_is_the_default_too(tmp_path: Path) -> None:
    config = tmp_path / "eval.toml"
    config.write_text('task = "tiny"')
    assert names_task(str(config), [])
    config.write_text("k = 2")
    assert not names_task(str(config), ["--k", "3"])
    assert names_task(None, ["--task=tiny"])


def test_a_study_is_about_the_task_that_a_run_trained_on_and_an_evaluation_about_what_it_held_out(
    settings: TrainSettings, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.make()
    run.write_settings(replace(settings, data=replace(settings.data, eval_task="aime24")))
    assert with_defaults_of(run, ValueSettings(), held_out=False).task == "mawps-singleop"
    evaluated = with_defaults_of(run, EvalConfig())
    assert (evaluated.task, evaluated.task_options) == ("aime24", ())


def test_an_expression_is_judged(settings: TrainSettings) -> None:
    assert reward_names(settings.reward, settings.data) == ("arithmetic",)


def test_the_adapters_lie_in_the_upper_third(settings: TrainSettings) -> None:
    adapters = lora(settings.model, DEPTH)
    assert adapters is not None
    assert adapters.layers_to_transform == list(range(20, 30))
    assert lora(replace(settings.model, lora_rank=0), DEPTH) is None


def test_without_the_model_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(CONFIG), "--dry-run"]) != 0
    assert "models/smollm2" in capsys.readouterr().err
