"""Internal states: pooled hidden states read off the policy's own forward pass (the `capture` step of the flow).

A forward hook on one decoder block per part pools inside the layer, so that no (B, T, H) tensor outlives it. The hook
exists only while a capture is armed: generation, reference-model calls and checkpoint recomputation never see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.core.limits import finite, whole
from poise.core.tokens import TokenLayout, Window
from poise.errors import CaptureError, ConfigError


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
        whole("window", self.window, least=1)
        for name in ("prompt_layer", "reasoning_layer"):
            finite(name, getattr(self, name))
        if not all(isinstance(token, Integral) for token in self.end_of_reasoning):
            raise ConfigError(f"end_of_reasoning takes token ids, not text; got {self.end_of_reasoning!r}")

    def resolve(self, depth: int) -> tuple[int, int]:
        """Block indices (prompt, reasoning) in 1..depth for a model of `depth` blocks."""
        return resolve_layer(self.prompt_layer, depth), resolve_layer(self.reasoning_layer, depth)

    def identity(self, depth: int, by_length: bool | None = None) -> dict[str, Any]:
        """What a probe's features are, as saved with it and compared on resuming.

        Args:
            depth: blocks of the model.
            by_length: whether the weights that the probe is fitted with are divided by the length; None if it has none.
        """
        prompt_layer, reasoning_layer = self.resolve(depth)
        return {
            "prompt_layer": prompt_layer,
            "reasoning_layer": reasoning_layer,
            "depth": depth,
            "window": self.window,
            "end_of_reasoning": list(self.end_of_reasoning),
            "features": ["prompt", "reasoning", "entropy"],
            **({} if by_length is None else {"weights_by_length": by_length}),
        }


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
    local_BN = window.index_BN - start
    here_BN = window.valid_BN & (local_BN >= 0) & (local_BN < hidden_NH.shape[0])
    taken_BNH = hidden_NH[local_BN.clamp(0, hidden_NH.shape[0] - 1)].float()
    return torch.where(here_BN[..., None], taken_BNH, 0.0).sum(1)


@dataclass
class CapturedStates:
    """Pooled states of one armed forward pass, complete once the `with` block has ended.

    Rows without a single token in a part are NaN there, never zeros: such a rollout has no features.
    """

    prompt_BH: Tensor
    reasoning_BH: Tensor
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
        self, layout: TokenLayout, start: int = 0, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> Generator[CapturedStates]:
        """Pool the states of the rollouts in `layout` from the forward calls made inside the `with` block.

        Args:
            layout: where each rollout's tokens lie. A padded batch may come in several calls (micro-batches of whole
                rows, in order); a packed one in one call.
            start: first flattened position that this process computes (sequence parallelism).
            reduce: sums a (B, H) tensor over the processes that share the sequence; None if there is one.

        Raises:
            CaptureError: the block did not run, or not for every row, or with other shapes than the layout's.
        """
        spec = self.spec
        windows = (layout.prompt_window(spec.window), layout.reasoning_window(spec.window, spec.end_of_reasoning))
        poolings = [_Pooling(layout, window, start, reduce) for window in windows]
        handles = [
            block.register_forward_hook(pooling.hook) for block, pooling in zip(self._blocks, poolings, strict=True)
        ]
        states = CapturedStates(torch.empty(0), torch.empty(0))
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()
        states.prompt_BH, states.reasoning_BH = (pooling.mean() for pooling in poolings)
        states.seconds = sum(pooling.seconds for pooling in poolings)
        self.calls += len(poolings[0].sums)


class _Pooling:
    """One part's window sums, gathered by a hook over the (micro-batched) calls of one armed forward pass."""

    def __init__(
        self, layout: TokenLayout, window: Window, start: int, reduce: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.layout, self.window, self.start, self.reduce = layout, window, start, reduce
        self.sums: list[Tensor] = []
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
        self.sums.append(pool(flat_NH, self.window.rows(self.rows, self.rows + rows), first))
        self.rows += rows
        self.seconds += time.perf_counter() - began

    def mean(self) -> Tensor:
        if self.rows != len(self.window.index_BN):
            raise CaptureError(
                f"the hooked block ran for {self.rows} of {len(self.window.index_BN)} rollouts; the forward pass "
                "inside the capture must run the policy once over every row"
            )
        sum_BH = torch.cat(self.sums)
        if self.reduce is not None:
            sum_BH = self.reduce(sum_BH)
        return sum_BH / self.window.valid_BN.sum(1, keepdim=True)
