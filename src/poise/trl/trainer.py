"""PoiseTrainer: TRL's GRPOTrainer with the value baseline that the policy already computes.

    prompts -> rollouts -> rewards -> [credit] -> advantages -> policy update -> [probe refit]
                     \\-> internal states, read off a forward pass that TRL runs anyway -/

Three places to read them (`capture_mode`), decided by the batch layout:
  old    TRL computes old log-probs anyway (several updates a batch, vLLM): there, whole batch at once
  train  it doesn't, and whole groups fit a micro-batch: inside the training forward, before the loss reads advantages
  extra  groups straddle micro-batches: one forward pass without gradient, the only layout that costs one
"""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import disable_gradient_checkpointing

from poise.core import (
    READ_STATES,
    Credit,
    Features,
    Rollouts,
    StateCapture,
    TokenLayout,
    ValueEstimator,
    domain_id,
    load_state,
    map_tensors,
    save_state,
    squared_score,
    whiten,
)
from poise.errors import CaptureError, RewardError
from poise.trl import contract
from poise.trl.config import PoiseConfig
from poise.trl.critic import CriticLearner
from poise.trl.dynamic import DynamicSampling
from poise.trl.fresh import FreshSampler, track_metrics
from poise.trl.guard import RewardGuard, total_rewards
from poise.trl.prompts import SeededByEpoch, prompt_ids
from poise.trl.token_sample import TokenSample
from poise.trl.windows import WholeWindows, keep_groups_together

logger = logging.getLogger(__name__)
CaptureMode = Literal["none", "old", "train", "extra"]
Captured = tuple[Features, Tensor]  # of a forward pass: each rollout's features, and its squared score
STATE_FILE = "poise.safetensors"


