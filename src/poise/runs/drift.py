"""How far the policy moves: the norm of every update, and distance and KL divergence from where the run started.

Two methods that learn at different speeds may differ in the direction of their updates or only in their size. Both are
told apart by measuring the size, and by giving every update the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.runs.plan import Plan
from poise.runs.settings import TrainSettings

# Rollouts of the step whose contexts the KL divergence is averaged over.
_ROLLOUTS = 64


class Drift(TrainerCallback):
    """Sets the norm of updates, and logs what `measure_drift` asks for.

    Logged under poise/: update_norm, mean over the step's updates; with each evaluation drift_norm = ‖θ − θ₀‖ and
    kl_start, the mean over response tokens of KL(π_θ ‖ π_θ₀) in nats, full vocabulary at the sampling temperature, at
    the contexts of the step's own rollouts.

    Args:
        trainer: before its first step, so that its model is the start.
        settings: `optimisation.update_norm` and `evaluation.measure_drift`.
        plan: says where a step ends.
    """

    def __init__(self, trainer: Any, settings: TrainSettings, plan: Plan) -> None:
        self.trainer, self.settings, self.plan = trainer, settings, plan
        is_measured = settings.evaluation.measure_drift
        self.start = {name: now.detach().clone() for name, now in trained(trainer.model).items()} if is_measured else {}
        self._before: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before = {name: now.detach().clone() for name, now in trained(self.trainer.model).items()}

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        parameters = trained(self.trainer.model)
        norm = distance(parameters, self._before)
        if self.settings.optimisation.update_norm and norm > 0:
            share = kwargs["lr_scheduler"].get_last_lr()[0] / args.learning_rate  # warm-up and decay
            wanted = self.settings.optimisation.update_norm * share
            for name, before in self._before.items():
                parameters[name].copy_(before + (parameters[name] - before) * (wanted / norm))
            norm = wanted
        self._before = {}
        if self.start:
            self._log("update_norm", norm)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.start or state.global_step % self.plan.updates_per_step:
            return
        step, every = state.global_step // self.plan.updates_per_step, self.settings.evaluation.eval_every
        if step == self.plan.steps or (every and step % every == 0):
            self._log("drift_norm", distance(trained(self.trainer.model), self.start))
            self._log("kl_start", self._kl())

    def _kl(self) -> float:
        chunk = self.trainer._buffered_inputs[0]
        ids = torch.cat([chunk["prompt_ids"], chunk["completion_ids"]], 1)[:_ROLLOUTS]
        mask = torch.cat([chunk["prompt_mask"], chunk["completion_mask"]], 1)[:_ROLLOUTS]
        response = chunk["completion_mask"][:_ROLLOUTS]
        model, was_training = self.trainer.model, self.trainer.model.training
        model.eval()
        try:
            now, start = (self._log_p(weights, ids, mask, response.shape[1]) for weights in ({}, self.start))
        finally:
            model.train(was_training)
        kl_BT = (now.exp() * (now - start)).sum(-1)
        return float((kl_BT * response).sum() / response.sum())

    @torch.no_grad()
    def _log_p(self, weights: dict[str, Tensor], ids: Tensor, mask: Tensor, width: int) -> Tensor:
        """Log-probabilities of the policy, with these weights in place of its own."""
        out = functional_call(self.trainer.model, weights, (), {"input_ids": ids, "attention_mask": mask})
        return (out.logits[:, -width - 1 : -1].float() / self.settings.generation.temperature).log_softmax(-1)

    def _log(self, name: str, value: float) -> None:
        self.trainer._metrics["train"][f"poise/{name}"].append(value)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are updated, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def distance(these: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference of two sets of tensors, as one vector.

    >>> distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    5.0
    """
    squares = [(these[name].detach() - that).double().square().sum() for name, that in those.items()]
    return float(torch.stack(squares).sum().sqrt())
