"""Settings: defaults < TOML < flags; unknown keys name the nearest one; what is written is read back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.cli.parse import UsageError, flags_of, parse_flags, parse_settings
from poise.errors import ConfigError
from poise.runs.configfile import differences, overlay, read_settings, to_toml
from poise.runs.settings import DataSettings, RunSettings, TrainSettings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "[optimisation]\nsteps = 7\nlearning_rate = 1\n[run]\nseed = 3\n")
    settings = parse_settings(TrainSettings(), ["--steps", "9", "--model", "x/y"], "poise train", path)
    assert settings.optimisation.steps == 9  # flag
    assert settings.optimisation.learning_rate == 1.0  # file; an integer passes for a float
    assert settings.run.seed == 3  # file
    assert settings.optimisation.prompts_per_step == 32  # default
    assert settings.model.model == "x/y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optimisation]\nlerning_rate = 1e-5\n", "did you mean 'optimisation.learning_rate'"),
        ("[optimization]\nsteps = 1\n", "did you mean 'optimisation'"),
        ("[run]\nlearning_rate = 1e-5\n", "did you mean 'optimisation.learning_rate'"),  # right key, wrong section
        ("steps = 3\n", "did you mean 'optimisation.steps'"),
        ("[optimisation]\nsteps = 1.5\n", "optimisation.steps must be a whole number, got 1.5"),
        ("[optimisation]\nsteps = true\n", "optimisation.steps must be a whole number, got True"),
        ("[optimisation]\nsteps = '4'\n", "optimisation.steps must be a whole number, got '4'"),
        ("[poise]\nbaseline = 'oracle'\n", "poise.baseline must be one of 'probe', 'prompt-probe'"),
        ("[reward]\nreward = [1]\n", "reward.reward must be text, got 1"),
        ("run = 3\n", "'run' is a section, write [run]"),
        ("[run\n", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(write(tmp_path, text), TrainSettings())
    assert expected in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read_settings(tmp_path / "none.toml", TrainSettings())
    with pytest.raises(ConfigError, match="is a folder"):
        read_settings(tmp_path, TrainSettings())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lerning-rate", "1"], "unknown flag --lerning-rate; did you mean '--learning-rate'?"),
        (["--steps", "many"], "--steps"),
        (["--baseline", "oracle"], "'oracle'"),
        (["--steps"], "--steps"),
        (["stray"], "stray"),
        (["--deterministic", "--no-such"], "unknown flag --no-such"),
    ],
)
def test_wrong_flags_are_one_sentence(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_flags(TrainSettings(), words, "poise train")
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "│" not in str(refused.value)


def test_flags_may_be_written_with_underscores_and_equals_signs() -> None:
    settings = parse_flags(TrainSettings(), ["--prompts_per_step=16", "--deterministic"], "poise train")
    assert settings.optimisation.prompts_per_step == 16
    assert settings.run.deterministic is True


def test_flag_names_are_unique_across_sections() -> None:
    flags = flags_of(TrainSettings)
    assert len(flags) == len(set(flags))


def test_only_settings_that_default_to_none_may_be_none() -> None:
    """TOML has no None: a key that is left out must mean None, or a saved None would be read back as the default."""
    for section in fields(TrainSettings()):
        for name, hint in get_type_hints(type(getattr(TrainSettings(), section.name))).items():
            if type(None) in get_args(hint):
                assert getattr(getattr(TrainSettings(), section.name), name) is None, name


def test_every_setting_has_help() -> None:
    source = Path(__import__("poise.runs.settings", fromlist=["x"]).__file__).read_text().splitlines()
    for number, line in enumerate(source):
        if line.startswith("    ") and ": " in line and " = " in line and "field(" not in line and '"""' not in line:
            assert source[number + 1].strip().startswith('"""'), line


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)


@given(
    task=st.none() | text,
    reward=st.lists(text, max_size=3),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(-(2**63), 2**63 - 1),
    deterministic=st.booleans(),
)
def test_written_settings_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    task: str | None,
    reward: list[str],
    rate: float,
    seed: int,
    deterministic: bool,
) -> None:
    base = TrainSettings()
    settings = replace(
        base,
        data=DataSettings(task=task),
        reward=replace(base.reward, reward=tuple(reward)),
        optimisation=replace(base.optimisation, learning_rate=rate),
        run=RunSettings(seed=seed, deterministic=deterministic),
    )
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert read_settings(path, TrainSettings()) == settings


def test_differences_name_every_changed_key() -> None:
    changed = overlay(TrainSettings(), {"run": {"seed": 1}, "data": {"task": "x"}}, "test")
    assert differences(TrainSettings(), changed) == {"data.task": (None, "x"), "run.seed": (0, 1)}
    assert is_dataclass(changed)


def test_the_home_folder_is_found_without_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = write(tmp_path, '[run]\nout = "~/runs/a"\n[data]\ntask_options = ["path=~/data", "about=~3"]\n')
    settings = parse_settings(TrainSettings(), ["--data=~/d.jsonl", "--model", "~/m"], "poise train", path)
    assert (settings.run.out, settings.data.data, settings.model.model) == (
        "/home/me/runs/a",
        "/home/me/d.jsonl",
        "/home/me/m",
    )
    assert settings.data.task_options == ("path=/home/me/data", "about=~3")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--num-generations", "--rollouts-per-prompt"),
        ("--lr", "--learning-rate"),
        ("--max_new_tokens", "--max-completion-tokens"),
        ("--beta", "--kl-weight"),
    ],
)
def test_what_trl_calls_a_setting_is_understood(flag: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown flag {flag}; did you mean '{meant}'"):
        parse_flags(TrainSettings(), [flag, "8"], "poise train")


def test_what_trl_calls_a_setting_is_understood_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'optimisation\.rollouts_per_prompt'"):
        read_settings(write(tmp_path, "[optimisation]\nnum_generations = 8\n"), TrainSettings())
