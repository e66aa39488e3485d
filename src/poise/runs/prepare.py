"""Preparation: settings resolved to everything a run needs, and checked, before weights are loaded or files written."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from poise.core import READ_STATES, decoder_blocks, resolve_layer
from poise.errors import ConfigError
from poise.runs.configfile import differences
from poise.runs.plan import Plan, make_plan
from poise.runs.policy import Policy, forward_dtype, look_at, lora, refuse_attention, refuse_lora_targets
from poise.runs.presets import decided
from poise.runs.prompts import (
    Prompts,
    answers_as_text,
    load_prompts,
    load_rewards,
    reward_names,
    task_options,
    try_rewards,
)
from poise.runs.settings import ModelSettings, TrainSettings


@dataclass
class Prepared:
    """Everything a run needs, checked, with no weights loaded yet."""

    settings: TrainSettings
    plan: Plan
    policy: Policy
    prompts: Prompts
    reward_names: tuple[str, ...]
    rewards: list[Callable[..., Any]]
    layers: tuple[int, int]
    depth: int
    notes: list[str]

    def describe(self) -> list[tuple[str, str]]:
        """The run in words: (what, how much)."""
        settings, parameters = self.settings, sum(p.numel() for p in self.policy.skeleton.parameters())
        held_out = len(self.prompts.held_out) if self.prompts.held_out is not None else 0
        trained = f"LoRA rank {settings.model.lora_rank}" if settings.model.lora_rank else "all weights"
        precision = forward_dtype(settings.model)
        return [
            ("model", f"{settings.model.model}: {parameters:,} parameters, {trained} trained, {precision}"),
            ("baseline", str(settings.poise.baseline)),
            ("layers", self.describe_layers()),
            ("prompts", f"{len(self.prompts.train)} for training, {held_out} held out"),
            ("reward", ", ".join(self.reward_names)),
            *self.plan.describe(),
            ("capture", self.describe_capture()),
            ("run folder", settings.run.out),
        ]

    def describe_layers(self) -> str:
        prompt, reasoning = self.layers
        return f"states of block {prompt} (prompt) and {reasoning} (reasoning) of {self.depth}"

    def describe_capture(self) -> str:
        """Where the trainer will read the states, by the same rule as its own."""
        if self.settings.poise.baseline not in READ_STATES:
            return "none: this baseline needs no states"
        if self.settings.poise.capture == "auto":
            if self.plan.updates_per_step > 1 or self.settings.generation.vllm:
                return "old: inside the old log-prob forward pass"
            if self.plan.micro_batch % self.plan.rollouts_per_prompt == 0:
                return "train: inside the training forward pass"
        return "extra: one more forward pass per step"


def prepare(settings: TrainSettings) -> Prepared:
    """Resolves model, prompts, rewards and batch geometry, and tries the rewards on one row.

    Raises:
        ConfigError: whatever of it cannot work.
    """
    settings = decided(settings)
    plan = make_plan(settings, devices=int(os.environ.get("WORLD_SIZE", "1")))
    for tracker in settings.run.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"--report-to {tracker} needs the package {tracker}: pip install {tracker}")
    if settings.generation.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError("--vllm needs the package vllm: pip install 'poise-rl[vllm]'")
    refuse_attention(settings.model)
    if settings.poise.baseline == "critic" and settings.model.lora_rank:
        raise ConfigError(
            "--baseline critic trains a whole copy of the policy: leave out --lora-rank, or choose another baseline"
        )
    names = reward_names(settings.reward, settings.data)
    policy = look_at(settings.model)
    depth = len(decoder_blocks(policy.skeleton))
    layers = resolve_layer(settings.poise.prompt_layer, depth), resolve_layer(settings.poise.reasoning_layer, depth)
    prompts = load_prompts(settings.data, plan.prompts, settings.run.seed, policy.tokenizer)
    if len(prompts.train) < plan.prompts_per_step:
        raise ConfigError(
            f"{len(prompts.train)} training prompts are fewer than the {plan.prompts_per_step} of one step; "
            "give more prompts, or a smaller --prompts-per-step"
        )
    rewards = load_rewards(names, prompts)
    try_rewards(names, rewards, prompts.train)
    lora(settings.model, depth)
    refuse_lora_targets(settings.model, policy.skeleton)
    notes = [
        *prompts.notes,
        *answers_as_text(prompts.train, task_options(settings.data), names),
        *_beyond_context(settings, policy, prompts),
        *_unused_adapters(settings),
    ]
    return Prepared(settings, plan, policy, prompts, names, rewards, layers, depth, notes)


def _unused_adapters(settings: TrainSettings) -> list[str]:
    """A sentence if adapters are described, and none are trained."""
    given = [key for key in differences(ModelSettings(), settings.model) if key.startswith("lora_")]
    if settings.model.lora_rank or not given:
        return []
    return [f"{', '.join(given)} have no effect: --lora-rank is 0, so all weights are trained"]


def _beyond_context(settings: TrainSettings, policy: Policy, prompts: Prompts) -> list[str]:
    """A sentence if the longest rollouts would be longer than what the model was made for.

    Raises:
        ConfigError: its positions are learned, so that it has none beyond.
    """
    room = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    longest, completion = prompts.longest, settings.generation.max_completion_tokens
    if room is None or longest + completion <= room:
        return []
    sentence = (
        f"prompts of up to {longest} tokens and completions of up to {completion} are longer than the model's context "
        f"of {room}; lower --max-completion-tokens or --max-prompt-tokens"
    )
    skeleton: Any = policy.skeleton
    tables = [part for part in skeleton.modules() if isinstance(part, nn.Embedding)]
    words = skeleton.get_input_embeddings()
    if any(table is not words and room <= table.num_embeddings <= room + 2 for table in tables):  # OPT's begins at 2
        raise ConfigError(sentence)
    return [sentence]
