"""The frozen policy of a study and its prompts, from settings; whatever can be wrong cheaply is found first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poise.core import decoder_blocks, resolve_layer
from poise.errors import ConfigError
from poise.eval.command import EvalConfig, load_sampler
from poise.eval.sampling import HFSampler, Sampling, encode
from poise.lab.rollouts import Drawing, View
from poise.lab.settings import PolicySettings
from poise.rewards import Verifier
from poise.runs.prompts import at_most, judged
from poise.tasks import named_options

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Prompts of both splits and what verifies them.

    Args:
        train: prompts that probe and critics learn on.
        held_out: prompts that the study is about.
    """

    train: list[Row]
    held_out: list[Row]
    verify: Verifier

    @property
    def domains(self) -> list[str]:
        """Domain of each held-out prompt."""
        return [domain_of(row) for row in self.held_out]

    @property
    def fingerprint(self) -> str:
        """A hash of both splits in their order, with everything that a reward may read off a row."""
        splits = [[dict(row) for row in split] for split in (self.train, self.held_out)]
        text = json.dumps(splits, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def domain_of(row: Row) -> str:
    """Name of a row's domain."""
    return str(row.get("domain") or "default")


@dataclass(frozen=True)
class FrozenPolicy:
    """A policy that nothing trains, with the layers that its settings name."""

    sampler: HFSampler
    end_of_reasoning: tuple[int, ...]
    depth: int
    prompt: View
    reasoning: View
    template: Mapping[str, Any]

    def encode(self, row: Row) -> list[int]:
        """Token ids of a row's prompt, as they are sampled from."""
        return encode(self.sampler.tokenizer, row["prompt"], self.template)

    @property
    def model(self) -> Any:
        return self.sampler.model

    def drawing(self, settings: PolicySettings, k: int, captured: int, views: tuple[View, ...]) -> Drawing:
        """How `k` rollouts of each prompt are drawn, the first `captured` of them scored."""
        sampling = Sampling(
            k=k,
            temperature=settings.temperature,
            top_p=1.0,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=settings.seed,
            template=self.template,
        )
        return Drawing(self.sampler, sampling, views, self.end_of_reasoning, captured, settings.score_batch)


def numbered(prompts: Prompts) -> dict[str, int]:
    """A number for each domain of either split."""
    names = sorted({domain_of(row) for row in (*prompts.train, *prompts.held_out)})
    return {name: number for number, name in enumerate(names)}


def domains_of(prompts: Prompts) -> Tensor:
    """Number of each held-out prompt's domain."""
    number_of = numbered(prompts)
    return torch.tensor([number_of[name] for name in prompts.domains])


def keep(prompts: Prompts, known_P: Tensor) -> Prompts:
    """Without the held-out prompts that are not known."""
    chosen = [row for row, known in zip(prompts.held_out, known_P.tolist(), strict=True) if known]
    return replace(prompts, held_out=chosen)


def load_prompts(settings: PolicySettings, train: int, held_out: int) -> Prompts:
    """Both splits of the task.

    Raises:
        ConfigError: the task, a split, an option or the reward does not exist, or a split has too few prompts.
    """
    options = named_options("task", settings.task_options)
    found: list[list[Row]] = []
    for split, size in (("train", train), ("test", held_out)):
        dataset = at_most(settings.task, split, size, settings.seed, options)
        dataset, verify, _ = judged(dataset, settings.task, settings.reward, settings.reward_weights)
        rows = list(dataset)
        if len(rows) < size:
            held_out_flag = "--held-out-prompts" if hasattr(settings, "held_out_prompts") else "--prompts"
            raise ConfigError(
                f"the {split} split of {settings.task!r} has {len(rows)} prompts, and {size} are asked for; lower "
                f"{'--train-prompts' if split == 'train' else held_out_flag}"
            )
        found.append(rows)
    return Prompts(found[0], found[1], verify)


def load_policy(settings: PolicySettings) -> FrozenPolicy:
    """Model, tokenizer and layers.

    Raises:
        ConfigError: the model cannot be loaded, or has no such layer.
    """
    config = EvalConfig(model=settings.model, revision=settings.revision, dtype=settings.dtype, device=settings.device)
    sampler = load_sampler(config)
    assert isinstance(sampler, HFSampler)
    sampler.model.eval()
    depth = len(decoder_blocks(sampler.model))
    views = [
        (resolve_layer(layer, depth), settings.state_window)
        for layer in (settings.prompt_layer, settings.reasoning_layer)
    ]
    template = named_options("template", settings.template_options)
    end = settings.end_of_reasoning
    ids = sampler.tokenizer.encode(end, add_special_tokens=False) if end else []
    unknown = getattr(sampler.tokenizer, "unk_token_id", None)
    return FrozenPolicy(sampler, () if unknown in ids else tuple(ids), depth, views[0], views[1], template)
