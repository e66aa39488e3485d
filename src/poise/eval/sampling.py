"""Completions of prompts by transformers' `generate`: the sampling step of an evaluation.

Prompts are sorted by length and padded on the left; a prompt's samples are finished together. Every batch has a seed of
its own, made of the evaluation's seed and the batch's place, so that a batch gives the same completions whether or not
the run was interrupted before it; the caller's random state is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from poise.errors import ConfigError
from poise.tasks.rows import Prompt
from poise.tasks.templates import filled_chat


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    Args:
        text: decoded without special tokens.
        tokens: number of generated tokens, the end-of-sequence token included.
        truncated: whether it hit the length limit.
    """

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. The defaults are the published evaluation's (avg@32 at T = 0.6, top-p 0.95).

    Args:
        k: samples a prompt.
        temperature: 0 takes the most likely token each time.
        top_p: nucleus; 1 keeps every token.
        max_new_tokens: length limit of a completion, in tokens.
        batch_size: sequences generated at once.
        seed: of the sampling.
        stop: texts that end a completion; they are cut off.
        template: extra arguments of the tokenizer's chat template, such as enable_thinking.
    """

    k: int = 32
    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = 8192
    batch_size: int = 64
    seed: int = 0
    stop: tuple[str, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("k", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature must be 0 or more and top_p in (0, 1], got {self.temperature} and {self.top_p}"
            )
        if self.temperature == 0 and self.k > 1:
            raise ConfigError(f"temperature 0 gives the same completion {self.k} times; set k = 1 or a temperature")


class Sampler(Protocol):
    """Anything that completes prompts: yields finished prompts, as (index, its k completions), in any order.

    Its `settings`, if it has any, say what else changes its samples: they are not resumed under others.
    """

    def __call__(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: frozenset[int]
    ) -> Iterator[tuple[int, list[Completion]]]: ...


class HFSampler:
    """Samples from a transformers model on the device it is on.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self.end_ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (self.end_ids or [0])[0]

    @property
    def settings(self) -> dict[str, str]:
        return {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}

    def __call__(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Finished prompts, batch by batch; batches whose prompts are all in `done` are not sampled again."""
        ids = [encode(self.tokenizer, prompt, sampling.template) for prompt in prompts]
        for number, batch in enumerate(batches([len(each) for each in ids], sampling)):
            if all(index in done for index in batch):
                continue
            rows = [index for index in batch for _ in range(sampling.k)]
            completions = []
            for chunk, start in enumerate(range(0, len(rows), sampling.batch_size)):
                chosen = [ids[index] for index in rows[start : start + sampling.batch_size]]
                seed = np.random.SeedSequence([sampling.seed, number, chunk]).generate_state(1, np.uint64)[0]
                completions += [self._completion(row, sampling) for row in self.draw(chosen, sampling, int(seed) >> 1)]
            for place, index in enumerate(batch):
                if index not in done:
                    yield index, completions[place * sampling.k : (place + 1) * sampling.k]

    def draw(self, ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """One completion of each prompt as token ids, the end-of-sequence token included if it was reached.

        A row that met a stop text is filled with the pad token until the batch is done.
        """
        device = self.model.device
        width = max(map(len, ids))
        input_BT = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in ids], device=device)
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        stops = StoppingCriteriaList([_StopTexts(self.tokenizer, sampling.stop, width)] if sampling.stop else [])
        was_training, own_config = self.model.training, self.model.generation_config
        self.model.eval()
        self.model.generation_config = GenerationConfig()  # transformers takes from there whatever a call leaves unset
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(seed)
                output_BT = self.model.generate(
                    input_ids=input_BT,
                    attention_mask=mask_BT,
                    generation_config=self._config(sampling, width),
                    stopping_criteria=stops,
                )
        finally:
            self.model.generation_config = own_config
            self.model.train(was_training)
        return [self._until_end(row) for row in output_BT[:, width:].tolist()]

    def _until_end(self, generated: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(generated) if token in self.end_ids), None)
        return generated if end is None else generated[: end + 1]

    def _config(self, sampling: Sampling, prompt_length: int) -> GenerationConfig:
        context = getattr(self.model.config, "max_position_embeddings", None)
        room = sampling.max_new_tokens if context is None else room_for(prompt_length, context)
        drawn = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        return GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=min(sampling.max_new_tokens, room),
            eos_token_id=self.end_ids or None,
            pad_token_id=self.pad_id,
            **drawn,
        )

    def _completion(self, kept: list[int], sampling: Sampling) -> Completion:
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        cuts = [text.find(stop) for stop in sampling.stop if stop in text]
        has_ended = bool(kept) and kept[-1] in self.end_ids
        if cuts:
            # Rows that met a stop text are padded until the batch is done, and padding may look like an end.
            kept = kept[: max(place for place, token in enumerate(kept) if token != self.pad_id) + 1]
        return Completion(text[: min(cuts)] if cuts else text, len(kept), not has_ended and not cuts)


class _StopTexts(StoppingCriteria):
    """Ends the rows whose generated part has just said one of the stop texts."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_length = prompt_length
        # A token says at least one character, so the stop text lies within this many of the last ones.
        self.window = max(map(len, stop)) + 4

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        first = max(self.prompt_length, input_ids.shape[1] - self.window)
        tails = self.tokenizer.batch_decode(input_ids[:, first:], skip_special_tokens=True)
        said = [any(stop in tail for stop in self.stop) for tail in tails]
        return torch.tensor(said, dtype=torch.bool, device=input_ids.device)


def encode(tokenizer: Any, prompt: Prompt, template: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt as the policy sees it in training: text as it is, messages through the chat template.

    Raises:
        ConfigError: messages, and the tokenizer has no chat template, or one that refuses them.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer(filled_chat(tokenizer, prompt, template), add_special_tokens=False)["input_ids"]


def room_for(prompt_length: int, context: int) -> int:
    """Tokens that a completion may have behind a prompt.

    Raises:
        ConfigError: none.
    """
    if prompt_length >= context:
        raise ConfigError(
            f"a prompt of {prompt_length} tokens fills the model's context of {context}; filter long prompts out"
        )
    return context - prompt_length


def batches(lengths_P: Sequence[int], sampling: Sampling) -> list[list[int]]:
    """Prompt indices in batches of whole prompts, longest first, so that a batch too large fails at once."""
    order = sorted(range(len(lengths_P)), key=lambda index: (-lengths_P[index], index))
    step = max(1, sampling.batch_size // sampling.k)
    return [order[start : start + step] for start in range(0, len(order), step)]
