"""Rollouts of different lengths and tiny models of several architectures, for tests that read hidden states."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from poise.core import TokenLayout

VOCABULARY, HIDDEN, DEPTH = 50, 32, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
END = 7  # the token that closes the reasoning


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=DEPTH, n_head=2, n_positions=64))


def qwen3_moe() -> PreTrainedModel:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": gpt2,
    "qwen3-moe": qwen3_moe,
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    return MODELS[name]().eval()


def batch(side: str = "left", extra: int = 0) -> SimpleNamespace:
    """Five rollouts of different lengths; prompts padded on one side, responses on the right."""
    draw = torch.Generator().manual_seed(4)
    prompts = [torch.randint(8, VOCABULARY, (n,), generator=draw) for n in (3, 6, 5, 1, 4)]
    responses = [torch.randint(8, VOCABULARY, (n,), generator=draw) for n in (9, 4, 7, 2, 6)]
    responses[0][5] = END  # reasoning, then an answer
    responses[2][6] = END  # the end is the very last token

    def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows)) + extra
        ids, mask = torch.full((len(rows), width), END), torch.zeros(len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(rows):
            where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            ids[row, where], mask[row, where] = tokens, 1
        return ids, mask  # padding looks like the end-of-reasoning token: only the mask tells

    prompt_ids, prompt_mask = padded(prompts, side == "left")
    response_ids, response_mask = padded(responses, False)
    return SimpleNamespace(
        prompts=prompts,
        responses=responses,
        ids=torch.cat([prompt_ids, response_ids], 1),
        mask=torch.cat([prompt_mask, response_mask], 1),
        layout=TokenLayout.padded(prompt_ids, prompt_mask, response_ids, response_mask),
    )


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_min(0)


def forward(model: nn.Module, data: SimpleNamespace, rows: slice = slice(None), **options: object):
    mask = data.mask[rows]
    return model(
        input_ids=data.ids[rows], attention_mask=mask, position_ids=positions(mask), use_cache=False, **options
    )


def packed(data: SimpleNamespace, tail: int = 0) -> tuple[TokenLayout, Tensor, Tensor]:
    """The same rollouts end to end, with `tail` padding tokens behind; ids and positions with a leading axis of one."""
    rows = [torch.cat(pair) for pair in zip(data.prompts, data.responses, strict=True)]
    lengths = torch.tensor([len(row) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    layout = TokenLayout.packed(torch.cat(rows), offsets, torch.tensor([len(p) for p in data.prompts]))
    place = torch.cat([torch.arange(n) for n in [*lengths, tail]])
    return layout, torch.cat([*rows, torch.full((tail,), END)])[None], place[None]
