"""PoiseTrainer: TRL's GRPOTrainer with the value baseline that the policy already computes.

    prompts -> rollouts -> rewards -> [credit] -> advantages -> policy update -> [probe refit]
                     \\-> internal states, read off a forward pass that TRL runs anyway -/

What it overrides of GRPOTrainer is here; how states are captured is in `capture`, which rollouts leave the loss in
`batch`, what is logged in `step_log`, what is saved in `checkpoint`.
"""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from poise.core import Credit, Rollouts, ValueEstimator, whiten
from poise.errors import CaptureError, RewardError
from poise.trl import checkpoint, contract
from poise.trl.batch import broadcast, domains_of, keep_groups_together, leave_out
from poise.trl.capture import Captured, CaptureMode, ForwardCapture
from poise.trl.config import PoiseConfig
from poise.trl.critic import CriticLearner
from poise.trl.dynamic import DynamicSampling
from poise.trl.fresh import FreshSampler
from poise.trl.guard import RewardGuard, mark_failed_models, total_rewards
from poise.trl.options import refuse_device, refuse_too_few_prompts, refuse_wrong_columns
from poise.trl.prompts import SeededByEpoch, prompt_ids
from poise.trl.step_log import StepLog
from poise.trl.token_sample import TokenSample
from poise.trl.windows import WholeWindows


