"""Token entropies in the run folder: for the first prompts of each step, every token's text and entropy.

tokens/step_00001.parquet: one row per rollout, `row` being its row in the completions file of the same step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.trl.token_sample import TokenEntropies

# Prompts whose rollouts are kept each step: the ones that the report shows.
PROMPTS = 4
# A character may take as many byte-level tokens; beyond that, bytes that are no character are shown as such.
_LONGEST_CHARACTER = 4
_BROKEN = "\ufffd"


def write_tokens(path: Path, sample: Sequence[TokenEntropies], tokenizer: Any) -> None:
    """Writes a step's sample in one go; nothing if there is none (the baseline needs no capture)."""
    if not sample:
        return
    import pyarrow
    import pyarrow.parquet

    said = [pieces(tokenizer, rollout.ids, rollout.nats) for rollout in sample]
    table = pyarrow.table(
        {
            "row": pyarrow.array([rollout.row for rollout in sample], pyarrow.int64()),
            "tokens": pyarrow.array([[text for text, _ in each] for each in said], pyarrow.list_(pyarrow.string())),
            "nats": pyarrow.array(
                [[round(nats, 3) for _, nats in each] for each in said], pyarrow.list_(pyarrow.float32())
            ),
        }
    )
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    pyarrow.parquet.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def pieces(tokenizer: Any, ids: Sequence[int], nats: Sequence[float]) -> list[tuple[str, float]]:
    """Text and entropy token by token; parts of one character become one piece, with their mean entropy.

    Special tokens are shown: how sure a policy is of ending is worth seeing.
    """
    found: list[tuple[str, float]] = []
    pending: list[int] = []
    for place, token in enumerate(ids):
        pending.append(token)
        text = _text(tokenizer, pending)
        if text.endswith(_BROKEN) and len(pending) < _LONGEST_CHARACTER and place + 1 < len(ids):
            continue
        own = nats[place + 1 - len(pending) : place + 1]
        found.append((text, sum(own) / len(own)))
        pending = []
    return found


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Text of some tokens in the middle of a response; decoders drop the space that a leading "▁" stands for."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    first = tokenizer.convert_ids_to_tokens(ids[0])
    return f" {text}" if str(first).startswith("▁") and not text.startswith(" ") else text
