"""Internal states: pooled hidden states read off the policy's own forward pass (the `capture` step of the flow).

A forward hook on one decoder block per part pools inside the layer, so that no (B, T, H) tensor outlives it; of single
tokens, one number each and a few sampled states leave (`TokenReading`). The hook exists only while a capture is armed:
generation, reference-model calls and checkpoint recomputation never see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.core.token_states import TokenReading
from poise.core.tokens import TokenLayout, Window
from poise.errors import CaptureError, ConfigError

# Tokens whose states are turned to fp32 at once: 10 MB at 2,560 numbers each.
_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class StateSpec:
    """Which internal states describe a rollout.

    Args:
        prompt_layer: block whose output describes the prompt: an index k (1 = first block, as in transformers'
            `hidden_states[k]`), a negative index (-1 = last block), or a fraction of depth in (0, 1).
        reasoning_layer: the same for the reasoning part; may differ.
        window: n, how many of the last tokens of each part are averaged.
        end_of_reasoning: token ids that close the reasoning (`</think>`); empty if the model has none, then the
            reasoning is the whole response.

    Source: paper section 3 (features), published layers 19 of 36 (Qwen3-4B) and n = 10.
    """

    prompt_layer: int | float = 0.5
    reasoning_layer: int | float = 0.5
    window: int = 10
    end_of_reasoning: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"the pooling window must be at least one token, got window={self.window}")

    def resolve(self, depth: int) -> tuple[int, int]:
        """Block indices (prompt, reasoning) in 1..depth for a model of `depth` blocks."""
        return resolve_layer(self.prompt_layer, depth), resolve_layer(self.reasoning_layer, depth)


def resolve_layer(layer: int | float, depth: int) -> int:
    """Index in 1..depth of the block that `layer` names.

    >>> resolve_layer(0.5, 36), resolve_layer(19, 36), resolve_layer(-1, 36)
    (18, 19, 36)

    Raises:
        ConfigError: the layer does not exist; index 0 would be the embeddings, which no block computes.
    """
    if isinstance(layer, float) and not layer.is_integer():
        index = max(1, round(layer * depth)) if 0 < layer < 1 else 0
    else:
        index = int(layer) if layer >= 0 else depth + 1 + int(layer)
    if not 1 <= index <= depth:
        raise ConfigError(
            f"layer {layer} names no block of this model; give an index in 1..{depth}, a negative index in "
            f"-{depth}..-1, or a fraction of depth between 0 and 1"
        )
    return index


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The policy's decoder blocks, found through PEFT, DDP and FSDP wrappers and whatever the architecture calls them.

    They are the outermost `ModuleList` with the most parameters, vision and audio towers left aside; lists inside a
    block (experts, say) do not count.

    Raises:
        CaptureError: the model has no such list.
    """
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        is_tower = any(word in part for part in parts for word in ("visual", "vision", "audio"))
        is_inside = any(name.startswith(f"{found}.") for found in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and not is_tower and not is_inside:
            outermost[name] = module
    if not outermost:
        raise CaptureError(f"{type(model).__name__} has no list of decoder blocks to hook")
    return max(outermost.values(), key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def pool(hidden_NH: Float[Tensor, "N H"], window: Window, start: int = 0) -> Float[Tensor, "B H"]:
    """Sum of the window's hidden states that lie in this shard, in fp32.

    Args:
        hidden_NH: hidden states of the flattened tokens start .. start+N.
        window: which flattened positions belong to each rollout.
        start: first flattened position of this shard.
    """
    return pick(hidden_NH, window, start).sum(1)


def pick(hidden_NH: Float[Tensor, "N H"], window: Window, start: int = 0) -> Float[Tensor, "B n H"]:
    """The window's hidden states one by one, in fp32; zero where they lie in another shard."""
    local_Bn, here_Bn = _local(window, start, len(hidden_NH))
    return torch.where(here_Bn[..., None], hidden_NH[local_Bn].float(), 0.0)


def project(
    hidden_NH: Float[Tensor, "N H"], window: Window, start: int = 0, *, vector_H: Float[Tensor, " H"]
) -> Float[Tensor, "B n"]:
    """The window's hidden states times a vector, in fp32: one number each; zero where they lie in another shard."""
    vector_H = vector_H.to(hidden_NH.device)
    product_N = torch.cat([chunk_NH.float() @ vector_H for chunk_NH in hidden_NH.split(_CHUNK_TOKENS)])
    local_Bn, here_Bn = _local(window, start, len(hidden_NH))
    return torch.where(here_Bn, product_N[local_Bn], 0.0)


def _local(window: Window, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices into the shard, and which of them lie in it."""
    local_Bn = window.index_BN - start
    return local_Bn.clamp(0, count - 1), window.valid_BN & (local_Bn >= 0) & (local_Bn < count)


@dataclass
class CapturedStates:
    """Pooled states of one armed forward pass, complete once the `with` block has ended.

    Rows without a single token in a part are NaN there, never zeros: such a rollout has no features.

    Args:
        prompt_BH, reasoning_BH: pooled states, fp32.
        projections_BT, sampled_BMH: as in `TokenStates` and `TokenSamples`; empty if no `TokenReading` was asked for.
        seconds: spent in the hooks.
    """

    prompt_BH: Tensor
    reasoning_BH: Tensor
    projections_BT: Tensor
    sampled_BMH: Tensor
    seconds: float = 0.0


class StateCapture:
    """Hooks on the blocks that a `StateSpec` names, armed for one (possibly micro-batched) forward pass at a time.

    Args:
        model: the policy, wrapped or not.
        spec: which layers, and how many tokens are pooled.
    """

    def __init__(self, model: nn.Module, spec: StateSpec) -> None:
        blocks = decoder_blocks(model)
        self.spec = spec
        self.depth = len(blocks)
        self.layers = spec.resolve(self.depth)
        self._blocks = [blocks[layer - 1] for layer in self.layers]
        self.calls = 0

    @contextmanager
    def armed(
        self,
        layout: TokenLayout,
        start: int = 0,
        reduce: Callable[[Tensor], Tensor] | None = None,
        tokens: TokenReading | None = None,
    ) -> Generator[CapturedStates]:
        """Read the states of the rollouts in `layout` from the forward calls made inside the `with` block.

        Args:
            layout: where each rollout's tokens lie. A padded batch may come in several calls (micro-batches of whole
                rows, in order); a packed one in one call.
            start: first flattened position that this process computes (sequence parallelism).
            reduce: sums a tensor over the processes that share the sequence; None if there is one.
            tokens: what to read of single tokens' states, at the block that describes the reasoning.

        Raises:
            CaptureError: the block did not run, or not for every row, or with other shapes than the layout's.
        """
        spec, (prompt, reasoning) = self.spec, self._blocks
        readings = {
            "prompt": (prompt, layout.prompt_window(spec.window), pool),
            "reasoning": (reasoning, layout.reasoning_window(spec.window, spec.end_of_reasoning), pool),
        }
        if tokens is not None:
            readings["sampled"] = (reasoning, tokens.sampled, pick)
            if tokens.vector_H is not None:
                readings["projections"] = (reasoning, tokens.before, partial(project, vector_H=tokens.vector_H))
        hooks = {name: _Reading(layout, window, take, start, reduce) for name, (_, window, take) in readings.items()}
        handles = [block.register_forward_hook(hooks[name].hook) for name, (block, _, _) in readings.items()]
        nothing = torch.empty(0)
        states = CapturedStates(nothing, nothing, nothing, nothing)
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()
        states.prompt_BH, states.reasoning_BH = hooks["prompt"].mean(), hooks["reasoning"].mean()
        if tokens is not None:
            states.sampled_BMH = hooks["sampled"].total()
            known_BT = hooks["projections"].total() if "projections" in hooks else torch.nan
            states.projections_BT = torch.where(tokens.mask_BT, known_BT, torch.nan)
        states.seconds = sum(hook.seconds for hook in hooks.values())
        self.calls += len(hooks["prompt"].parts)


class _Reading:
    """What `take` reads of one window of each rollout, gathered by a hook over the calls of one armed forward pass."""

    def __init__(
        self,
        layout: TokenLayout,
        window: Window,
        take: Callable[[Tensor, Window, int], Tensor],
        start: int,
        reduce: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.layout, self.window, self.take, self.start, self.reduce = layout, window, take, start, reduce
        self.parts: list[Tensor] = []
        self.rows = 0
        self.seconds = 0.0

    def hook(self, module: nn.Module, args: Any, output: Any) -> None:
        began = time.perf_counter()
        hidden: Tensor = (output[0] if isinstance(output, tuple) else output).detach()  # pyright: ignore
        rows = self.layout.rows_of(hidden.shape, self.rows)
        flat_NH = hidden.reshape(-1, hidden.shape[-1])
        first = self.start + self.rows * self.layout.width
        if self.reduce is None and first + len(flat_NH) < self.layout.length:
            raise CaptureError(
                f"the hooked block saw {len(flat_NH)} of {self.layout.length} packed tokens; where processes share "
                "the sequence, arm the capture with `start` and `reduce`"
            )
        self.parts.append(self.take(flat_NH, self.window.rows(self.rows, self.rows + rows), first))
        self.rows += rows
        self.seconds += time.perf_counter() - began

    def total(self) -> Tensor:
        """All rows, summed over the processes that share the sequence."""
        if self.rows != len(self.window.index_BN):
            raise CaptureError(
                f"the hooked block ran for {self.rows} of {len(self.window.index_BN)} rollouts; the forward pass "
                "inside the capture must run the policy once over every row"
            )
        total = torch.cat(self.parts)
        return total if self.reduce is None else self.reduce(total)

    def mean(self) -> Tensor:
        sum_BH = self.total()
        count_B = self.window.valid_BN.sum(1).to(sum_BH)
        return sum_BH / torch.where(count_B > 0, count_B, torch.nan)[:, None]