class PoiseTrainer(GRPOTrainer):
    """Drop-in for `trl.GRPOTrainer`; takes the same arguments.

    Args:
        model, reward_funcs, args, ...: as in GRPOTrainer. A plain GRPOConfig is adopted: what it left at its default
            takes POISE's default (see `PoiseConfig.adopt`).

    A reward function may return None where it does not apply. A rollout to which none applies, or whose reward is NaN,
    raises or times out, leaves the update and the probe's buffer, and is counted under `poise/failed`.

    Raises:
        ConfigError: a setting that would bias the gradient, fewer prompts than one batch has, or a TRL release this was
            not built on.
        RewardError: a reward cannot be called with the dataset's columns, or no rollout got one for
            `max_failed_batches` generation batches in a row.

    Source: paper Algorithm 1.
    """

    _tag_names = ["trl", "poise"]  # noqa: RUF012 (TRL's attribute)
    _name = "POISE"
    _paper = {  # noqa: RUF012 (TRL's attribute)
        "title": "Policy Optimization with Internal State Value Estimation",
        "id": "2605.07579",
        "citation": textwrap.dedent("""\
            @article{poise2026,
                title         = {{Policy Optimization with Internal State Value Estimation}},
                year          = 2026,
                eprint        = {arXiv:2605.07579},
            }"""),
    }

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *positional: Any, **keywords: Any
    ) -> None:
        contract.check()
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = PoiseConfig(f"{Path(name or 'model').name}-POISE")
        args = PoiseConfig.adopt(args)
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, list) else reward_funcs  # TRL adds to the list
        super().__init__(model, reward_funcs, args, *positional, **keywords)
        refuse_device(args.chosen_baseline, self.accelerator.device)
        self._guard = RewardGuard(args.reward_timeout)
        self.reward_funcs = [self._guard.wrap(function) for function in self.reward_funcs]
        refuse_wrong_columns(args, self.train_dataset, self.environment_factories is not None)
        refuse_too_few_prompts(args, self.train_dataset)

        self._capture = ForwardCapture(self)
        self.estimator = ValueEstimator(
            args.estimator(),
            self._capture.identity(),
            is_main=self.accelerator.is_main_process,
            broadcast=partial(broadcast, accelerator=self.accelerator),
        )
        self._windows = WholeWindows(self)
        self.token_sample: TokenSample | None = None  # set it to look at token entropies
        self.fresh_values: FreshSampler | None = None  # set it to compare baselines with fresh rollouts
        self.step_log = StepLog(self)
        self.critic = CriticLearner(self) if args.chosen_baseline == "critic" else None
        self.dynamic = DynamicSampling(self, args.max_sampling_rounds) if args.dynamic_sampling else None
        self._parts: list[tuple[Credit, Tensor]] = []
        self.failed_batches = 0  # in a row, as of the last generation batch

    @property
    def window(self) -> int:
        """Micro-batches from one generation to the next."""
        return self.args.steps_per_generation * self.num_iterations

    @property
    def capture_mode(self) -> CaptureMode:
        """Which forward pass the internal states are read off."""
        return self._capture.mode

    # --- capture ------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self._capture.read(super()._get_per_token_logps_and_entropies, *args, **kwargs)

    # --- generate, verify ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> SeededByEpoch:
        return SeededByEpoch(super()._get_train_sampler(dataset), begun=lambda: int(self.state.epoch or 0))

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        generated = super()._generate(*args, **kwargs)
        if self.model.training:
            self._capture.written = generated[2]  # TRL's tool mask
        return generated

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards_BF = super()._calculate_rewards(*args, **kwargs)  # gathered over ranks, in sampler order
        rewards_BF = mark_failed_models(rewards_BF, self.reward_funcs)
        self._rewards_B, clean_BF = total_rewards(rewards_BF, self.reward_weights)
        self.step_log.sampled_rollouts += len(rewards_BF) if self.model.training else 0
        return clean_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            self.step_log.evaluated(len(self._rewards_B))
            return output
        captured: list[Captured] = []
        with self._capture.listening(captured.append if self.capture_mode == "old" else None):
            inputs, output, filler_B = self._sampled(inputs)
        rows = len(output["advantages"])
        row_B = torch.arange(rows, device=output["advantages"].device) + rows * self.accelerator.process_index
        domains_B = domains_of(inputs, self.args.domain_column, row_B.device)
        leave_out(output, self._rewards_B[row_B].isnan() | filler_B, self.accelerator.gather)
        if self.capture_mode == "train":  # credited in `_compute_loss`, whose forward pass sees the states
            output |= {"poise_row": row_B, "poise_reward": self._rewards_B[row_B], "poise_domain": domains_B}
            output["advantages"] = torch.full_like(output["advantages"], torch.nan)
            return output
        if self.capture_mode == "old" and not captured:
            raise CaptureError("TRL computed no old log-probs in a layout where it should; is its rule unchanged?")
        if self.capture_mode == "extra":
            captured = [self._capture.extra_forward(output)]
        self._credit_batch(output, row_B, domains_B, captured[0] if captured else None)
        return output

    def _sampled(self, inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], Tensor]:
        """The batch to train on: its dataset rows, what TRL made of them, and which rollouts only fill it."""
        generate = super()._generate_and_score_completions
        if self.dynamic is None:
            self.step_log.sample_fresh(self.fresh_values, inputs)
            output = generate(inputs)
            return inputs, output, torch.zeros_like(output["advantages"], dtype=torch.bool)
        filled = self.dynamic.fill(inputs, generate)
        self._rewards_B = filled.rewards_B
        self.step_log.note(filled.metrics)
        return filled.inputs, filled.output, ~filled.kept_B

    # --- credit: a whole batch at once, before it is split --------------------------------------------------------

    def _credit_batch(self, output: dict[str, Any], row_B: Tensor, domains_B: Tensor, seen: Captured | None) -> None:
        self._capture.keep_tokens(row_B, self.token_sample)
        gather = self.accelerator.gather
        valued = self.critic.value(output, self._rewards_B[row_B]) if self.critic is not None else None
        rollouts = Rollouts(
            self._rewards_B,
            groups_B=torch.arange(len(self._rewards_B), device=row_B.device) // self.num_generations,
            features=seen.features.map(gather) if seen is not None else None,
            domains_B=gather(domains_B),
            weights_B=gather(seen.weights_B) if seen is not None else None,
            prompts_B=gather(prompt_ids(output)) if self.args.chosen_baseline == "tracker" else None,
            values_B=gather(valued.values_BT[:, 0]) if valued is not None else None,
        )
        credit = self.estimator.credit(rollouts)
        advantages_B = credit.advantages_B
        if self.critic is not None and valued is not None:
            output["advantages"] = valued.advantages_BT
            self.step_log.note(self.critic.learn(output, valued))
        elif self.args.chosen_baseline != "group-mean":  # there TRL's own advantages stand, scaling included
            if self.args.whiten_advantages:
                advantages_B = whiten(advantages_B, credit.used_B)
            output["advantages"] = advantages_B[row_B].to(output["advantages"])
        self._close_window(credit, advantages_B)

    # --- credit: micro-batch by micro-batch, inside the training forward ------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.capture_mode != "train" or not self.model.training or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = keep_groups_together(self._buffered_inputs, self.num_generations)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.capture_mode != "train" or not self.model.training or inputs["poise_credited"]:
            return super()._compute_loss(model, inputs)
        with self._capture.listening(partial(self._credit_micro_batch, inputs), inputs["poise_row"]):
            loss = super()._compute_loss(model, inputs)
        if not inputs["poise_credited"]:
            raise CaptureError("TRL computed a loss without the forward pass that carries the internal states")
        return loss

    def _credit_micro_batch(self, inputs: dict[str, Any], seen: Captured) -> None:
        """Runs after the training forward and before the loss reads `inputs["advantages"]`."""
        row_B = inputs["poise_row"]
        self._capture.keep_tokens(row_B, self.token_sample)
        groups_B = row_B // self.num_generations
        credit = self.estimator.credit(
            Rollouts(inputs["poise_reward"], groups_B, seen.features, inputs["poise_domain"], seen.weights_B)
        )
        inputs["advantages"] = credit.advantages_B.to(inputs["advantages"])
        inputs["poise_credited"] = True
        self._parts.append((credit, row_B))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.step_log.note_sampled()
        if self._parts and self._step % self.window == 0:
            credit = Credit.cat([part for part, _ in self._parts])
            order_B = self.accelerator.gather(torch.cat([row_B for _, row_B in self._parts])).argsort()
            self._parts = []
            credit = credit.map(lambda tensor: self.accelerator.gather(tensor)[order_B])
            self._close_window(credit, credit.advantages_B)
        return loss

    # --- update -------------------------------------------------------------------------------------------------

    def _close_window(self, credit: Credit, advantages_B: Tensor) -> None:
        """The whole batch is credited, on every rank alike: learn from it, and log it with the advantages it got."""
        metrics = self.estimator.update(credit)
        self.step_log.note({**metrics, "capture_seconds": self._capture.take_seconds()})
        self.step_log.credited(credit, advantages_B)
        self.failed_batches = 0 if bool(credit.rewards_B.isfinite().any()) else self.failed_batches + 1
        if self.failed_batches >= self.args.max_failed_batches:
            raise RewardError(
                f"no rollout of the last {self.failed_batches} generation batches got a reward; the last failure: "
                f"{self._guard.last_failure}"
            )

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._windows.postpone(self.control)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with checkpoint.written(folder):
            if self.args.should_save:
                checkpoint.save_into(folder, self)
            super()._save_checkpoint(model, trial)  # trainer_state.json last: without it a checkpoint is incomplete

    def _load_optimizer_and_scheduler(self, checkpoint_path: Any) -> None:
        if checkpoint_path is not None:
            checkpoint.load_from(Path(checkpoint_path), self)
        super()._load_optimizer_and_scheduler(checkpoint_path)