class PoiseTrainer(GRPOTrainer):
    """Drop-in for `trl.GRPOTrainer`; takes the same arguments.

    Args:
        model, reward_funcs, args, ...: as in GRPOTrainer. A plain GRPOConfig is adopted: what it left at its default
            takes POISE's default (see `PoiseConfig.adopt`).

    Rewards may be None (does not apply), NaN, raise or time out: such a rollout leaves the update and the probe's
    buffer, and is counted under `poise/failed`.

    Raises:
        ConfigError: a setting that would bias the gradient, or a TRL release this was not built on.
        RewardError: no rollout got a reward for `max_failed_batches` generation batches in a row.

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
        self._guard = RewardGuard(args.reward_timeout)
        if reward_funcs is not None:
            functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
            reward_funcs = [self._guard.wrap(function) for function in functions]
        super().__init__(model, reward_funcs, args, *positional, **keywords)

        self.capture_mode: CaptureMode = self._choose_capture_mode(args)
        self._capture = StateCapture(self.model, args.state_spec(self._end_of_reasoning(args)))
        self.estimator = ValueEstimator(
            args.estimator(),
            self._feature_identity(),
            is_main=self.accelerator.is_main_process,
            broadcast=self._broadcast,
        )
        self.add_callback(WholeWindows(self))
        self.token_sample: TokenSample | None = None  # set it to look at token entropies
        self.fresh_values: FreshSampler | None = None  # set it to compare baselines with fresh rollouts
        self._fresh_B2: Tensor | None = None
        self._on_capture: Callable[[Captured], None] | None = None
        self._captured_tokens: tuple[TokenLayout, Tensor] | None = None
        self._parts: list[tuple[Credit, Tensor]] = []
        self._capture_seconds = 0.0
        self._failed_batches = 0
        self._sampled_rollouts = 0
        self._critic = CriticLearner(self) if args.baseline == "critic" else None
        self._dynamic = DynamicSampling(self, args.max_sampling_rounds) if args.dynamic_sampling else None

    # --- set-up -------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Micro-batches from one generation to the next."""
        return self.args.steps_per_generation * self.num_iterations

    def _choose_capture_mode(self, args: PoiseConfig) -> CaptureMode:
        if args.baseline not in READ_STATES:
            return "none"
        has_old = args.gradient_accumulation_steps % self.window != 0 or (
            self.use_vllm and self.vllm_importance_sampling_correction
        )
        if args.capture == "extra":
            return "extra"
        if has_old:
            return "old"
        if args.per_device_train_batch_size % self.num_generations == 0 and not self._is_vlm:
            return "train"
        logger.warning(
            "per_device_train_batch_size=%d does not hold whole groups of num_generations=%d text rollouts, so POISE "
            "runs one more forward pass per batch; make it a multiple of %d to save that",
            args.per_device_train_batch_size,
            self.num_generations,
            self.num_generations,
        )
        return "extra"

    def _end_of_reasoning(self, args: PoiseConfig) -> tuple[int, ...]:
        if not args.end_of_reasoning:
            return ()
        ids = self._tokenizer.encode(args.end_of_reasoning, add_special_tokens=False)
        return () if self._tokenizer.unk_token_id in ids else tuple(ids)

    def _feature_identity(self) -> dict[str, Any]:
        prompt_layer, reasoning_layer = self._capture.layers
        return {
            "prompt_layer": prompt_layer,
            "reasoning_layer": reasoning_layer,
            "depth": self._capture.depth,
            "window": self._capture.spec.window,
            "end_of_reasoning": list(self._capture.spec.end_of_reasoning),
            "features": ["prompt", "reasoning", "entropy"],
        }

    # --- capture ------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        forward = super()._get_per_token_logps_and_entropies
        on_capture, self._on_capture = self._on_capture, None  # for one call: the reference model's comes next
        if on_capture is None:
            return forward(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        prompt, response = slice(None, -logits_to_keep), slice(-logits_to_keep, None)
        layout = TokenLayout.padded(
            input_ids[:, prompt], attention_mask[:, prompt], input_ids[:, response], attention_mask[:, response]
        )
        kwargs["compute_entropy"] = True
        with self._capture.armed(layout) as states:
            result = forward(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        self._capture_seconds += states.seconds
        self._captured_tokens = (layout, result[1].detach())
        entropy_B3 = layout.entropy_features(result[1].detach().float(), self._capture.spec.end_of_reasoning)
        features = Features(states.prompt_BH, states.reasoning_BH, entropy_B3)
        on_capture((features, self._squared_score(result[0], attention_mask[:, response])))
        return result

    def _squared_score(self, log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """How much each rollout weighs in the gradient's variance, under this loss."""
        weights_B = squared_score(log_probs_BT, mask_BT)
        # TRL's "grpo" divides each rollout's term by its own length, and so its score.
        return weights_B / mask_BT.sum(1).clamp_min(1).square() if self.loss_type == "grpo" else weights_B

    def _extra_forward(self, output: dict[str, Any]) -> Captured:
        """One forward pass over the generated batch, without gradient or dropout, for its states alone."""
        known = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
        images = {name: value for name, value in output.items() if name in known}
        captured: list[Captured] = []
        self._on_capture = captured.append
        self.model.eval()
        try:
            with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].shape[1],
                    batch_size=self.args.per_device_train_batch_size,
                    **images,
                )
        finally:
            self.model.train()
        return captured[0]

    def _keep_tokens(self, row_B: Tensor) -> None:
        """Hands the token entropies of the last capture to the sample, if anyone asked for one."""
        captured, self._captured_tokens = self._captured_tokens, None
        if self.token_sample is not None and captured is not None:
            self.token_sample.keep(row_B, *captured)

    # --- credit -------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards_BF = super()._calculate_rewards(*args, **kwargs)  # gathered over ranks, in sampler order
        self._rewards_B, clean_BF = total_rewards(rewards_BF, self.reward_weights)
        self._sampled_rollouts += len(rewards_BF) if self.model.training else 0
        return clean_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            self._log_columns([torch.nan] * len(self._rewards_B), [torch.nan] * len(self._rewards_B))
            return output
        captured: list[Captured] = []
        if self.capture_mode == "old":
            self._on_capture = captured.append
        try:
            inputs, output, filler_B = self._sampled(inputs)
        finally:
            self._on_capture = None
        rows = len(output["advantages"])
        row_B = torch.arange(rows, device=output["advantages"].device) + rows * self.accelerator.process_index
        domains_B = self._domains(inputs, row_B.device)
        self._leave_out(output, self._rewards_B[row_B].isnan() | filler_B)
        if self.capture_mode == "train":  # credited in `_compute_loss`, whose forward pass sees the states
            output |= {"poise_row": row_B, "poise_reward": self._rewards_B[row_B], "poise_domain": domains_B}
            output["advantages"] = torch.full_like(output["advantages"], torch.nan)
            return output
        if self.capture_mode == "old" and not captured:
            raise CaptureError("TRL computed no old log-probs in a layout where it should; is its rule unchanged?")
        if self.capture_mode == "extra":
            captured = [self._extra_forward(output)]
        self._keep_tokens(row_B)
        gather = self.accelerator.gather
        groups_B = torch.arange(len(self._rewards_B), device=row_B.device) // self.num_generations
        features, weights_B = (captured[0][0].map(gather), gather(captured[0][1])) if captured else (None, None)
        prompts_B = gather(prompt_ids(output)) if self.args.baseline == "tracker" else None
        valued = self._critic.value(output, self._rewards_B[row_B]) if self._critic is not None else None
        values_B = gather(valued.values_BT[:, 0]) if valued is not None else None
        credit = self.estimator.credit(
            Rollouts(self._rewards_B, groups_B, features, gather(domains_B), weights_B, prompts_B, values_B)
        )
        advantages_B = credit.advantages_B
        if self._critic is not None:
            output["advantages"] = valued.advantages_BT
            self._note(self._critic.learn(output, valued))
        elif self.args.baseline != "group-mean":  # there TRL's own advantages stand, scaling included
            if self.args.whiten_advantages:
                advantages_B = whiten(advantages_B, credit.used_B)
            output["advantages"] = advantages_B[row_B].to(output["advantages"])
        self._close_window(credit, advantages_B)
        return output

    def _sampled(self, inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], Tensor]:
        """The batch to train on: its dataset rows, what TRL made of them, and which rollouts only fill it."""
        generate = super()._generate_and_score_completions
        if self._dynamic is None:
            self._sample_fresh(inputs)
            output = generate(inputs)
            return inputs, output, torch.zeros_like(output["advantages"], dtype=torch.bool)
        filled = self._dynamic.fill(inputs, generate)
        self._rewards_B = filled.rewards_B
        self._note(filled.metrics)
        return filled.inputs, filled.output, ~filled.kept_B

    def _sample_fresh(self, inputs: list[dict[str, Any]]) -> None:
        """Fresh rollouts of the batch's prompts, from the policy that is about to sample the batch."""
        found = self.fresh_values(inputs) if self.fresh_values is not None else None
        if found is not None:
            self._fresh_B2 = self.accelerator.gather(found.tensor(self.accelerator.device))
            self._metrics["train"]["poise/track_rollouts"].append(float(found.rollouts))
            self._metrics["train"]["poise/track_seconds"].append(found.seconds)

    def _domains(self, inputs: list[dict[str, Any]], device: torch.device) -> Tensor:
        column = self.args.domain_column
        return torch.tensor([domain_id(str(row[column])) if column in row else 0 for row in inputs], device=device)

    def _leave_out(self, output: dict[str, Any], left_B: Tensor) -> None:
        """Take the tokens of these rollouts out of the loss, its normaliser included (not out of attention)."""
        if not bool(self.accelerator.gather(left_B).any()):
            return
        mask_BT = output["completion_mask"]
        kept_BT = (~left_B).to(mask_BT)[:, None].expand_as(mask_BT)
        output["tool_mask"] = kept_BT * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather((mask_BT * output["tool_mask"]).sum()).sum()

    def _get_train_sampler(self, dataset: Any = None) -> SeededByEpoch:
        return SeededByEpoch(super()._get_train_sampler(dataset))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.capture_mode != "train" or not self.model.training or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = keep_groups_together(self._buffered_inputs, self.num_generations)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        is_uncredited = self.capture_mode == "train" and self.model.training and not inputs["poise_credited"]
        if is_uncredited:
            self._on_capture = partial(self._credit_micro_batch, inputs)
        loss = super()._compute_loss(model, inputs)
        if is_uncredited and not inputs["poise_credited"]:
            raise CaptureError("TRL computed a loss without the forward pass that carries the internal states")
        return loss

    def _credit_micro_batch(self, inputs: dict[str, Any], captured: Captured) -> None:
        """Runs after the training forward and before the loss reads `inputs["advantages"]`."""
        row_B, (features, weights_B) = inputs["poise_row"], captured
        self._keep_tokens(row_B)
        groups_B = row_B // self.num_generations
        rollouts = Rollouts(inputs["poise_reward"], groups_B, features, inputs["poise_domain"], weights_B)
        credit = self.estimator.credit(rollouts)
        inputs["advantages"] = credit.advantages_B.to(inputs["advantages"])
        inputs["poise_credited"] = True
        self._parts.append((credit, row_B))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._metrics["train"]["poise/sampled_rollouts"] = [float(self._sampled_rollouts)]  # a sum, never averaged
        if self._parts and self._step % self.window == 0:
            credit = Credit.cat([part for part, _ in self._parts])
            row_B = torch.cat([rows for _, rows in self._parts])
            self._parts = []
            order_B = self.accelerator.gather(row_B).argsort()
            credit = credit.map(lambda tensor: self.accelerator.gather(tensor)[order_B])
            self._close_window(credit, credit.advantages_B)
        return loss

    def _close_window(self, credit: Credit, advantages_B: Tensor) -> None:
        """The whole batch is credited, on every rank alike: learn from it, and log it with the advantages it got."""
        metrics = self.estimator.update(credit)
        metrics["capture_seconds"], self._capture_seconds = self._capture_seconds, 0.0
        if self._fresh_B2 is not None:
            metrics |= track_metrics(credit.baselines_B, self._fresh_B2)
            self._fresh_B2 = None
        self._note(metrics)
        advantages = self._logs["advantages"]
        if self.args.baseline != "group-mean":
            for _ in range(min(len(credit), len(advantages))):
                advantages.pop()
            advantages.extend(advantages_B.tolist())
        self._log_columns(credit.predictions_B.tolist(), credit.baselines_B.tolist())
        self._failed_batches = 0 if bool(credit.rewards_B.isfinite().any()) else self._failed_batches + 1
        if self._failed_batches >= self.args.max_failed_batches:
            raise RewardError(
                f"no rollout of the last {self._failed_batches} generation batches got a reward; the last failure: "
                f"{self._guard.last_failure}"
            )

    def _note(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][f"poise/{name}"].append(value)

    def _log_columns(self, predictions: list[float], baselines: list[float]) -> None:
        """Columns of TRL's completions table, in the order of its prompts."""
        for name, values in (("prediction", predictions), ("baseline", baselines)):
            column = self._logs["extra"].setdefault(name, deque(maxlen=self._logs["prompt"].maxlen))
            column.extend(values)

    def _broadcast(self, value: Any) -> Any:
        if self.accelerator.num_processes == 1:
            return value
        box = [map_tensors(value, lambda tensor: tensor.cpu())]
        broadcast_object_list(box)
        return map_tensors(box[0], lambda tensor: tensor.to(self.accelerator.device))

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            state = self.estimator.state_dict()
            state["meta"]["trainer"] = {"sampled_rollouts": self._sampled_rollouts}
            if self._dynamic is not None:
                state["meta"]["trainer"]["further_prompts"] = self._dynamic.further.taken
            save_state(folder / STATE_FILE, state)
            if self._critic is not None:
                self._critic.save(folder)
        super()._save_checkpoint(model, trial)  # writes trainer_state.json last: without it a checkpoint is incomplete

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            state = load_state(Path(checkpoint) / STATE_FILE)
            self.estimator.load_state_dict(state, self.accelerator.device)
            ours = state["meta"]["trainer"]
            self._sampled_rollouts = ours["sampled_rollouts"]
            if self._dynamic is not None:
                self._dynamic.further.taken = ours.get("further_prompts", 0)
            if self._critic is not None:
                self._critic.load(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
