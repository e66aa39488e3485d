"""Capture against transformers' own hidden states, in every layout and under every wrapper that a trainer uses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from poise.core import StateCapture, StateSpec, TokenLayout, decoder_blocks, resolve_layer
from poise.core.states import pool
from poise.core.tokens import Window
from poise.errors import CaptureError, ConfigError
from tiny_rollouts import DEPTH, END, MODELS, batch, forward, made, packed


def expected(model: nn.Module, data: SimpleNamespace, spec: StateSpec) -> tuple[Tensor, Tensor]:
    """By plain loops, one unpadded rollout at a time, from `output_hidden_states=True`."""
    layers, parts = spec.resolve(DEPTH), ([], [])
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        ids = torch.cat([prompt, response])[None]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        end = response.tolist().index(END) + 1 if END in response else len(response)
        stop = len(prompt) + end
        parts[0].append(hidden[layers[0]][0, : len(prompt)][-spec.window :].mean(0))
        parts[1].append(hidden[layers[1]][0, len(prompt) : stop][-spec.window :].mean(0))
    return torch.stack(parts[0]), torch.stack(parts[1])


def check(states: object, wanted: tuple[Tensor, Tensor], tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(states.prompt_BH, wanted[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(states.reasoning_BH, wanted[1], atol=tolerance, rtol=tolerance)


SPEC = StateSpec(2, 3, window=4, end_of_reasoning=(END,))


# --- equality with transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 3])
def test_padded_capture_equals_transformers(name: str, side: str, extra: int) -> None:
    model, data = made(name), batch(side, extra)
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout) as states:
        forward(model, data)
    check(states, expected(model, data, SPEC))
    assert states.prompt_BH.dtype == torch.float32
    assert states.seconds > 0


@pytest.mark.parametrize("window", [1, 2, 10, 100])
@pytest.mark.parametrize("layers", [(1, 1), (3, 1), (0.5, -2)])
def test_any_window_and_layers(window: int, layers: tuple) -> None:
    model, data, spec = made("qwen3"), batch(), StateSpec(*layers, window=window, end_of_reasoning=(END,))
    with torch.no_grad(), StateCapture(model, spec).armed(data.layout) as states:
        forward(model, data)
    check(states, expected(model, data, spec))


def test_last_block_is_taken_before_the_final_norm() -> None:
    model, data, spec = made("qwen3"), batch(), StateSpec(-1, -1, window=1, end_of_reasoning=(END,))
    with torch.no_grad(), StateCapture(model, spec).armed(data.layout) as states:
        forward(model, data)
    normed = expected(model, data, spec)  # transformers' last hidden state is normed already
    with torch.no_grad():
        check(SimpleNamespace(prompt_BH=model.model.norm(states.prompt_BH), reasoning_BH=normed[1]), normed)


@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_micro_batches_are_joined_in_order(sizes: tuple[int, ...]) -> None:
    model, data, start = made("qwen3"), batch(), 0
    capture = StateCapture(model, SPEC)
    with torch.no_grad(), capture.armed(data.layout) as states:
        for size in sizes:
            forward(model, data, slice(start, start + size))
            start += size
    check(states, expected(model, data, SPEC))
    assert capture.calls == len(sizes)


@pytest.mark.parametrize("tail", [0, 3])
def test_packed_capture_equals_padded(tail: int) -> None:
    model, data = made("qwen3"), batch()
    layout, ids, place = packed(data, tail)
    with torch.no_grad(), StateCapture(model, SPEC).armed(layout) as states:
        model(input_ids=ids, position_ids=place, use_cache=False)
    check(states, expected(model, data, SPEC))


def test_packed_layout_describes_the_same_parts() -> None:
    data = batch()
    layout, _, _ = packed(data)
    for mine, theirs in zip(layout.parts((END,)), data.layout.parts((END,)), strict=True):
        assert mine.sum(1).tolist() == theirs.sum(1).tolist()
    assert layout.length == sum(map(len, [*data.prompts, *data.responses]))


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_sharded_sums_equal_the_whole(shards: int) -> None:
    """Sequence parallelism: each process pools what it holds of the packed axis, `reduce` adds the parts up."""
    model, data = made("qwen3"), batch()
    layout, ids, place = packed(data)
    whole = expected(model, data, SPEC)
    hidden = {}
    for layer in SPEC.resolve(DEPTH):
        handle = model.model.layers[layer - 1].register_forward_hook(
            lambda m, a, o, layer=layer: hidden.update({layer: o})
        )
        with torch.no_grad():
            model(input_ids=ids, position_ids=place, use_cache=False)
        handle.remove()
    stack = nn.Module()
    stack.layers = nn.ModuleList([nn.Identity() for _ in range(DEPTH)])
    size, parts = -(-ids.shape[1] // shards), []
    for shard in range(shards):
        mine: list[Tensor] = []

        def collect(sum_BH: Tensor, mine: list[Tensor] = mine) -> Tensor:
            mine.append(sum_BH)
            return sum_BH

        with StateCapture(stack, SPEC).armed(layout, shard * size, collect):
            for layer in SPEC.resolve(DEPTH):
                stack.layers[layer - 1](hidden[layer][:, shard * size : (shard + 1) * size])
        parts.append(mine)
    for part, count in ((0, layout.prompt_window(4)), (1, layout.reasoning_window(4, (END,)))):
        total_BH = sum(mine[part] for mine in parts) / count.valid_BN.sum(1, keepdim=True)
        torch.testing.assert_close(total_BH, whole[part], atol=2e-5, rtol=2e-5)


def test_bf16_model_gives_float32_means() -> None:
    model, data = made("qwen3").bfloat16(), batch()
    seen = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, o: seen.append(o))
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout) as states:
        forward(model, data)
    handle.remove()
    assert seen[0].dtype == torch.bfloat16
    assert states.prompt_BH.dtype == states.reasoning_BH.dtype == torch.float32
    # Taken in fp32, not rounded to bf16 again; row 1 has its six prompt tokens in columns 0 to 5.
    torch.testing.assert_close(states.prompt_BH[1], seen[0][1, 2:6].float().mean(0), atol=1e-6, rtol=1e-6)


def test_pool_ignores_what_no_mask_points_to() -> None:
    hidden_NH = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    window = Window(torch.tensor([[0, 2], [2, 1], [1, 1]]), torch.tensor([[True, True], [True, False], [False, False]]))
    assert pool(hidden_NH, window).tolist() == [[4.0, 6.0], [3.0, 4.0], [0.0, 0.0]]
    assert pool(hidden_NH[1:], window, start=1).tolist() == [[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]


@given(seed=st.integers(0, 10**6), start=st.integers(0, 6), length=st.integers(1, 8))
def test_pool_equals_a_plain_loop(seed: int, start: int, length: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(length, 3, generator=draw)
    index_BN = torch.randint(0, 12, (4, 5), generator=draw)
    valid_BN = torch.rand(4, 5, generator=draw) > 0.4
    wanted_BH = torch.zeros(4, 3)
    for b in range(4):
        for n in range(5):
            local = int(index_BN[b, n]) - start
            if valid_BN[b, n] and 0 <= local < length:
                wanted_BH[b] += hidden_NH[local]
    torch.testing.assert_close(pool(hidden_NH, Window(index_BN, valid_BN), start), wanted_BH)


def test_a_row_without_tokens_is_nan_not_zero() -> None:
    model, data = made("qwen3"), batch()
    layout = data.layout
    mask = layout.response_mask_BC.clone()
    mask[1] = False
    layout = TokenLayout.padded(layout.prompt_ids_BP, layout.prompt_mask_BP, layout.response_ids_BC, mask)
    with torch.no_grad(), StateCapture(model, SPEC).armed(layout) as states:
        forward(model, data)
    assert states.reasoning_BH[1].isnan().all()
    assert states.reasoning_BH[[0, 2, 3, 4]].isfinite().all()
    assert states.prompt_BH.isfinite().all()


# --- the hook is there for the armed pass only ----------------------------------------------------------------------


def test_no_hook_outside_the_armed_pass() -> None:
    model, other, data = made("qwen3"), made("qwen3"), batch()
    capture = StateCapture(model, SPEC)
    blocks = list(model.model.layers)
    model.generate(data.ids[:, :6], max_new_tokens=3, do_sample=False)
    with torch.no_grad(), capture.armed(data.layout) as states:
        assert sum(len(block._forward_hooks) for block in blocks) == 2
        forward(other, data)  # a reference model of its own
        assert capture.calls == 0
        forward(model, data)
    assert sum(len(block._forward_hooks) for block in blocks) == 0
    before = states.prompt_BH.clone()
    model.generate(data.ids[:, :6], max_new_tokens=3, do_sample=False)
    assert capture.calls == 1
    assert torch.equal(states.prompt_BH, before)


def test_the_hook_goes_when_the_pass_fails() -> None:
    model, data = made("qwen3"), batch()
    with pytest.raises(ZeroDivisionError), StateCapture(model, SPEC).armed(data.layout):
        _ = 1 / 0
    assert not any(block._forward_hooks for block in model.model.layers)


def gradients(model: nn.Module, data: SimpleNamespace, capture: StateCapture | None) -> list[Tensor]:
    model.zero_grad()
    if capture is None:
        logits = forward(model, data).logits
    else:
        with capture.armed(data.layout):
            logits = forward(model, data).logits
    logits.log_softmax(-1)[..., 5].sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.filterwarnings("ignore:.*checkpoint:FutureWarning")
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
def test_capture_changes_no_gradient_and_misses_no_recomputation(checkpointing: str | None) -> None:
    model, data = made("qwen3").train(), batch()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    runs = [0]
    counter = model.model.layers[1].mlp.register_forward_pre_hook(lambda m, a: runs.__setitem__(0, runs[0] + 1))
    capture = StateCapture(model, SPEC)
    with_capture = gradients(model, data, capture)
    assert runs[0] == (2 if checkpointing else 1)  # the block ran again in the backward pass,
    assert capture.calls == 1  # the hook did not
    counter.remove()
    for mine, plain in zip(with_capture, gradients(model, data, None), strict=True):
        assert torch.equal(mine, plain)


def test_captured_states_carry_no_graph() -> None:
    model, data = made("qwen3").train(), batch()
    with StateCapture(model, SPEC).armed(data.layout) as states:
        forward(model, data)
    assert not states.prompt_BH.requires_grad
    assert not states.reasoning_BH.requires_grad


# --- passes that do not fit are refused -----------------------------------------------------------------------------


def test_a_pass_that_did_not_happen_is_refused() -> None:
    with (
        pytest.raises(CaptureError, match="ran for 0 of 5 rollouts"),
        StateCapture(made("qwen3"), SPEC).armed(batch().layout),
    ):
        pass


def test_a_pass_over_some_rows_is_refused() -> None:
    model, data = made("qwen3"), batch()
    with pytest.raises(CaptureError, match="ran for 3 of 5 rollouts"), StateCapture(model, SPEC).armed(data.layout):
        forward(model, data, slice(0, 3))


def test_a_second_pass_is_refused() -> None:
    model, data = made("qwen3"), batch()
    layout, ids, place = packed(data)

    def twice(layout: TokenLayout, run: Callable[[], object]) -> None:
        with StateCapture(model, SPEC).armed(layout):
            run()
            run()

    with pytest.raises(CaptureError, match="at most 0 rows"):
        twice(data.layout, lambda: forward(model, data))
    with pytest.raises(CaptureError, match="ran a second time"):
        twice(layout, lambda: model(input_ids=ids, position_ids=place, use_cache=False))


def test_other_shapes_are_refused() -> None:
    model, data = made("qwen3"), batch()
    with (
        pytest.raises(CaptureError, match=r"15 tokens, H\), got \(5, 10, 32\)"),
        StateCapture(model, SPEC).armed(data.layout),
    ):
        model(input_ids=data.ids[:, :10], use_cache=False)
    layout, ids, place = packed(data)
    with pytest.raises(CaptureError, match="saw 20 of 47 packed tokens"), StateCapture(model, SPEC).armed(layout):
        model(input_ids=ids[:, :20], position_ids=place[:, :20], use_cache=False)


# --- finding the blocks ---------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """What DistributedDataParallel does to names: everything moves below `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: object):
        return self.module(**inputs)


def test_blocks_of_each_architecture_and_wrapper() -> None:
    for name in ("qwen3", "llama", "qwen3-moe"):
        model = made(name)
        assert decoder_blocks(model) is model.model.layers
        assert decoder_blocks(Wrapper(Wrapper(model))) is model.model.layers
    assert decoder_blocks(model := made("gpt2")) is model.transformer.h
    assert decoder_blocks(model := made("qwen3").model) is model.layers


def test_lists_inside_blocks_and_side_towers_are_not_blocks() -> None:
    """Experts as a list of modules (older mixture models) are larger than anything, a vision tower may be too."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(9)])

    model = nn.Module()
    model.vision_tower = nn.Module()
    model.vision_tower.layers = nn.ModuleList([nn.Linear(500, 500)])
    model.heads = nn.ModuleList([nn.Linear(8, 8)])
    model.language_model = nn.Module()
    model.language_model.layers = nn.ModuleList([Block(), Block()])
    assert decoder_blocks(model) is model.language_model.layers


def test_capture_through_peft_and_a_wrapper() -> None:
    data = batch()
    model = get_peft_model(made("qwen3"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    assert decoder_blocks(model) is model.base_model.model.model.layers
    wrapped = Wrapper(model)
    with torch.no_grad(), StateCapture(wrapped, SPEC).armed(data.layout) as states:
        forward(wrapped, data)
    check(states, expected(model, data, SPEC))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(CaptureError, match="Linear has no list of decoder blocks"):
        decoder_blocks(nn.Linear(2, 2))


# --- naming the layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "depth", "index"),
    [
        (1, 36, 1),
        (19, 36, 19),
        (36, 36, 36),
        (-1, 36, 36),
        (-36, 36, 1),
        (0.5, 36, 18),
        (0.01, 36, 1),
        (0.999, 4, 4),
        (19.0, 36, 19),
    ],
)
def test_resolve_layer(layer: float, depth: int, index: int) -> None:
    assert resolve_layer(layer, depth) == index


@pytest.mark.parametrize("layer", [0, 5, -5, 1.5, -0.5, 0.0, float("nan"), float("inf")])
def test_layers_that_do_not_exist(layer: float) -> None:
    with pytest.raises(ConfigError, match=r"names no block of this model; give an index in 1\.\.4"):
        resolve_layer(layer, 4)


def test_the_two_parts_may_name_different_layers() -> None:
    assert StateSpec(0.5, -1).resolve(28) == (14, 28)
