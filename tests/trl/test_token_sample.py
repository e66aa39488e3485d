"""Token entropies of the first rollouts: those of a plain forward pass, whichever forward pass they were read off."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest
import torch

import tiny_policy
from poise.core.tokens import token_entropy
from poise.runs.tokens import pieces, write_tokens
from poise.trl.token_sample import TokenEntropies, TokenSample


@pytest.mark.parametrize("mode", tiny_policy.LAYOUTS)
def test_entropies_are_those_of_a_plain_forward_pass(mode: str, tmp_path: Path) -> None:
    policy, tokenizer = tiny_policy.model(), tiny_policy.tokenizer()
    trainer = tiny_policy.trainer(tmp_path, model=policy, learning_rate=0.0, **tiny_policy.LAYOUTS[mode])
    trainer.token_sample = TokenSample(4)
    trainer.train()
    assert trainer.capture_mode == mode
    kept = trainer.token_sample.take()
    assert [rollout.row for rollout in kept] == [0, 1, 2, 3]
    assert trainer.token_sample.take() == []
    for rollout, prompt, completion in zip(kept, trainer._logs["prompt"], trainer._logs["completion"], strict=False):
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([ids + rollout.ids])).logits[0, len(ids) - 1 : -1]
        assert rollout.nats == pytest.approx(token_entropy(logits).tolist(), abs=1e-5)
        assert tokenizer.decode(rollout.ids, skip_special_tokens=True) == completion


class Bytes:
    """A byte-level tokenizer whose ids are bytes, as far as pieces are made with it."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


def test_parts_of_one_character_are_one_piece() -> None:
    said = pieces(Bytes(), list("aé!".encode()), [0.1, 0.2, 0.4, 0.5])
    assert [text for text, _ in said] == ["a", "é", "!"]
    assert [nats for _, nats in said] == pytest.approx([0.1, 0.3, 0.5])
    assert [text for text, _ in pieces(Bytes(), [0xC3], [1.0])] == ["\ufffd"]


def test_a_step_without_a_sample_leaves_no_file(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens" / "step_00001.parquet", [], Bytes())
    assert not (tmp_path / "tokens").exists()
    write_tokens(tmp_path / "tokens" / "step_00001.parquet", [TokenEntropies(3, [97], [0.12345])], Bytes())
    [row] = pyarrow.parquet.read_table(tmp_path / "tokens" / "step_00001.parquet").to_pylist()
    assert row == {"row": 3, "tokens": ["a"], "nats": [pytest.approx(0.123)]}
