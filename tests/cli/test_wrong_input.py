"""Wrong input, everywhere: one sentence on standard error, a non-zero exit, no traceback, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poise.cli import COMMANDS


def words_of(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


MIXED = "{w}/rewards.py:mixed"
# (words of poise train, what the sentence says). {w} is the workplace's folder, {t} an empty one.
TRAIN = [
    (["--config", "none.toml"], "there is no configuration file none.toml"),
    (["--config"], "--config needs a value"),
    (["--resume", "yes"], "--resume takes the word auto, got 'yes'"),
    (["--stepz", "3"], "unknown flag --stepz; did you mean '--steps'?"),
    (["--model", "no/such-model"], "no model 'no/such-model'"),
    (["--model", "{t}"], "holds no model (no config.json)"),
    (["--data", "{w}/none.jsonl"], "none.jsonl"),
    (["--task", "chain_smu", "--data", "{w}/sums.jsonl"], "both name the prompts"),
    (["--prompt-column", "promt"], "'promt'"),
    (["--task-options", "max_terms"], "'max_terms' is not of the form name=value"),
    (["--task-options", "no_such=1"], "no option 'no_such'"),
    (["--reward", "exakt"], "no reward is called 'exakt'"),
    (["--reward", "{w}/none.py:f"], "none.py"),
    (["--reward", "{w}/rewards.py:none"], "none"),
    (["--reward", "{w}/rewards.py:odd"], "(left, middle, right)"),
    (["--reward", "{w}/rewards.py:needs"], "asks for a column 'targte', which the data lacks; did you mean 'target'?"),
    (["--reward", "{w}/rewards.py:boom"], "fails on the first row: RuntimeError: the judge is out"),
    (["--reward", "{w}/rewards.py:wrong"], "must return a list with one number or None per rollout, got 1.0"),
    (["--reward-weights", "1", "2"], "2 reward weights for 1 rewards"),
    (["--prompt-layer", "9"], "layer 9.0 names no block of this model"),
    (["--probe-clip", "1"], "probe_clip takes two numbers"),
    (["--scale-rewards", "group"], "which biases the gradient"),
    (["--cold-start-rows", "9000"], "cold_start_rows=9000 must lie between 1 and"),
    (["--prompts-per-step", "1000"], "fewer than the 1000 of one step"),
    (["--max-prompt-tokens", "1"], "no training prompt has at most 1 tokens"),
    (["--micro-batch", "5"], "--micro-batch 5 does not divide"),
    (["--track-every", "2", "--track-samples", "1"], "--track-samples must be at least 2, got 1"),
    (["--report-to", "trackio"], "--report-to trackio needs the package trackio"),
    (["--lora-rank", "-1"], "--lora-rank must be 0 (no adapters) or more, got -1"),
    (["--lora-rank", "2", "--lora-targets", "nonsense"], "nonsense is no layer of this model; known are down_proj"),
    (
        ["--lora-rank", "2", "--lora-targets", "q_proj", "v_prj"],
        "v_prj is no layer of this model; did you mean 'v_proj'?",
    ),
    (["--lora-rank", "2", "--baseline", "critic"], "trains a whole copy of the policy: leave out --lora-rank"),
    (["--attention", "flash_attention_2"], "--attention flash_attention_2 needs the package flash_attn"),
    (["--reward", "{w}/rewards.py:takes"], "takes (completion, answer): the second argument is the whole row; name it"),
    (["--data", "{w}/wrong/unnamed.jsonl", "--eval-size", "0", "--reward", "number"], "no row has a ground truth,"),
    (["--out", "{w}/sums.jsonl"], "is not an empty folder"),
    (["--out", "/proc/nowhere/run"], "the run folder /proc/nowhere/run cannot be made: No such file or directory"),
    (["--learning-rate", "inf"], "--learning-rate must be at least 0, and finite, got inf"),
    (["--adam-beta2", "1.5"], "--adam-beta2 must be between 0 and 1, got 1.5"),
    (["--weight-decay", "nan"], "--weight-decay must be at least 0, and finite, got nan"),
    (["--max-grad-norm", "-1"], "--max-grad-norm must be at least 0, got -1.0"),
    (["--lora-dropout", "2"], "--lora-dropout must be between 0 and 1, got 2.0"),
    (["--reward-weights", "nan"], "--reward-weights must be finite numbers, got nan"),
    (["--seed", "-1"], "--seed must be between 0 and 4294967295, got -1"),
    (["--seed", "99999999999999"], "--seed must be between 0 and 4294967295, got 99999999999999"),
    (["--steps", "99999999999999999999"], "--steps must be between 1 and 1000000000, got 99999999999999999999"),
    (["--dtype", "float8"], "invalid choice 'float8' for argument '--dtype'. Expected one of ('auto', 'float32'"),
    (["--dual-clip", "1.2"], "use a larger delta, such as 10, or None"),
    (["--vllm"], "--vllm needs the package vllm"),
    (["--config", "{w}/wrong/binary.toml"], "binary.toml is not valid TOML"),
    (["--data", "{w}/wrong/no_prompt.jsonl"], "record 1 has no field 'prompt'; known are question, answer"),
    (["--data", "{w}/wrong/list.json"], "record 1 of {w}/wrong/list.json is 1, not an object with named fields"),
    (["--data", "{w}/wrong/none.jsonl"], "the field 'prompt' of record 1 is None; a prompt is a text, or a list of"),
    (["--data", "{w}/wrong/messages.jsonl"], "of record 1 is [{'role': 'user'}]; a prompt is a text, or a list of"),
    (["--data", "{w}/wrong/torn.parquet"], "torn.parquet cannot be read: "),
    (["--data", "{w}/wrong/binary.csv"], "binary.csv cannot be read: "),
    (["--model", "{w}/torn_weights"], "the weights in {w}/torn_weights/model.safetensors cannot be read"),
    (["--model", "{w}/no_weights"], "no_weights holds no weights (no model.safetensors)"),
    (["--model", "{w}/no_tokenizer"], "knows no token but special ones; are its files (tokenizer.json) there?"),
    (["--model", "{w}/torn_config"], "the model in {w}/torn_config cannot be loaded: "),
    (["--reward", "{w}/rewards.py:short"], "short returned 1 rewards for 16 rollouts; it must return one each"),
    (
        ["--reward", "{w}/rewards.py:a_dict"],
        "a_dict fails on the first row: TypeError: return a number or a Verdict, not {'score': 1.0}",
    ),
    (["--reward", "{w}/rewards.py:misses"], "misses fails on the first row: KeyError: 'gold'"),
    (["--reward", "{w}/rewards.py:ids"], "asks for completion_ids, which evaluations do not have; give that parameter"),
    (
        ["--data", "{w}/wrong/mixed.jsonl", "--task-options", "held_out=0.01", "--eval-size", "0", "--reward", MIXED],
        "the column 'mixed', which the reward {w}/rewards.py:mixed asks for, holds values of several types",
    ),
    (
        ["--data", "{w}/wrong/chat.jsonl", "--eval-size", "0", "--model", "{w}/no_template"],
        "the prompts are messages, and the tokenizer has no chat template; use a chat model",
    ),
    (
        ["--data", "{w}/wrong/chat.jsonl", "--eval-size", "0", "--model", "{w}/no_system"],
        "'content': '1+1='}]: no system messages",
    ),
    (["{w}/sums.jsonl"], "Unrecognized options: {w}/sums.jsonl; did you mean --data {w}/sums.jsonl?"),
    (["--gradient-checkpointing", "True"], "takes no value: --name, or --no-name (see poise train --help)"),
    (["--probe-clip", "0,1"], "['0,1']; several values are parted by spaces"),
    (["--resume"], "--resume needs a value, e.g. --resume auto"),
    (["--reward", "judge.py"], "judge.py is a file; name the function in it, as judge.py:FUNCTION"),
    (["--data", "{t}"], "is a folder; name a file in it"),
    (["--data", "{w}/wrong/notes.txt"], "notes.txt is of no known kind; use .jsonl, .json, .parquet or .csv"),
    (["--data", "{w}/wrong/pretty.json"], "a .json file holds a list of records, or one record a line"),
    (["--data", "{w}/wrong/chat.jsonl"], "held_out=0.1 leaves none for the split 'test'; give more problems"),
    (
        ["--model", "{w}/learned_positions", "--max-completion-tokens", "12"],
        "completions of up to 12 are longer than the model's context of 16; lower --m",
    ),
    (["--data", "https://somewhere.org/sums.jsonl"], "is an address; download it, or name a hub dataset as owner/name"),
    (["--model", "https://somewhere.org/o/m"], "there is no such folder; a model on the hub is called owner/name"),
    (["--revision", "main"], "--revision main is one of a hub model, and {w}/policy is not on the hub"),
    (["--model", "{w}/headless"], "headless was saved as Qwen3Model, which generates no text"),
    (["--model", "{w}/larger_tokenizer"], "has 65 tokens, and the model's embedding 64; give the tokenizer that"),
    (["recipe.toml"], "did you mean --config recipe.toml?"),
    (["{w}/policy"], "did you mean --model {w}/policy?"),
    (
        ["--reward", "{w}/rewards.py:nothing"],
        "nothing must return a list with one number or None per rollout, got None",
    ),
]


@pytest.mark.parametrize(("words", "expected"), TRAIN, ids=words_of)
def test_train_says_what_is_wrong(words: list[str], expected: str, poise: Callable, workplace, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [word.format(w=workplace.folder, t=empty) for word in words]
    told = poise("train", *workplace.flags, "--out", "run", *words)
    assert told.status in (1, 2)
    assert expected.replace("{w}", str(workplace.folder)) in told.err
    assert told.err.startswith("poise: ")
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()


DRY = [
    ["--lora-rank", "2", "--lora-targets", "nonsense"],
    ["--lora-rank", "2", "--baseline", "critic"],
    ["--attention", "flash_attention_2"],
    ["--out", "/proc/nowhere/run"],
    ["--data", "{w}/wrong/unnamed.jsonl", "--eval-size", "0", "--reward", "number"],
]


@pytest.mark.parametrize("words", DRY, ids=words_of)
def test_a_dry_run_says_it_too(words: list[str], poise: Callable, workplace) -> None:
    (expected,) = [said for flags, said in TRAIN if flags == words]
    told = poise(
        "train", *workplace.flags, "--out", "run", *[word.format(w=workplace.folder) for word in words], "--dry-run"
    )
    assert told.status == 1
    assert expected in told.err


@pytest.mark.parametrize("reward", ["quits", "nans"])
def test_a_judge_that_never_judges_stops_the_run(reward: str, poise: Callable, workplace) -> None:
    told = poise("train", *workplace.flags, "--eval-size", "0", "--reward", f"{workplace.folder}/rewards.py:{reward}")
    assert told.status == 1
    last = told.err.splitlines()[-1]
    assert last.startswith("poise: no rollout of the last 3 generation batches got a reward; the last failure: ")
    assert last.endswith("quits raised SystemExit: no more judging" if reward == "quits" else "was NaN or None")


@pytest.mark.parametrize("reward", ["number", "arrays", "later"])
def test_a_reward_may_say_its_numbers_in_several_ways(reward: str, poise: Callable, workplace) -> None:
    words = ["--reward", f"{workplace.folder}/rewards.py:{reward}", "--steps", "1", "--eval-size", "2", "--no-report"]
    told = poise("train", *workplace.flags, *words)
    assert told.status == 0, told.err
    assert "step=1/1 reward=0.0" in told.out or "step=1/1 reward=0.1" in told.out


def test_why_an_evaluation_has_no_scores_is_said(poise: Callable, workplace) -> None:
    words = ["--reward", f"{workplace.folder}/rewards.py:silent", "--steps", "1", "--eval-size", "2", "--no-report"]
    told = poise("train", *workplace.flags, *words)
    assert "2 of 2 verifications failed there, e.g. it returned None" in told.out


OTHERS = [
    (["data", "inspect", "sums.jsonl"], "Unrecognized options: sums.jsonl; did you mean --task sums.jsonl?"),
    (["data", "inspect", "--data", "sums.jsonl"], "unknown flag --data; did you mean '--task'?"),
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["data", "insepct"], "unknown command 'insepct'; did you mean 'inspect'?"),
    (["data", "inspect", "--task", "nothing-like-it"], "no task is called 'nothing-like-it'"),
    (["data", "inspect", "--task", "none.jsonl"], "there is no file none.jsonl"),
    (["data", "inspect", "--rows", "some"], "--rows"),
    (["report"], "needs a run folder"),
    (["report", "nowhere"], "nowhere holds no run"),
    (["report", "--format", "pdf"], "unknown flag --format"),
    (["doctor", "--modle", "x"], "unknown flag --modle; did you mean '--model'?"),
    (["eval", "--task", "nothing-like-it"], "no task is called 'nothing-like-it'"),
    (["eval", "--model", "no/such-model"], "no/such-model"),
    (["eval", "--samples", "3"], "unknown flag --samples"),
    (["lab", "valeu"], "unknown command 'valeu'; did you mean 'value'?"),
    (["lab", "value", "--k", "1"], "poise: --k must be at least 10, got 1"),
    (["lab", "value", "--task", "nothing-like-it"], "no task is called 'nothing-like-it'"),
    (
        ["lab", "variance", "--task", "{sums}"],
        "the train split of '{sums}' has 12 prompts, and 2048 are asked for; lower --tr",
    ),
    (["lab", "variance", "--rollouts", "1"], "poise: --rollouts must be at least 2, got 1: a sibling is needed"),
    (["eval", "--seed", "-1"], "--seed must be at least 0, got -1"),
    (["eval", "--temperature", "nan"], "temperature must be 0 or more and top_p in (0, 1], got nan and 0.95"),
    (["eval", "--correct-at", "nan"], "--correct-at must be a finite number, got nan"),
    (["eval", "--device", "gpu"], "cannot load the model 'bundled': Expected one of cpu, cuda"),
    (["eval", "--out", "/proc/nowhere", "--size", "1"], "/proc/nowhere: No such file or directory"),
    (["lab", "value", "--out", "/dev/null"], "/dev/null/rollouts: Not a directory"),
    (["data", "inspect", "--rows", "-2"], "--rows must be at least 0, got -2"),
    (["doctor", "nonsense"], "Unrecognized options: nonsense (see poise doctor --help)"),
]


@pytest.mark.parametrize(("words", "expected"), OTHERS, ids=words_of)
def test_other_commands_say_what_is_wrong(words: list[str], expected: str, poise: Callable, tmp_path: Path) -> None:
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(json.dumps({"prompt": f"{n}+1=", "answer": n + 1}) + "\n" for n in range(12)))
    words, expected = [word.replace("{sums}", str(sums)) for word in words], expected.replace("{sums}", str(sums))
    told = poise(*words)
    assert told.status in (1, 2)
    assert expected in told.err
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err


def test_an_unexpected_error_is_a_sentence_too(poise: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fail", ("json:loads", "fails"))
    told = poise("fail")
    assert told.status == 3
    assert told.err.startswith("poise: unexpected TypeError: ")
    assert "Traceback" not in told.err
    assert "Traceback" in poise("fail", "--debug").err


@pytest.mark.parametrize("kind", [OSError, RuntimeError])  # the writers of tensors have classes of their own
def test_a_full_disk_is_a_sentence(kind: type[Exception], poise: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(argv: list[str]) -> int:
        raise kind(28, "No space left on device")

    monkeypatch.setattr("json.loads", full)
    monkeypatch.setitem(COMMANDS, "fail", ("json:loads", "fails"))
    told = poise("fail")
    assert told.status == 1
    assert told.err.startswith("poise: the disk is full (")
    assert told.err.endswith("make room, then give the same command again: it goes on from what is there\n")


def test_a_place_that_cannot_be_written_is_a_sentence(poise: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = poise("lab", "value", "--quick", "--train-prompts", "4", "--out", str(tmp_path / "file" / "study"))
    assert told.status == 1
    assert told.err.startswith(f"poise: cannot use {tmp_path}/file/study")
    assert told.err.count("\n") == 1


def test_bad_records_name_their_place(poise: Callable, workplace, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "1+1="}) + "\n{'prompt': 2}\n")
    told = poise("train", *workplace.flags, "--data", "bad.jsonl", "--out", "run")
    assert told.status == 1
    assert "line 2 of bad.jsonl is not JSON" in told.err


def test_help_and_version_load_nothing_heavy() -> None:
    code = """
import sys
from poise.cli import main
assert main(["--help"]) == 0 and main(["--version"]) == 0
heavy = {"torch", "transformers", "trl", "datasets", "tyro", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["train", "eval", "data inspect", "data convert", "doctor", "report"])
def test_every_command_has_help(name: str, poise: Callable) -> None:
    told = poise(*name.split(), "--help")
    assert told.status == 0
    assert f"usage: poise {name}" in told.out
