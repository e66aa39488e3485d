"""Completions of prompts by vLLM, in place of transformers' `generate`; for models and lengths that need it.

vLLM is imported only here. Each prompt has a seed of its own, so what a prompt gives does not depend on what else is
evaluated beside it. This sampler runs where `poise-rl[vllm]` is installed; the default tests do not have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.errors import ConfigError
from poise.eval.sampling import Completion, Sampling, encode, room_for
from poise.tasks.rows import Prompt

# Prompts handed to vLLM at once: enough to keep it busy, few enough that an interruption loses little.
_CHUNK = 256


class VLLMSampler:
    """Samples with an offline vLLM engine.

    Args:
        model: folder or hub name.
        tokenizer: its tokenizer; prompts are encoded here, exactly as for transformers.
        engine: further arguments of `vllm.LLM`, such as tensor_parallel_size or gpu_memory_utilization.

    Raises:
        ConfigError: vLLM is not installed, or the folder holds adapters.
    """

    def __init__(self, model: str, tokenizer: Any, **engine: Any) -> None:
        if (Path(model) / "adapter_config.json").exists():
            raise ConfigError(f"{model} holds adapters, which vLLM is not given here: use --sampler hf, or merge them")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError("sampling with vLLM needs it installed: pip install 'poise-rl[vllm]'") from error
        self.tokenizer = tokenizer
        self.engine = LLM(model=model, **engine)
        # An evaluation that ran out of memory may go on with another share of it.
        self.settings = {"engine": {name: engine[name] for name in sorted({*engine} - {"gpu_memory_utilization"})}}

    def __call__(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Finished prompts, chunk by chunk, in order."""
        left = [index for index in range(len(prompts)) if index not in done]
        context = self.engine.llm_engine.model_config.max_model_len
        for start in range(0, len(left), _CHUNK):
            chunk = left[start : start + _CHUNK]
            ids = [encode(self.tokenizer, prompts[index], sampling.template) for index in chunk]
            room_for(max(map(len, ids)), context)
            inputs = [{"prompt_token_ids": each} for each in ids]
            outputs = self.engine.generate(inputs, [self._parameters(sampling, i) for i in chunk], use_tqdm=False)
            for index, output in zip(chunk, outputs, strict=True):
                yield index, [_completion(sample) for sample in output.outputs]

    def _parameters(self, sampling: Sampling, index: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.k,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=sampling.max_new_tokens,
            seed=int(np.random.SeedSequence([sampling.seed, index]).generate_state(1)[0]),
            stop=list(sampling.stop) or None,
            skip_special_tokens=True,
        )


def _completion(sample: Any) -> Completion:
    return Completion(sample.text, len(sample.token_ids), sample.finish_reason == "length")
