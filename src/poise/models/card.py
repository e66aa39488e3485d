"""Measures a model on held-out procedural prompts and writes the card that lies beside its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise.rewards.procedural import verify
from poise.tasks.procedural import FAMILIES, Row, stream

# Rollouts per prompt: enough to tell a pass rate of 0 from .2; and the room a completion has, about twice the longest.
_ROLLOUTS, _ROOM, _PROMPTS_AT_ONCE = 16, 96, 64


@dataclass(frozen=True)
class Measured:
    """Sampled results on P prompts with G rollouts each, at temperature 1."""

    rewards_PG: Tensor
    lengths_PG: Tensor
    ended_PG: Tensor

    @property
    def mean(self) -> float:
        return float(self.rewards_PG.mean())

    @property
    def half_width(self) -> float:
        """Half of the 95% interval of pass@1 over prompts."""
        rates_P = self.rewards_PG.mean(1)
        return 1.96 * float(rates_P.std()) / math.sqrt(len(rates_P))

    @property
    def spread(self) -> float:
        """Variance of the true pass rate between prompts: the observed one less the sampling noise."""
        rates_P = self.rewards_PG.mean(1)
        noise = rates_P * (1 - rates_P) / (self.rewards_PG.shape[1] - 1)
        return float(rates_P.var() - noise.mean())

    @property
    def histogram(self) -> list[int]:
        """Prompts by pass rate in fifths."""
        return torch.histc(self.rewards_PG.mean(1), bins=5, min=0, max=1).int().tolist()


@torch.inference_mode()
def measure(folder: Path | str, rows: list[Row], rollouts: int = _ROLLOUTS, seed: int = 0) -> Measured:
    """Samples a model at temperature 1 and verifies every completion."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    parts = []
    for first in range(0, len(rows), _PROMPTS_AT_ONCE):
        batch = rows[first : first + _PROMPTS_AT_ONCE]
        prompts = [
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in batch
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        ids = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=_ROOM, num_return_sequences=rollouts)
        said = ids[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        rewards = [verify(text, batch[index // rollouts]).score for index, text in enumerate(texts)]
        ended = (said == tokenizer.eos_token_id).any(1)
        lengths = (said != tokenizer.pad_token_id).sum(1)
        parts.append([column.view(-1, rollouts).float() for column in (torch.tensor(rewards), lengths, ended)])
    return Measured(*(torch.cat(column) for column in zip(*parts, strict=True)))


def write_card(folder: Path, prompts: int) -> None:
    """Measures every bundled family on held-out prompts and writes README.md into the folder."""
    lines = []
    for name in FAMILIES:
        found = measure(folder, list(islice(stream(name, "test"), prompts)))
        lines.append(
            f"| {name} | {found.mean:.3f} ± {found.half_width:.3f} | {found.spread:.3f} | {found.histogram} "
            f"| {float(found.lengths_PG.mean()):.1f} (longest {int(found.lengths_PG.max())}) "
            f"| {float(found.ended_PG.mean()):.4f} |"
        )
        print(lines[-1], flush=True)
    count = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    table = "\n".join(lines)
    (folder / "README.md").write_text(_CARD.format(count=count, table=table, prompts=prompts, rollouts=_ROLLOUTS))


_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A tiny model that reasons badly, on purpose

{count:,} parameters, Qwen3 architecture, made by `python -m poise.models.pretrain --out FOLDER` (settings in
`pretrain.json`) from the written solutions of a teacher that slips where a step is hard
(`poise/models/demonstrator.py`). It knows two families of reasoning-gym, sums of two to five numbers of up to two
digits (`chain_sum`) and spelling a word backward (`spell_backward`), answers in the form
`<think>...</think><answer>...</answer>`, and leaves room for reinforcement learning. It is good for nothing else.

Sampled at temperature 1 on {prompts} held-out prompts a family, {rollouts} completions each; pass@1 with its 95%
interval over prompts, the variance of the pass rate between prompts (sampling noise taken out), prompts by pass rate in
fifths, tokens per completion, and the share of completions that end by themselves within 96 tokens.

| family | pass@1 | Var p | prompts by pass rate | tokens | ended |
|---|---|---|---|---|---|
{table}
"""
