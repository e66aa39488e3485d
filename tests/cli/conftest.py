"""A saved random policy, a file of sums, a reward that noise earns now and then, and a way to call the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny_policy
from poise.cli import main

REWARDS = '''
import os, signal

def digits(completions, target, trainer_state=None, **columns):
    """1 if a digit of the sum is among the first eight characters; can be told to kill the process at a step."""
    step = os.environ.get("KILL_AT_STEP")
    if trainer_state is not None and step is not None and trainer_state.global_step >= int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(any(d in text[:8] for d in sum_)) for text, sum_ in zip(completions, target)]

def length(completions, **columns):
    return [len(text) / 100 for text in completions]

def boom(completions, **columns):
    raise RuntimeError("the judge is out")

def wrong(completions, **columns):
    return 1.0

def needs(completions, targte, **columns):
    return [0.0] * len(completions)

def odd(left, middle, right):
    return 0.0

def short(completions, **columns):
    return [0.0]

def nans(completions, **columns):
    return [float("nan")] * len(completions)

def nothing(completions, **columns):
    return None if len(completions) > 1 else [0.0]

def number(completion, example):
    return len(completion) / 100

def silent(completion, example):
    return None

def a_dict(completion, example):
    return {"score": 1.0}

def misses(completion, example):
    return example["gold"]

def takes(completion, answer):
    return float(completion in answer)

def ids(completion_ids, **columns):
    return [len(each) / 100 for each in completion_ids]

def arrays(completions, **columns):
    import torch
    return torch.tensor([len(text) / 100 for text in completions])

async def later(completions, **columns):
    return [len(text) / 100 for text in completions]

def mixed(completions, mixed, **columns):
    return [0.0] * len(completions)

def quits(completions, **columns):
    if len(completions) > 1:
        raise SystemExit("no more judging")
    return [0.0]
'''
# Files that are not what their names say.
WRONG = {
    "binary.toml": b"\xff\xfe\x00",
    "no_prompt.jsonl": b'{"question": "1+1=", "answer": 2}\n',
    "list.json": b"[1, 2, 3]",
    "none.jsonl": b'{"prompt": null, "answer": 2}\n',
    "messages.jsonl": b'{"prompt": [{"role": "user"}], "answer": 2}\n',
    "torn.parquet": b"PAR1 and no more",
    "binary.csv": b"\xff\xfe\x00\x01",
    "mixed.jsonl": b"".join(b'{"prompt": "1+%d=", "mixed": %s}\n' % (n, b'"3"' if n % 2 else b"2") for n in range(20)),
    "unnamed.jsonl": b"".join(b'{"prompt": "1+%d=", "solution": "%d"}\n' % (n, n + 1) for n in range(20)),
    "notes.txt": b"1+1=2",
    "pretty.json": b'{\n  "data": []\n}',
    "chat.jsonl": b'{"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]}\n',
}


@dataclass(frozen=True)
class Workplace:
    """Files that a user would have, and the flags that name them."""

    folder: Path

    @property
    def flags(self) -> list[str]:
        """A training run of a few seconds."""
        return [
            *("--model", str(self.folder / "policy"), "--data", str(self.folder / "sums.jsonl")),
            *("--reward", f"{self.folder / 'rewards.py'}:digits", "--max-completion-tokens", "10"),
            *("--prompts-per-step", "8", "--steps", "6", "--learning-rate", "1e-3", "--eval-size", "12"),
            *("--cold-start-rows", "16", "--prompt-components", "4", "--reasoning-components", "4"),
        ]


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("workplace")
    tiny_policy.model(layers=2).save_pretrained(folder / "policy")
    tiny_policy.tokenizer().save_pretrained(folder / "policy")
    (folder / "rewards.py").write_text(REWARDS)
    _break_things(folder)
    rows = [{"prompt": f"{a}+{b}=", "answer": a + b, "target": str(a + b)} for a in range(12) for b in range(10)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Workplace(folder)


def _break_things(folder: Path) -> None:
    """Models and files that a stranger's disk might hold."""
    (folder / "wrong").mkdir()
    for name, content in WRONG.items():
        (folder / "wrong" / name).write_bytes(content)
    for name in ("torn_weights", "no_weights", "no_tokenizer", "torn_config"):
        shutil.copytree(folder / "policy", folder / name)
    torch.manual_seed(0)
    learned = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=1)
    GPT2LMHeadModel(learned).save_pretrained(folder / "learned_positions")
    tiny_policy.tokenizer().save_pretrained(folder / "learned_positions")
    tiny_policy.model(layers=2).model.save_pretrained(folder / "headless")
    tiny_policy.tokenizer().save_pretrained(folder / "headless")
    larger = tiny_policy.tokenizer()
    larger.add_tokens([f"<extra{number}>" for number in range(65 - len(larger))])
    shutil.copytree(folder / "policy", folder / "larger_tokenizer")
    larger.save_pretrained(folder / "larger_tokenizer")
    for name, template in (("no_template", None), ("no_system", "{{ raise_exception('no system messages') }}")):
        shutil.copytree(folder / "policy", folder / name)
        tokenizer = tiny_policy.tokenizer()
        tokenizer.chat_template = template
        (folder / name / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder / name)
    (folder / "torn_weights" / "model.safetensors").write_bytes(b"\x08")
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "torn_config" / "config.json").write_text("{oops")
    for file in (folder / "no_tokenizer").glob("tokenizer*"):
        file.unlink()


@pytest.fixture
def poise(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Calls the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Outcome:
        capsys.readouterr()
        status = main(list(words))
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return call
