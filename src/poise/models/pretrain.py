"""Makes the bundled model: supervised next-token training on an imperfect teacher's solutions (`demonstrator`).

    python -m poise.models.pretrain --out my-model

One core and about sixteen minutes. Every text is new (no epochs), questions come from the train split only, and
the same seed on the same machine gives the same weights. The result is a plain Qwen3ForCausalLM folder with tokenizer,
chat template and a model card whose numbers are measured at the end (`card`).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from poise.models.card import write_card
from poise.models.demonstrator import Flawless, demonstrate
from poise.models.muon import Muon
from poise.models.tokenizer import END, TAGS, build_tokenizer
from poise.tasks.procedural import load_entry, stream

# Positions beyond the texts, so that the model can be run on longer prompts (a system message, other tasks).
_POSITIONS = 512
# Texts are sorted by length within this many batches, so that batches are nearly free of padding.
_POOL_BATCHES = 20


@dataclass(frozen=True)
class Pretrain:
    """Settings of the pretraining run; the defaults are those of the bundled model."""

    out: Path
    """Folder to write; must not exist."""
    families: tuple[str, ...] = ("chain_sum", "chain_sum", "spell_backward")
    """Families whose questions are demonstrated, in turn; sums are the harder ones to learn."""
    steps: int = 4000
    """Optimizer steps."""
    batch: int = 64
    """Texts per step."""
    flawless: float = 0.6
    """Share of the texts, the first ones, in which the teacher never slips: what to do, and only then its habits."""
    lr: float = 0.02
    """Peak learning rate of Muon, for the matrices: linear warm-up over 50 steps, then cosine to a fiftieth."""
    adam_lr: float = 3e-3
    """The same for AdamW, for embeddings and norms."""
    hidden: int = 96
    """Width of the residual stream."""
    layers: int = 4
    """Decoder blocks."""
    entries: int = 384
    """Tokenizer entries."""
    seed: int = 0
    """Seed of questions, slips and weights."""
    measure_prompts: int = 256
    """Held-out prompts per family for the model card."""


def main(settings: Pretrain) -> None:
    """Trains, saves and measures the model."""
    settings.out.mkdir(parents=True)
    torch.manual_seed(settings.seed)
    examples = _texts(settings)
    tokenizer = build_tokenizer((_untagged(text) for pair in islice(examples, 4000) for text in pair), settings.entries)
    model = Qwen3ForCausalLM(config(settings, tokenizer))
    print(f"parameters {model.num_parameters():,}", flush=True)
    train(model, tokenizer, examples, settings)
    save(model, tokenizer, settings.out)
    chosen = {key: value for key, value in vars(settings).items() if key != "out"}
    (settings.out / "pretrain.json").write_text(json.dumps(chosen, indent=2) + "\n")
    write_card(settings.out, settings.measure_prompts)


def config(settings: Pretrain, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """A plain Qwen3 configuration: grouped-query attention with two key-value heads, tied embeddings."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=_POSITIONS,
        # Wider than transformers' 0.02, which suits widths in the thousands: 1/sqrt(hidden), halved.
        initializer_range=0.5 / math.sqrt(settings.hidden),
        tie_word_embeddings=True,
        attention_bias=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Iterator[tuple[str, str]],
    settings: Pretrain,
) -> None:
    """Muon and AdamW on the completions' next-token loss; a line every 50 steps, the weights saved every 400."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=settings.lr),
        torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    rate = partial(_rate, steps=settings.steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    batches = _batches(examples, tokenizer, settings)
    model.train()
    started, losses = time.monotonic(), []
    for step in range(1, settings.steps + 1):
        loss = next_token_loss(model, *next(batches))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stage in (*optimizers, *schedules):
            stage.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0 or step == settings.steps:
            mean = sum(losses) / len(losses)
            print(f"step {step}/{settings.steps} loss {mean:.4f} {time.monotonic() - started:.0f}s", flush=True)
            losses.clear()
        if step % 400 == 0:
            save(model, tokenizer, settings.out)
    model.eval()


def next_token_loss(model: Qwen3ForCausalLM, ids_BT: Tensor, prompts_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of the completions' tokens; prompts and padding on the right are not counted."""
    states_BTH = model.model(input_ids=ids_BT).last_hidden_state
    position_T = torch.arange(ids_BT.shape[1] - 1)
    counted_BT = (position_T >= prompts_B[:, None] - 1) & (position_T < lengths_B[:, None] - 1)
    logits = model.lm_head(states_BTH[:, :-1][counted_BT])
    return cross_entropy(logits, ids_BT[:, 1:][counted_BT])


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights, configuration, tokenizer and sampling defaults, as transformers and vLLM read them."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # The name that every release of transformers knows; newer ones write an internal class's.
    path = out / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    )


def _texts(settings: Pretrain) -> Iterator[tuple[str, str]]:
    """(question, demonstrated completion) without end, one family after the other."""
    # Training runs use small seeds; these streams are others.
    streams = {name: stream(name, "train", seed=10_000 + settings.seed) for name in settings.families}
    flawless, slipping = Flawless(settings.seed), Random(settings.seed)
    for count in itertools.count():
        row = next(streams[settings.families[count % len(settings.families)]])
        rng = flawless if count < settings.flawless * settings.steps * settings.batch else slipping
        yield row["prompt"][0]["content"], demonstrate(load_entry(row["info"])["entry"], rng) + END


def _batches(
    examples: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, settings: Pretrain
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids padded on the right, with each row's prompt length and full length."""
    rng = Random(settings.seed + 1)
    while True:
        pool = [_encode(tokenizer, *pair) for pair in islice(examples, settings.batch * _POOL_BATCHES)]
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [pool[first : first + settings.batch] for first in range(0, len(pool), settings.batch)]
        rng.shuffle(batches)
        for batch in batches:
            rows = [torch.tensor(prompt + completion) for prompt, completion in batch]
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
            yield ids_BT, torch.tensor([len(prompt) for prompt, _ in batch]), torch.tensor([len(row) for row in rows])


def _encode(tokenizer: PreTrainedTokenizerFast, question: str, completion: str) -> tuple[list[int], list[int]]:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(prompt), tokenizer.encode(completion)


def _untagged(text: str) -> str:
    """Text without the tags, which are tokens already and must not shape the merges."""
    for tag in (*TAGS, END):
        text = text.replace(tag, "\n")
    return text


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step."""
    if step < 50:
        return (step + 1) / 50
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(tyro.cli(Pretrain))
