"""`poise doctor` and `poise data inspect`: what they find on a good setup and on broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from poise.cli.checks import environment


def found(out: str) -> dict[str, str]:
    """Level and finding by what was checked."""
    lines = [line for line in out.splitlines() if ": " in line]
    return {line[9:].partition(": ")[0]: f"{line[:9].strip()} {line[9:].partition(': ')[2]}" for line in lines}


def test_the_environment_alone(poise: Callable) -> None:
    told = poise("doctor")
    assert told.status == 0, told.out
    checks = found(told.out)
    assert checks["python"].startswith("ok 3.1")
    engine = checks.get("trl") or checks["extra trl"]  # a dependency of old installations, an extra of new ones
    assert engine.startswith("ok")
    assert "1.16" in engine
    assert checks["trl's inner workings"] == "ok as PoiseTrainer expects them"
    assert "model" not in checks


def test_a_whole_run(poise: Callable, workplace) -> None:
    told = poise("doctor", *workplace.flags)
    assert told.status == 0, told.out
    checks = found(told.out)
    assert checks["prompt layer"] == "ok 0.5 is block 1 of 2"
    assert "hidden size 32" in checks["model"]
    assert checks["end of reasoning"] == "ok '</think>' is token id 5"
    assert checks["chat template"].startswith("ok does not open <think>")
    assert checks["end of sequence"] == "ok eos '<eos>' (1), pad '<pad>' (0)"
    assert "columns prompt, answer, domain, info, target" in checks["prompts"]
    assert checks[f"reward {workplace.folder}/rewards.py:digits"].startswith("ok 0 for an empty completion, 1 for ")


@pytest.mark.parametrize(
    ("flags", "what", "expected"),
    [
        (["--prompt-layer", "9"], "layers", "error layer 9.0 names no block"),
        (["--model", "no/such"], "model and plan", "error no model 'no/such'"),
        (["--micro-batch", "5"], "model and plan", "error --micro-batch 5 does not divide"),
        (
            ["--reward", "{w}/rewards.py:boom"],
            "reward {w}/rewards.py:boom",
            "error fails on the first row: RuntimeError",
        ),
        (["--reward", "exakt"], "prompts and rewards", "error no reward is called 'exakt'"),
    ],
)
def test_errors_set_the_exit_status(flags: list[str], what: str, expected: str, poise: Callable, workplace) -> None:
    flags = [flag.format(w=workplace.folder) for flag in flags]
    told = poise("doctor", *workplace.flags, *flags)
    assert told.status == 1
    assert found(told.out)[what.format(w=workplace.folder)].startswith(expected)
    assert told.err == ""


def test_warnings_do_not(poise: Callable, workplace) -> None:
    told = poise("doctor", *workplace.flags, "--max-completion-tokens", "5000", "--max-prompt-tokens", "4")
    assert told.status == 0
    checks = found(told.out)
    assert checks["context"].startswith(
        "warning prompts up to 4 tokens, completions up to 5000: more than the model's 256"
    )
    assert "training prompts exceed 4 tokens, and were dropped -> raise --max-prompt-tokens" in told.out


def test_worked_solutions_as_ground_truths_are_seen(poise: Callable, workplace, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "answer": f"One more than {n}.\n{n + 1}" if n else "1"} for n in range(60)]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = poise("doctor", *workplace.flags, "--data", str(tmp_path / "solved.jsonl"), "--reward", "exact")
    assert " rows have several lines -> keep the final answer alone" in told.out


def test_a_template_that_opens_the_reasoning_is_seen(poise: Callable, workplace, tmp_path: Path) -> None:
    thinker = tmp_path / "thinker"
    shutil.copytree(workplace.folder / "policy", thinker)
    template = next(path for path in (thinker / "chat_template.jinja",) if path.exists())
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    told = poise("doctor", *workplace.flags, "--model", str(thinker), "--end-of-reasoning", "done thinking")
    checks = found(told.out)
    assert checks["chat template"] == "ok opens <think> itself: the response starts inside the reasoning"
    assert checks["end of reasoning"].startswith("warning 'done thinking' is no token of its own but ids [")


def test_a_wrong_version_is_an_error_with_its_fix(poise: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment._installed
    monkeypatch.setattr(environment, "_installed", lambda name: "0.29.0" if name == "trl" else real(name))
    told = poise("doctor")
    assert told.status == 1
    (line,) = [line for line in told.out.splitlines() if "0.29.0 is outside the tested range" in line]
    assert line.startswith("error ")
    assert "-> pip install '" in line


def test_inspect_shows_rows_as_the_policy_sees_them(poise: Callable, workplace, tmp_path: Path) -> None:
    rows = [{"q": [{"role": "user", "content": f"{n}+1="}], "a": n + 1, "topic": "sums"} for n in range(40)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--task-options", "prompt=q", "answer=a", "domain=topic", "held_out=0.25"]
    told = poise(
        "data", "inspect", "--task", "chat.jsonl", *options, "--model", f"{workplace.folder}/policy", "--rows", "1"
    )
    assert told.status == 0, told.err
    assert "domains: sums" in told.out
    assert "prompts are messages" in told.out
    assert "user: " in told.out
    assert "assistant: " in told.out
    assert "[ground truth]" in told.out
    assert "answers are no text in the data, and rewards get them as text: " in told.out
    assert "prompt tokens: shortest" in told.out
