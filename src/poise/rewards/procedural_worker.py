"""The child process in which reasoning-gym's symbolic scorers work: `python -m poise.rewards.procedural_worker`.

One JSON line in, {"name", "options", "answer", "entry", "seconds"}, the entry as `dump_entry` writes it; one out,
{"score": float} or {"error": text}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from poise.rewards.worker_loop import serve
from poise.tasks.procedural import dataset, load_entry


def score(question: dict[str, Any]) -> dict[str, Any]:
    """The scorer's own score of an answer."""
    scorer = dataset(question["name"], json.dumps(question["options"], sort_keys=True))
    return {"score": float(scorer.score_answer(question["answer"], load_entry(question["entry"])))}


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    dataset("simple_integration")  # imports sympy
    return score


if __name__ == "__main__":
    serve(prepare)
