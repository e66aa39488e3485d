"""Rollouts of a frozen policy: states as transformers gives them, chunks drawn once, settings that count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minute_study import verify
from poise.errors import StateMismatchError
from poise.lab.cache import Cache
from poise.lab.rollouts import Drawing, collect


def test_states_and_rewards_are_those_of_the_rollouts(drawing: Drawing, rows: list, tmp_path: Path) -> None:
    seen: list[int] = []
    found = collect(drawing, rows, verify, Cache(tmp_path, {}), "train", seen.append)
    assert (found.rewards_PK.shape, seen) == ((5, 4), [2, 2, 1])
    sampler = drawing.sampler
    for place, row in enumerate(rows):
        prompt = sampler.tokenizer(row["prompt"])["input_ids"]
        for number, response in enumerate(found.responses(place)):
            verdict = verify(sampler.tokenizer.decode(response, skip_special_tokens=True), row).score
            reward = float(found.rewards_PK[place, number])
            assert reward == verdict if verdict is not None else reward != reward
            assert int(found.lengths_PK[place, number]) == len(response)
        response = found.responses(place)[1]
        with torch.no_grad():
            hidden = sampler.model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
        end = len(prompt)
        torch.testing.assert_close(found.prompt_states["1/2"][place, 1], hidden[1][0, end - 2 : end].mean(0))
        wanted = hidden[3][0, end:][-10:].mean(0)
        torch.testing.assert_close(found.reasoning_states["3/10"][place, 1], wanted, rtol=1e-4, atol=1e-5)


def test_finished_chunks_are_read_not_drawn(drawing: Drawing, rows: list, tmp_path: Path) -> None:
    cache = Cache(tmp_path, {"seed": 0})
    whole = collect(drawing, rows, verify, cache, "train", lambda done: None)
    (tmp_path / "train-000002.safetensors").unlink()
    calls: list[int] = []
    original = drawing.sampler.draw
    try:
        drawing.sampler.draw = lambda *args: calls.append(1) or original(*args)
        again = collect(drawing, rows, verify, Cache(tmp_path, {"seed": 0}), "train", lambda done: None)
    finally:
        del drawing.sampler.draw
    assert len(calls) == 1
    torch.testing.assert_close(again.ids_PKC, whole.ids_PKC)
    torch.testing.assert_close(again.entropy_PFE, whole.entropy_PFE, equal_nan=True)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Cache(tmp_path, {"k": 1, "seed": 0})
    cache = Cache(tmp_path, {"k": 2, "seed": 0})  # nothing was made under the others
    cache.once("chunk", lambda: ({"ones": torch.ones(1)}, {}))
    with pytest.raises(StateMismatchError, match="k was 2 and is 3"):
        Cache(tmp_path, {"k": 3, "seed": 0})
