"""Rollouts of a frozen policy with what the probe sees of them: generate, verify, capture; chunk by chunk.

The states come from the product's own `StateCapture` and `TokenLayout`, all wanted layers in one scoring forward. Axis
suffixes: `_P` prompts, `_K` rollouts of each, `_F` those of them that were captured (the first ones), `_H` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.core import StateCapture, StateSpec, TokenLayout, token_entropy
from poise.core.features import Features
from poise.core.trees import cat_tensors
from poise.eval.engine import verify_samples
from poise.eval.sampling import Completion, HFSampler, Sampling, encode
from poise.lab.cache import Cache, Tensors
from poise.rewards import Verifier

View = tuple[int, int]  # (block, pooling window)
PROXIES = ("one_minus_pi", "residual", "nll", "length")
ProgressOf = Callable[[int], None]


@dataclass(frozen=True)
class Rollouts:
    """P prompts x K rollouts, the first F of each captured.

    Args:
        rewards_PK: NaN where verification failed.
        ids_PKC: response tokens, padded with -1.
        prompt_states, reasoning_states: pooled states by "block/window".
        entropy_PFE: mean token entropies of output, reasoning, answer (nats).
        proxies_PFX: what might stand for the squared gradient norm, by `PROXIES`.
    """

    rewards_PK: Tensor
    ids_PKC: Tensor
    prompt_states: dict[str, Tensor]
    reasoning_states: dict[str, Tensor]
    entropy_PFE: Tensor
    proxies_PFX: Tensor

    @property
    def lengths_PK(self) -> Tensor:
        return (self.ids_PKC >= 0).sum(2)

    def features(self, prompt: View, reasoning: View) -> Features:
        """The product's features of every captured rollout, prompt by prompt."""
        states = self.prompt_states[key_of(prompt)], self.reasoning_states[key_of(reasoning)]
        return Features(*(part.flatten(0, 1) for part in states), self.entropy_PFE.flatten(0, 1))

    def responses(self, prompt: int) -> list[list[int]]:
        """Token ids of a prompt's responses."""
        return [[token for token in row if token >= 0] for row in self.ids_PKC[prompt].tolist()]


@dataclass(frozen=True)
class Drawing:
    """How rollouts are drawn and what is captured of them.

    Args:
        sampler: the policy.
        sampling: k rollouts a prompt, temperature, length limit.
        views: blocks and windows that are captured.
        end_of_reasoning: token ids that close the reasoning.
        captured: how many rollouts of each prompt are scored.
        score_batch: sequences scored at once.
    """

    sampler: HFSampler
    sampling: Sampling
    views: tuple[View, ...]
    end_of_reasoning: tuple[int, ...]
    captured: int
    score_batch: int


def key_of(view: View) -> str:
    return f"{view[0]}/{view[1]}"


