"""The critic of PPO: a copy of the policy with a scalar head, trained on the same rollouts.

    rollouts --value--> V(s_t) before each response token --gae--> advantages A_t, returns R_t --> policy update
                                                                        \\--learn--> the critic, towards R_t

The values that credit a batch are those of the critic before it learns from it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise.core import gae, load_state, prediction_metrics, save_state, whiten
from poise.errors import ConfigError

CRITIC_FILE = "critic.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Critic(nn.Module):
    """The policy's decoder with a linear head, in float32; the head starts at zero, and so do the values."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(policy.get_decoder()).float()
        weight = next(self.trunk.parameters())
        self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """V(s) after each token of (B, L)."""
        hidden_BLH = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.head(hidden_BLH.float())[..., 0]


@dataclass(frozen=True)
class Valued:
    """A batch as the critic saw it before learning from it, in tokens of the response.

    Args:
        values_BT, returns_BT: V(s_t), and what it should have been.
        advantages_BT: of each token; 0 where it leaves the loss.
        used_BT: the policy's own tokens of rollouts that have a reward.
    """

    values_BT: Tensor
    returns_BT: Tensor
    advantages_BT: Tensor
    used_BT: Tensor


class CriticLearner:
    """Values batches for PPO and learns from them.

    Args:
        trainer: a PoiseTrainer whose policy is loaded and not yet wrapped.

    Its updates follow the policy's: as many for each batch, over as many rollouts, in micro-batches of the same size.
    AdamW with the policy's betas, weight decay and gradient clipping, and a constant learning rate of its own.

    Raises:
        ConfigError: FSDP, DeepSpeed, LoRA or a vision model.

    Source: PPO, arXiv 1707.06347; on language models with a reward for the whole response, arXiv 2203.02155. λ = 1 and
    a critic learning rate of 1e-5 are verl's defaults; λ = γ = 1 is also Open-Reasoner-Zero's (arXiv 2503.24290).
    """

    def __init__(self, trainer: Any) -> None:
        _refuse(trainer)
        self.trainer, self.args = trainer, trainer.args
        self.critic = Critic(trainer.accelerator.unwrap_model(trainer.model))
        self.critic.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.critic.parameters(),
            lr=self.args.critic_learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            weight_decay=self.args.weight_decay,
        )
        self.batches = 0

    # --- value --------------------------------------------------------------------------------------------------

    def value(self, output: dict[str, Any], rewards_B: Tensor) -> Valued:
        """Values, advantages and returns of a generated batch, from the critic as it stands.

        Args:
            output: TRL's generated batch.
            rewards_B: of its rows; NaN where verification failed.
        """
        self.critic.eval()
        with torch.no_grad():
            values_BT = torch.cat([self._values(output, rows_B) for rows_B in self._micro_batches(len(rewards_B))])
        used_BT = (output["completion_mask"] * output.get("tool_mask", 1)).bool() & rewards_B.isfinite()[:, None]
        advantages_BT = gae(values_BT, rewards_B.nan_to_num(0.0), used_BT, self.args.gae_lambda)
        returns_BT = advantages_BT + values_BT
        if self.args.whiten_advantages:
            advantages_BT = self._whitened(advantages_BT, used_BT)
        return Valued(values_BT, returns_BT, advantages_BT, used_BT)

    def _values(self, output: dict[str, Any], rows_B: Tensor) -> Tensor:
        """V(s_t) before each response token: read where the token before it stands."""
        ids = torch.cat([output["prompt_ids"][rows_B], output["completion_ids"][rows_B]], dim=1)
        mask = torch.cat([output["prompt_mask"][rows_B], output["completion_mask"][rows_B]], dim=1)
        with self.trainer.accelerator.autocast():
            values_BL = self.critic(ids, mask)
        return values_BL[:, output["prompt_ids"].shape[1] - 1 : -1].float()

    def _micro_batches(self, rows: int) -> tuple[Tensor, ...]:
        return torch.arange(rows).split(self.args.per_device_train_batch_size)

    def _whitened(self, advantages_BT: Tensor, used_BT: Tensor) -> Tensor:
        """Over the tokens of all processes."""
        accelerator, (rows, width) = self.trainer.accelerator, advantages_BT.shape
        everyone = [
            accelerator.gather(accelerator.pad_across_processes(each, dim=1)) for each in (advantages_BT, used_BT)
        ]
        first = rows * accelerator.process_index
        return whiten(*everyone)[first : first + rows, :width]

    # --- learn --------------------------------------------------------------------------------------------------

    def learn(self, output: dict[str, Any], valued: Valued) -> dict[str, float]:
        """Fit V(s_t) to the batch's returns.

            L = ½ mean_t (V(s_t) − R_t)², or with clipping ½ mean_t max[(V − R)², (clip(V, V_old ± c) − R)²]

        Returns:
            critic_loss (before each update, averaged), critic_grad_norm, critic_seconds, and critic_explained_variance
            of the returns by the values that credited the batch.
        """
        began = time.perf_counter()
        self.critic.train()
        losses: list[float] = []
        norms: list[float] = []
        for rows_B in self._updates(len(valued.values_BT)):
            loss, norm = self._update(output, valued, rows_B)
            losses.append(loss)
            norms.append(norm)
        self.batches += 1
        used = valued.used_BT
        agreement = prediction_metrics(valued.values_BT[used], valued.returns_BT[used])
        return {
            "critic_loss": sum(losses) / len(losses),
            "critic_grad_norm": sum(norms) / len(norms),
            "critic_explained_variance": agreement["explained_variance"],
            "critic_seconds": time.perf_counter() - began,
        }

    def _updates(self, rows: int) -> Iterator[Tensor]:
        """Rows of each update: shares of the size the policy's updates have, dealt from a seeded order."""
        draw = torch.Generator().manual_seed(self.args.seed + self.batches)
        share = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        for _ in range(self.trainer.num_iterations):
            yield from torch.randperm(rows, generator=draw).split(min(rows, share))

    def _update(self, output: dict[str, Any], valued: Valued, rows_B: Tensor) -> tuple[float, float]:
        accelerator = self.trainer.accelerator
        tokens = accelerator.reduce(valued.used_BT[rows_B].sum(), reduction="sum").clamp_min(1)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=valued.values_BT.device)
        for part_B in rows_B.split(self.args.per_device_train_batch_size):
            error_BT = self._squared_error(self._values(output, part_B), valued, part_B)
            loss = 0.5 * (error_BT * valued.used_BT[part_B]).sum() / tokens
            loss.backward()
            total += loss.detach()
        parameters = list(self.critic.parameters())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")
        norm = nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(accelerator.reduce(total, reduction="sum")), float(norm)

    def _squared_error(self, values_BT: Tensor, valued: Valued, rows_B: Tensor) -> Tensor:
        old_BT, returns_BT = valued.values_BT[rows_B], valued.returns_BT[rows_B]
        error_BT = (values_BT - returns_BT).square()
        if self.args.critic_clip is None:
            return error_BT
        clipped_BT = values_BT.clamp(old_BT - self.args.critic_clip, old_BT + self.args.critic_clip)
        return torch.maximum(error_BT, (clipped_BT - returns_BT).square())

    # --- state --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Weights, the optimiser's moments, and how many batches it has seen."""
        tensors = {f"weights.{name}": value for name, value in self.critic.named_parameters()}
        for name, parameter in self.critic.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS if moment in moments}
        held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_state(folder / CRITIC_FILE, {"tensors": held, "meta": {"batches": self.batches}})

    def load(self, folder: Path) -> None:
        """Continue from `save`."""
        state = load_state(folder / CRITIC_FILE)
        tensors, self.batches = state["tensors"], int(state["meta"]["batches"])
        for name, parameter in self.critic.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weights.{name}"])
            if f"step.{name}" in tensors:
                moments = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
                self.optimizer.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter) for moment, value in moments.items()
                }


def _refuse(trainer: Any) -> None:
    reasons = (
        (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled, "does not shard its critic: turn FSDP/DeepSpeed off"),
        (hasattr(trainer.model, "peft_config"), "trains a whole copy of the policy: turn LoRA off"),
        (trainer._is_vlm, "values text only, not images"),
    )
    for is_so, reason in reasons:
        if is_so:
            raise ConfigError(f"baseline='critic' {reason}, or choose another baseline")
