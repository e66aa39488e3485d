"""What a capture reads of single tokens: the state before each one, in every layout, against transformers' own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from poise.core import StateCapture, StateSpec, TokenLayout
from poise.core.states import project
from poise.core.token_states import TokenReading, TokenStates, sampled_columns, states_before
from poise.core.tokens import Window
from tiny_rollouts import END, HIDDEN, batch, forward, made, packed

SPEC = StateSpec(2, 3, window=4, end_of_reasoning=(END,))
SAMPLES = 4
VECTOR_H = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))


def before(model: nn.Module, data: SimpleNamespace) -> list[Tensor]:
    """By plain loops, one unpadded rollout at a time: the state at the token that precedes each response token."""
    rows = []
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        with torch.no_grad():
            out = model(input_ids=torch.cat([prompt, response])[None], output_hidden_states=True, use_cache=False)
        hidden = out.hidden_states[3][0]
        rows.append(torch.stack([hidden[len(prompt) - 1 + t] for t in range(len(response))]))
    return rows


def reading(layout: TokenLayout, vector_H: Tensor | None = VECTOR_H) -> TokenReading:
    return TokenReading.of(layout, SAMPLES, 1, vector_H, 0)


def check(states: object, asked: TokenReading, wanted: list[Tensor], tolerance: float = 2e-5) -> None:
    for b, rows_TH in enumerate(wanted):
        columns = asked.mask_BT[b].nonzero().flatten()
        values = states.projections_BT[b]
        torch.testing.assert_close(values[columns], rows_TH @ VECTOR_H, atol=tolerance, rtol=tolerance)
        assert values.isnan().sum() == len(values) - len(columns)
        sampled = rows_TH[torch.searchsorted(columns, asked.columns_BM[b])]
        torch.testing.assert_close(states.sampled_BMH[b], sampled, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize(("side", "extra"), [("left", 0), ("left", 3), ("right", 2)])
def test_padded_states_equal_transformers(name: str, side: str, extra: int) -> None:
    model, data = made(name), batch(side, extra)
    asked = reading(data.layout)
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout, tokens=asked) as states:
        forward(model, data)
    check(states, asked, before(model, data))


def test_micro_batches_are_joined_in_order() -> None:
    model, data = made("qwen3"), batch()
    asked = reading(data.layout)
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout, tokens=asked) as states:
        for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
            forward(model, data, rows)
    check(states, asked, before(model, data))


def test_packed_states_equal_padded() -> None:
    model, data = made("qwen3"), batch()
    layout, ids, place = packed(data, tail=3)
    asked = reading(layout)
    with torch.no_grad(), StateCapture(model, SPEC).armed(layout, tokens=asked) as states:
        model(input_ids=ids, position_ids=place, use_cache=False)
    check(states, asked, before(model, data))


def test_shards_of_a_sequence_add_up() -> None:
    """Three processes that share the packed sequence: the sum of what each reads is what one alone reads."""
    data = batch()
    layout, ids, _ = packed(data)
    hidden_NH = torch.randn(ids.shape[1], HIDDEN, generator=torch.Generator().manual_seed(3))
    asked, size = reading(layout), -(-ids.shape[1] // 3)
    stack = nn.Module()
    stack.layers = nn.ModuleList([nn.Identity() for _ in range(4)])

    def read(part_NH: Tensor, start: int, reduce: object) -> object:
        with StateCapture(stack, SPEC).armed(layout, start, reduce, asked) as states:
            for block in stack.layers:
                block(part_NH[None])
        return states

    whole = read(hidden_NH, 0, None)
    shards = [read(part_NH, k * size, lambda x: x) for k, part_NH in enumerate(hidden_NH.split(size))]
    values_BT = sum(shard.projections_BT for shard in shards)
    torch.testing.assert_close(values_BT, whole.projections_BT, equal_nan=True)
    torch.testing.assert_close(sum(shard.sampled_BMH for shard in shards), whole.sampled_BMH)


def test_bf16_states_leave_in_float32() -> None:
    model, data = made("qwen3").bfloat16(), batch()
    seen: list[Tensor] = []
    handle = model.model.layers[2].register_forward_hook(lambda m, a, o: seen.append(o))
    asked = reading(data.layout)
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout, tokens=asked) as states:
        forward(model, data)
    handle.remove()
    assert states.projections_BT.dtype == states.sampled_BMH.dtype == torch.float32
    width = data.ids.shape[1] - data.layout.response_ids_BC.shape[1]
    torch.testing.assert_close(states.projections_BT[0, 4], seen[0][0, width + 3].float() @ VECTOR_H)


def test_without_a_value_only_samples_leave() -> None:
    model, data = made("qwen3"), batch()
    asked = reading(data.layout, None)
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout, tokens=asked) as states:
        forward(model, data)
    assert states.projections_BT.isnan().all()
    assert states.sampled_BMH.abs().sum() > 0
    with torch.no_grad(), StateCapture(model, SPEC).armed(data.layout) as states:
        forward(model, data)
    assert states.projections_BT.numel() == states.sampled_BMH.numel() == 0


def test_positions_by_hand() -> None:
    """Row 0: prompt padded on the right, a hole in the response. Row 1: no prompt, so nothing before token 1."""
    prompt_mask, mask = torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
    layout = TokenLayout.padded(torch.zeros(2, 3).long(), prompt_mask, torch.zeros(2, 4).long(), mask)
    found = states_before(layout)
    assert found.valid_BN.tolist() == [[True, False, True, True], [False, True, False, False]]
    assert found.index_BN[0].tolist() == [1, 3, 3, 5]
    assert int(found.index_BN[1, 1]) == 10


def test_project_in_pieces_and_shards() -> None:
    hidden_NH = torch.randn(2500, 3, generator=torch.Generator().manual_seed(1))
    hidden_NH[7] = torch.nan  # no window points to it
    window = Window(torch.tensor([[0, 1030], [2499, 7]]), torch.tensor([[True, True], [True, False]]))
    vector_H = torch.tensor([1.0, -2.0, 0.5])
    wanted = [
        [float(hidden_NH[0] @ vector_H), float(hidden_NH[1030] @ vector_H)],
        [float(hidden_NH[2499] @ vector_H), 0],
    ]
    torch.testing.assert_close(project(hidden_NH, window, vector_H=vector_H), torch.tensor(wanted))
    torch.testing.assert_close(
        project(hidden_NH[:1000], window, vector_H=vector_H)
        + project(hidden_NH[1000:], window, 1000, vector_H=vector_H),
        torch.tensor(wanted),
    )


def test_samples_cover_the_response_evenly_and_repeat_with_the_seed() -> None:
    mask_BC = torch.zeros(2000, 12, dtype=torch.bool)
    mask_BC[:, 1:11] = True
    mask_BC[:, 5] = False  # nine tokens, a hole among them
    drawn = sampled_columns(mask_BC, 4, torch.Generator().manual_seed(0))
    assert mask_BC.gather(1, drawn).all()
    assert (drawn.diff(dim=1) >= 0).all()
    share_C = drawn.flatten().bincount(minlength=12) / drawn.numel()
    torch.testing.assert_close(share_C, mask_BC[0] / 9, atol=0.01, rtol=0)
    assert torch.equal(drawn, sampled_columns(mask_BC, 4, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, sampled_columns(mask_BC, 4, torch.Generator().manual_seed(1)))


def test_samples_of_short_and_empty_responses() -> None:
    mask_BC = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    drawn = sampled_columns(mask_BC, 4, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_joined_with_log_probabilities_by_hand() -> None:
    layout = TokenLayout.padded(
        torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1, 3).long(), torch.tensor([[1, 0, 1]])
    )
    asked = TokenReading(states_before(layout), torch.tensor([[0, 2]]), torch.tensor([2]), VECTOR_H, 6)
    projections_BT = torch.tensor([[0.5, torch.nan, 0.25]])
    log_probs_BT = torch.tensor([[0.5, 0.1, 0.75]]).log()
    samples = TokenStates.of(asked, projections_BT, torch.zeros(1, 2, HIDDEN), log_probs_BT).samples
    torch.testing.assert_close(samples.surprise_BM, torch.tensor([[0.25, 0.0625]]))
    assert samples.projections_BM.tolist() == [[0.5, 0.25]]
    assert samples.place_BM.tolist() == [[0.0, 0.5]]
    assert (samples.tokens_B.tolist(), samples.version) == ([2], 6)