def collect(
    drawing: Drawing, rows: Sequence[Mapping[str, Any]], verify: Verifier, cache: Cache, name: str, done: ProgressOf
) -> Rollouts:
    """Rollouts of every row, from the cache as far as they are there.

    Args:
        rows: prompts in the shared form.
        name: of the chunks, and part of their seed.
        done: called with the number of prompts after each chunk.
    """
    size = max(1, drawing.sampling.batch_size // drawing.sampling.k)
    parts: list[Rollouts] = []
    for start in range(0, len(rows), size):
        chunk = list(rows[start : start + size])
        label = [drawing.sampling.seed, int.from_bytes(name.encode(), "big") % 2**31, start]
        seed = int(np.random.SeedSequence(label).generate_state(1, np.uint64)[0]) >> 1
        tensors, _ = cache.once(
            f"{name}-{start:06d}", lambda chunk=chunk, seed=seed: (_draw(drawing, chunk, verify, seed), {})
        )
        parts.append(_unpacked(tensors))
        done(len(chunk))
    width = max(part.ids_PKC.shape[2] for part in parts)
    return cat_tensors([_padded(part, width) for part in parts])


def _draw(drawing: Drawing, rows: list[Mapping[str, Any]], verify: Verifier, seed: int) -> Tensors:
    sampler, sampling = drawing.sampler, drawing.sampling
    prompts = [encode(sampler.tokenizer, row["prompt"], sampling.template) for row in rows]
    wanted = [prompt for prompt in prompts for _ in range(sampling.k)]
    responses: list[list[int]] = []
    for number, start in enumerate(range(0, len(wanted), sampling.batch_size)):
        responses += sampler.draw(wanted[start : start + sampling.batch_size], sampling, seed + number)
    texts = sampler.tokenizer.batch_decode(responses, skip_special_tokens=True)
    said = [Completion(text, len(ids), False) for text, ids in zip(texts, responses, strict=True)]
    grouped = {place: said[place * sampling.k : (place + 1) * sampling.k] for place in range(len(rows))}
    scores = [result.scores for result in verify_samples(rows, grouped, verify)]
    tensors: Tensors = {
        "rewards": torch.tensor([[float("nan") if score is None else score for score in row] for row in scores]),
        "ids": pad_right(responses, -1).view(len(rows), sampling.k, -1),
    }
    first = [place * sampling.k + f for place in range(len(rows)) for f in range(drawing.captured)]
    pairs = [(wanted[index], responses[index]) for index in first]
    parts = [_score(drawing, pairs[i : i + drawing.score_batch]) for i in range(0, len(pairs), drawing.score_batch)]
    for name, scored in cat_tensors(parts).items() if parts else ():
        tensors[name] = scored.view(len(rows), drawing.captured, -1)
    return tensors


@torch.no_grad()
def _score(drawing: Drawing, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensors:
    """One scoring forward over (prompt, response) pairs: states, entropies and norm proxies, row by row."""
    model = drawing.sampler.model.eval()
    layout, inputs = batch_of(pairs, model.device)
    with ExitStack() as stack:
        captured = {
            view: stack.enter_context(_capture(model, view, drawing.end_of_reasoning).armed(layout))
            for view in drawing.views
        }
        logits_BCV = model(**inputs, use_cache=False).logits[:, layout.prompt_ids_BP.shape[1] - 1 : -1]
    tensors: Tensors = {}
    for view, states in captured.items():
        tensors[f"prompt.{key_of(view)}"], tensors[f"reasoning.{key_of(view)}"] = states.prompt_BH, states.reasoning_BH
    entropy_BC = token_entropy(logits_BCV, drawing.sampling.temperature)
    tensors["entropy"] = layout.entropy_features(entropy_BC, drawing.end_of_reasoning)
    tensors["proxies"] = norm_proxies(logits_BCV / drawing.sampling.temperature, layout)
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def norm_proxies(logits_BCV: Tensor, layout: TokenLayout) -> Tensor:
    """What one forward pass says about a rollout's squared gradient norm, (B, 4) by `PROXIES`.

    Σ_t (1 − π_t)²; Σ_t ‖e − π‖² = Σ_t (1 − 2π_t + Σ_v π_v²), the squared gradient with respect to the logits;
    −Σ_t log π_t; and the number of tokens.
    """
    mask_BC, log_p_BCV = layout.response_mask_BC, logits_BCV.float().log_softmax(-1)
    taken_BC = log_p_BCV.gather(2, layout.response_ids_BC[..., None].clamp_min(0))[..., 0]
    pi_BC, square_BC = taken_BC.exp(), log_p_BCV.mul(2).exp().sum(-1)
    columns = ((1 - pi_BC).square(), 1 - 2 * pi_BC + square_BC, -taken_BC, torch.ones_like(pi_BC))
    return torch.stack([torch.where(mask_BC, column, 0.0).sum(1) for column in columns], dim=1)


def batch_of(pairs: Sequence[tuple[list[int], list[int]]], device: Any) -> tuple[TokenLayout, dict[str, Tensor]]:
    """Prompts padded on the left, responses on the right: the layout, and the model's inputs."""
    prompt_BP = pad_right([prompt[::-1] for prompt, _ in pairs], -1).flip(1).to(device)
    response_BC = pad_right([response for _, response in pairs], -1).to(device)
    layout = TokenLayout.padded(prompt_BP.clamp_min(0), prompt_BP >= 0, response_BC.clamp_min(0), response_BC >= 0)
    mask_BT = torch.cat([layout.prompt_mask_BP, layout.response_mask_BC], dim=1).long()
    ids_BT = torch.cat([layout.prompt_ids_BP, layout.response_ids_BC], dim=1)
    return layout, {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(1) - 1).clamp_min(0),
    }


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of unequal length as one tensor, at least one column wide."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *([fill] * (width - len(row)))] for row in rows])


def _capture(model: Any, view: View, end_of_reasoning: tuple[int, ...]) -> StateCapture:
    return StateCapture(model, StateSpec(view[0], view[0], view[1], end_of_reasoning))


def _unpacked(tensors: Tensors) -> Rollouts:
    states = {
        part: {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        for part in ("prompt", "reasoning")
    }
    none_PFE = tensors["rewards"].new_zeros(len(tensors["rewards"]), 0, 0)
    return Rollouts(
        tensors["rewards"],
        tensors["ids"],
        states["prompt"],
        states["reasoning"],
        tensors.get("entropy", none_PFE),
        tensors.get("proxies", none_PFE),
    )


def _padded(part: Rollouts, width: int) -> Rollouts:
    missing = width - part.ids_PKC.shape[2]
    return replace(part, ids_PKC=torch.nn.functional.pad(part.ids_PKC, (0, missing), value=-1))
