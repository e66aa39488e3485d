"""`poise eval` samples with the real vLLM: the same greedy text as transformers, averages, truncation, resuming.

Run by `make test-vllm`, like its neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="needs the vLLM environment: make test-vllm")

from poise.errors import ConfigError  # noqa: E402
from poise.eval import Evaluation  # noqa: E402
from poise.eval import command as eval_command  # noqa: E402
from poise.eval.command import EvalConfig, load_sampler, run  # noqa: E402

PROMPTS = 24


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One vLLM engine for all tests here: starting it is most of what they take."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
            patch.setenv(name, value)
        made = load_sampler(EvalConfig(sampler="vllm", engine_options=("enforce_eager=true",)))

        def loaded(config: EvalConfig) -> object:
            return made if config.sampler == "vllm" else load_sampler(config)

        patch.setattr(eval_command, "load_sampler", loaded)
        yield made
        made.engine.llm_engine.engine_core.shutdown()


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Evaluation]:
    def evaluate(out: str = "out", **changes: object) -> Evaluation:
        config = EvalConfig(size=PROMPTS, sampler="vllm", max_new_tokens=120, out=str(tmp_path / out), device="cpu")
        assert run(EvalConfig(**{**vars(config), **changes})) == 0
        return Evaluation.from_json(tmp_path / out / "evaluation.json")

    return evaluate


def test_greedy_text_is_transformers(evaluate: Callable[..., Evaluation], tmp_path: Path) -> None:
    found = evaluate("vllm", k=1, temperature=0.0)
    assert found.average.mean > 0.7, "the bundled model solves nine in ten greedily"
    assert found.truncated == 0.0
    evaluate("hf", k=1, temperature=0.0, sampler="hf")
    samples = [sorted((tmp_path / name / "samples.jsonl").read_text().splitlines()[1:]) for name in ("vllm", "hf")]
    assert len(samples[0]) == PROMPTS
    assert samples[0] == samples[1], "text, length with the end token, and whether it was cut off"


def test_sampled_averages_and_resuming(evaluate: Callable[..., Evaluation], tmp_path: Path) -> None:
    whole = evaluate(k=4)
    assert (len(whole.results), whole.samples, sorted(whole.pass_at)) == (PROMPTS, 4 * PROMPTS, [1, 2, 4])
    assert 0.2 < whole.average.mean < whole.pass_at[4].mean <= 1.0
    file = tmp_path / "out" / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    texts = set(lines[1:])
    assert len(texts) == PROMPTS
    file.write_text("".join(lines[:10]) + lines[10][:25])  # killed while it wrote the tenth prompt
    resumed = evaluate(k=4)
    assert file.read_text().splitlines(keepends=True) == lines, "a prompt's samples depend on its own seed only"
    assert resumed.results == whole.results


def test_length_limit(evaluate: Callable[..., Evaluation]) -> None:
    found = evaluate("short", k=2, max_new_tokens=3)
    assert (found.truncated, found.tokens, found.average.mean) == (1.0, 3.0, 0.0)


def test_stop_texts_are_cut_off(evaluate: Callable[..., Evaluation], tmp_path: Path) -> None:
    found = evaluate("stopped", k=1, temperature=0.0, stop=("</think>",))
    assert found.truncated == 0.0
    assert "</think>" not in (tmp_path / "stopped" / "samples.jsonl").read_text().split("\n", 1)[1]


def test_a_prompt_beyond_the_context_is_one_sentence(evaluate: Callable[..., Evaluation], tmp_path: Path) -> None:
    problems = tmp_path / "long.jsonl"
    problems.write_text('{"q": "' + "1+" * 3000 + '1=", "a": "3001"}\n')
    options = ("prompt=q", "answer=a", "held_out=0.999")
    with pytest.raises(ConfigError, match="fills the model's context"):
        evaluate("long", task=str(problems), task_options=options, reward=("number",), size=1, k=1)
