"""Three steps of rollouts that both adapters credit, and the estimator that each starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from capture_cases import END, rollouts_of
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from poise.core import EstimatorConfig, ProbeConfig, Rollouts, StateSpec, ValueEstimator

STEPS, PER_PROMPT = 3, 2
SPEC = StateSpec(prompt_layer=1, reasoning_layer=3, window=3, end_of_reasoning=END)
SOURCES = ["math", "math", "code", "code"] * 2
# As published; fitted with the rollouts' squared scores, seeing the sibling's outcome; and all that chooses itself.
_PROBE = ProbeConfig(prompt_components=2, reasoning_components=3, alpha=1.0)
_PUBLISHED = EstimatorConfig(probe=_PROBE, capacity=12, cold_start_rows=4)
ESTIMATORS = {
    "published": _PUBLISHED,
    "weighted": replace(_PUBLISHED, probe=replace(_PROBE, weights="score", sibling_outcome=True)),
    "prompt-probe": replace(_PUBLISHED, baseline="prompt-probe"),
    "auto": replace(_PUBLISHED, baseline="auto", probe=replace(_PROBE, weights="score", alpha=None)),
}


def save_model(folder: Path) -> None:
    """A random four-block Qwen3 whose token entropies differ."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, head_dim=8
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    model.save_pretrained(folder)


def rollouts_of_step(step: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Prompts, responses and rewards: four prompts of two rollouts each, one reward failed."""
    prompts, responses, _ = rollouts_of(step)
    rewards_B = (torch.arange(8) * (step + 2) % 5 < 2).float()
    rewards_B[step] = torch.nan
    return [prompts[row - row % PER_PROMPT] for row in range(8)], responses, rewards_B


def credited(rollouts_of: Callable[[int], Rollouts]) -> dict[str, list[dict[str, Tensor]]]:
    """For each estimator the steps one after the other: what each was credited with, before it was learnt from."""
    rollouts = [rollouts_of(step) for step in range(STEPS)]
    return {name: _credited(rollouts, config) for name, config in ESTIMATORS.items()}


def _credited(rollouts: list[Rollouts], config: EstimatorConfig) -> list[dict[str, Tensor]]:
    estimator, found = ValueEstimator(config, {}), []
    for step in rollouts:
        credit = estimator.credit(step)
        estimator.update(credit)
        names = ("baselines_B", "advantages_B", "predictions_B", "domains_B", "from_probe_B", "weights_B")
        found.append({name: getattr(credit, name) for name in names})
    return found
