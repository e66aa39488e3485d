"""`poise eval` on a saved model and a local file: table, JSON, resume, paired test; one sentence for wrong input."""

import json
from dataclasses import replace

import pytest

from poise.errors import ConfigError, StateMismatchError
from poise.eval import Evaluation
from poise.eval.command import EvalConfig, run


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(saved, tmp_path):
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(json.dumps({"q": f"{i}+1=", "a": i + 1}) + "\n" for i in range(12)))
    return EvalConfig(
        model=str(saved),
        task=str(problems),
        task_options=("prompt=q", "answer=a", "held_out=0.999"),
        reward=("number",),
        k=2,
        temperature=1.0,
        max_new_tokens=5,
        device="cpu",
        out=str(tmp_path / "out"),
    )


def test_runs_writes_and_resumes(config, tmp_path, capsys):
    assert run(config) == 0
    shown = capsys.readouterr().out
    assert "avg@2" in shown
    assert "pass@2" in shown
    assert "truncated" in shown
    found = Evaluation.from_json(tmp_path / "out" / "evaluation.json")
    assert (len(found.results), found.samples) == (12, 24)
    assert found.settings["reward"] == "number"
    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert run(config) == 0
    assert (tmp_path / "out" / "samples.jsonl").read_text().splitlines() == lines
    with pytest.raises(StateMismatchError, match="k was 2 and is 3"):
        run(replace(config, k=3))


def test_paired_against_another_run(config, tmp_path, capsys):
    run(config)
    second = replace(config, seed=1, out=str(tmp_path / "second"), against=str(tmp_path / "out"))
    assert run(second) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "difference" in shown
    assert "paired over 12 prompts" in shown
    assert "not measured alike" not in shown
    greedy = replace(second, k=1, temperature=0.0, stop=("3",), out=str(tmp_path / "third"))
    assert run(greedy) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not measured alike: k 1 against 2, temperature 0.0 against 1.0, stop ('3',) against ()" in shown


def test_another_task_is_refused_before_anything_is_sampled(config, tmp_path):
    run(config)
    (tmp_path / "others.jsonl").write_text(json.dumps({"q": "other?", "a": 1}) + "\n")
    others = replace(
        config, task=str(tmp_path / "others.jsonl"), out=str(tmp_path / "o"), against=str(tmp_path / "out")
    )
    with pytest.raises(ConfigError, match="none of these 1 prompts is among the 12 of --against"):
        run(others)
    assert not (tmp_path / "o").exists()


def test_a_retrained_model_in_the_same_folder_is_not_resumed(config, saved):
    run(config)
    weights = saved / "model.safetensors"
    weights.touch()
    with pytest.raises(StateMismatchError, match="weights was"):
        run(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "/no/such/model"}, "no model '/no/such/model': there is no such folder"),
        ({"task": "tinyy"}, "no task is called 'tinyy'"),
        ({"reward": ("nmber",), "size": 1}, "did you mean 'number'"),
        ({"task_options": ("prompt",)}, "option 'prompt' is not of the form name=value"),
        ({"reward_weights": (1.0, 2.0)}, "2 reward weights for 1 rewards"),
        ({"temperature": 0.0}, "the same completion 2 times"),
        ({"revision": "main"}, "--revision main is one of a hub model, and .* is not on the hub"),
        ({"engine_options": ("max_model_len=9",)}, "--engine-options max_model_len=9 are vLLM's; add --sampler vllm"),
        ({"against": "/no/run"}, "there is no evaluation at /no/run"),
    ],
)
def test_wrong_input_is_one_sentence(config, change, said):
    with pytest.raises(ConfigError, match=said):
        run(replace(config, **change))
