"""The `capture` step on verl: pooled states and entropies read off the FSDP engine's old-log-prob forward.

A batch that carries a request (`REQUEST`, a StateSpec as JSON) gets four more outputs, one row per rollout, which
travel to the driver with the log-probabilities. Without a request the engine is verl's own, and nothing is hooked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from poise.core import StateCapture, StateSpec, TokenLayout
from poise.errors import CaptureError

VENDOR = "poise"
REQUEST = "poise_request"
PROMPT, REASONING, ENTROPY, SECONDS = "poise_prompt", "poise_reasoning", "poise_entropy", "poise_seconds"


def request_of(spec: StateSpec) -> str:
    """A spec in the form that travels with a batch."""
    return json.dumps(asdict(spec))


def spec_of(request: str) -> StateSpec:
    """The spec that `request_of` wrote."""
    values = json.loads(request)
    return StateSpec(**{**values, "end_of_reasoning": tuple(values["end_of_reasoning"])})


@EngineRegistry.register("language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu"], vendor=VENDOR)
class CapturingFSDPEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine whose forward-only micro-batches also deliver pooled states, where they are asked for."""

    _capture: StateCapture | None = None

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        request = tu.get_non_tensor_data(data=micro_batch, key=REQUEST, default=None)
        if request is None or not forward_only:
            return super().forward_step(micro_batch, loss_function, forward_only)
        spec = spec_of(request)
        if self._capture is None or self._capture.spec != spec:
            self._capture = StateCapture(self.module, spec)
        micro_batch = micro_batch.to(get_device_id())
        layout = layout_of(micro_batch)
        start, reduce = self._shard(layout, micro_batch)
        with self._capture.armed(layout, start, reduce) as states:
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        model_output = output["model_output"]
        model_output[PROMPT], model_output[REASONING] = states.prompt_BH, states.reasoning_BH
        model_output[ENTROPY] = entropy_of(model_output, layout, spec)
        rows = len(states.prompt_BH)
        model_output[SECONDS] = states.prompt_BH.new_full((rows, 1), states.seconds / rows)
        return loss, output

    def _shard(self, layout: TokenLayout, micro_batch: Any) -> tuple[int, Any]:
        """First packed position that this rank computes, and the sum over the ranks that share the sequence."""
        if not self.use_ulysses_sp:
            return 0, None
        tokens = micro_batch["input_ids"].values().numel()
        shards = self.ulysses_sequence_parallel_size
        length = -(-(tokens + self._get_packed_pad_size(tokens)) // shards)
        rank = dist.get_rank(self.ulysses_parallel_group)

        def sum_over_shards(sums: Tensor) -> Tensor:
            dist.all_reduce(sums, group=self.ulysses_parallel_group)
            return sums

        return rank * length, sum_over_shards


def layout_of(micro_batch: Any) -> TokenLayout:
    """Where the rollouts of a verl micro-batch lie in the forward pass: packed end to end, or a right-padded row each.

    Tokens that the policy did not write (tool output, verl's padding rows) are no part of the response.
    """
    ids, prompts = micro_batch["input_ids"], micro_batch["prompts"].offsets().diff()
    layout = TokenLayout.packed(ids.values(), ids.offsets(), prompts)
    written_BC = micro_batch["response_mask"].to_padded_tensor(0, output_size=layout.response_mask_BC.shape).bool()
    layout = replace(layout, response_mask_BC=layout.response_mask_BC & written_BC)
    if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
        return layout
    width = int(ids.offsets().diff().max())
    row_B = torch.arange(len(prompts), device=prompts.device) * width
    return replace(layout, prompt_start_B=row_B, response_start_B=row_B + prompts, width=width)


def entropy_of(model_output: Any, layout: TokenLayout, spec: StateSpec) -> Tensor:
    """Entropy features of each rollout, from the entropies that verl computes beside the log-probabilities.

    Raises:
        CaptureError: verl returned none.
    """
    entropy = model_output.get("entropy")
    if entropy is None:
        raise CaptureError(
            "this engine returned no token entropies; set actor_rollout_ref.model.use_fused_kernels=False"
        )
    # Position t holds the entropy of the distribution that token t + 1 was drawn from.
    prompts_B = layout.prompt_mask_BP.sum(1)
    first_B = entropy.offsets()[:-1] + prompts_B - 1
    column_1C = torch.arange(layout.response_ids_BC.shape[1], device=first_B.device)[None]
    values = entropy.values()
    entropy_BC = values[(first_B[:, None] + column_1C).clamp_max(len(values) - 1)]
    return layout.entropy_features(entropy_BC, spec.end_of_reasoning)
