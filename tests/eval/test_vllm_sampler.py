"""The vLLM sampler against a stand-in with vLLM's own call signatures; vLLM itself is not in this environment."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from poise.errors import ConfigError
from poise.eval import Completion, Sampling
from poise.eval.vllm_sampler import VLLMSampler


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.calls = []

    class LLM:
        def __init__(self, model, **engine):
            self.model, self.engine = model, engine
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=8))

        def generate(self, prompts, sampling_params, use_tqdm):
            module.calls.append((prompts, sampling_params))
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            text=f"{len(prompt['prompt_token_ids'])}-{sample}",
                            token_ids=[1] * (sample + 1),
                            finish_reason="length" if sample else "stop",
                        )
                        for sample in range(parameters.n)
                    ]
                )
                for prompt, parameters in zip(prompts, sampling_params, strict=True)
            ]

    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_prompts_go_in_as_tokens_and_samples_come_out(vllm, tokenizer):
    sampler = VLLMSampler("folder", tokenizer, tensor_parallel_size=2)
    assert sampler.engine.engine == {"tensor_parallel_size": 2}
    found = dict(sampler(["1+1=", "12="], Sampling(k=2, max_new_tokens=7, stop=("x",))))
    assert found == {
        0: [Completion("4-0", 1, False), Completion("4-1", 2, True)],
        1: [Completion("3-0", 1, False), Completion("3-1", 2, True)],
    }
    (_, parameters), *_ = vllm.calls
    assert {(each.n, each.temperature, each.top_p, each.max_tokens) for each in parameters} == {(2, 0.6, 0.95, 7)}
    assert parameters[0].stop == ["x"]


def test_a_prompts_seed_does_not_depend_on_what_is_sampled_beside_it(vllm, tokenizer):
    sampler = VLLMSampler("folder", tokenizer)
    list(sampler(["1=", "2=", "3="], Sampling(k=1)))
    list(sampler(["1=", "2=", "3="], Sampling(k=1), frozenset([0, 1])))
    whole, rest = (parameters for _, parameters in vllm.calls)
    assert rest[0].seed == whole[2].seed
    assert len({each.seed for each in whole}) == 3


def test_a_prompt_that_fills_the_context_is_refused(vllm, tokenizer):
    with pytest.raises(ConfigError, match="a prompt of 8 tokens fills the model's context of 8"):
        list(VLLMSampler("folder", tokenizer)(["1+1+1+1="], Sampling(k=1)))
    assert not vllm.calls


def test_adapters_are_refused(tmp_path, tokenizer):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds adapters"):
        VLLMSampler(str(tmp_path), tokenizer)


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="pip install 'poise-rl\\[vllm\\]'"):
        VLLMSampler("folder", tokenizer)
