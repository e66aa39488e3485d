"""Where PoiseTrainer reads internal states: a forward pass that TRL runs anyway, or, in one layout, one of its own.

Three places to read them (the mode), decided by the batch layout:
  old    TRL computes old log-probs anyway (several updates a batch, vLLM): there, whole batch at once
  train  it doesn't, and whole groups fit a micro-batch: inside the training forward, before the loss reads advantages
  extra  groups straddle micro-batches: one forward pass without gradient, the only layout that costs one
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import disable_gradient_checkpointing

from poise.core import READ_STATES, Features, StateCapture, TokenLayout, score_weight, squared_score
from poise.trl.options import BY_LENGTH
from poise.trl.token_sample import TokenSample

logger = logging.getLogger(__name__)
CaptureMode = Literal["none", "old", "train", "extra"]


@dataclass(frozen=True)
class Captured:
    """What one forward pass showed of its rollouts.

    Args:
        features: internal states and entropies.
        weights_B: how much each rollout weighs in the gradient's variance, under the trainer's loss.
    """

    features: Features
    weights_B: Tensor


class ForwardCapture:
    """Listens to the forward passes of a trainer, one call at a time, when asked to.

    Args:
        trainer: a PoiseTrainer whose model is loaded.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.mode: CaptureMode = choose_mode(trainer)
        self.states = StateCapture(trainer.model, trainer.args.state_spec(end_of_reasoning(trainer)))
        # Of the rollouts generated last: 1 for each token of the policy, 0 for a tool's; None if all are the policy's.
        self.written: list[list[int]] | None = None
        self._receive: Callable[[Captured], None] | None = None
        self._row_B: Tensor | None = None
        self._tokens: tuple[TokenLayout, Tensor] | None = None
        self._seconds = 0.0

    def identity(self) -> dict[str, Any]:
        """What the features are: saved with the probe, and compared when it is loaded."""
        by_length = self.by_length if self.trainer.args.estimator().is_weighted else None
        return self.states.spec.identity(self.states.depth, by_length)

    @property
    def by_length(self) -> bool:
        """Whether the loss divides each rollout's term by its length, and so do the probe's weights."""
        return self.trainer.loss_type in BY_LENGTH

    @contextmanager
    def listening(self, receive: Callable[[Captured], None] | None, row_B: Tensor | None = None) -> Iterator[None]:
        """Hand the next call of `read` to `receive`, and no other: the reference model's comes right after it.

        Args:
            row_B: which rows of the generated batch, over all processes, that call sees; all of this process if None.
        """
        self._receive, self._row_B = receive, row_B
        try:
            yield
        finally:
            self._receive = None

    def read(
        self,
        forward: Callable[..., Any],
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """TRL's `_get_per_token_logps_and_entropies`, listened to if someone waits for it; its result untouched."""
        receive, self._receive = self._receive, None
        if receive is None:
            return forward(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        prompt, response = slice(None, -logits_to_keep), slice(-logits_to_keep, None)
        layout = TokenLayout.padded(
            input_ids[:, prompt], attention_mask[:, prompt], input_ids[:, response], attention_mask[:, response]
        )
        if self.written is not None:
            layout = replace(layout, response_mask_BC=self._of_the_policy(self.written, layout.response_mask_BC))
        kwargs["compute_entropy"] = True
        with self.states.armed(layout) as states:
            result = forward(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        log_probs_BT, nats_BT = result[0], result[1].detach()  # more may follow: its length differs between releases
        self._seconds += states.seconds
        self._tokens = (layout, nats_BT)
        entropy_B3 = layout.entropy_features(nats_BT.float(), self.states.spec.end_of_reasoning)
        scores_B = squared_score(log_probs_BT, layout.response_mask_BC)
        features = Features(states.prompt_BH, states.reasoning_BH, entropy_B3, squared_score_B=scores_B)
        weights_B = score_weight(scores_B, layout.response_mask_BC, self.by_length)
        receive(Captured(features, weights_B))
        return result

    def _of_the_policy(self, written: list[list[int]], mask_BT: Tensor) -> Tensor:
        """The response without what tools and environments wrote: that is no part of it, as in verl."""
        rows = range(len(written)) if self._row_B is None else (self._row_B % len(written)).tolist()
        own_BT = pad_sequence([torch.tensor(written[row], dtype=torch.bool) for row in rows], batch_first=True)
        own_BT = own_BT.to(mask_BT.device)
        return mask_BT & pad(own_BT, (0, mask_BT.shape[1] - own_BT.shape[1]))

    def extra_forward(self, output: dict[str, Any]) -> Captured:
        """One forward pass over the generated batch, without gradient or dropout, for its states alone."""
        trainer, captured = self.trainer, list[Captured]()
        known = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
        images = {name: value for name, value in output.items() if name in known}
        unchecked = disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)
        trainer.model.eval()
        try:
            with self.listening(captured.append), torch.no_grad(), unchecked:
                trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].shape[1],
                    batch_size=trainer.args.per_device_train_batch_size,
                    **images,
                )
        finally:
            trainer.model.train()
        return captured[0]

    def keep_tokens(self, row_B: Tensor, sample: TokenSample | None) -> None:
        """Hand the token entropies of the last capture to the sample, if anyone asked for one."""
        tokens, self._tokens = self._tokens, None
        if sample is not None and tokens is not None:
            sample.keep(row_B, *tokens)

    def take_seconds(self) -> float:
        """What capturing has cost since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def choose_mode(trainer: Any) -> CaptureMode:
    """Where this trainer's layout lets the states be read; warns where that costs a forward pass."""
    args, group = trainer.args, trainer.num_generations
    if args.chosen_baseline not in READ_STATES:
        return "none"
    has_old = args.gradient_accumulation_steps % trainer.window != 0 or (
        trainer.use_vllm and trainer.vllm_importance_sampling_correction
    )
    if args.capture == "extra":
        return "extra"
    if has_old:
        return "old"
    if args.per_device_train_batch_size % group == 0 and not trainer._is_vlm:
        return "train"
    logger.warning(
        "per_device_train_batch_size=%d does not hold whole groups of num_generations=%d text rollouts, so POISE "
        "runs one more forward pass per batch; make it a multiple of %d to save that",
        args.per_device_train_batch_size,
        group,
        group,
    )
    return "extra"


def end_of_reasoning(trainer: Any) -> tuple[int, ...]:
    """Token ids that close the reasoning; none if the tokenizer cannot write them."""
    if not trainer.args.end_of_reasoning:
        return ()
    ids = trainer._tokenizer.encode(trainer.args.end_of_reasoning, add_special_tokens=False)
    return () if trainer._tokenizer.unk_token_id in ids else tuple(ids)
