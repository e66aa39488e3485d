"""The child process in which math-verify compares two answers: `python -m poise.rewards.math_worker`.

One JSON line in, {"truth", "said", "seconds"}; one out, {"equal": bool} or {"error": text}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poise.rewards.worker_loop import serve


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from math_verify import LatexExtractionConfig, parse, verify

    extraction = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(answer: str) -> list[Any]:
        # Only the whole answer counts: without fallback, math-verify does not look for a number inside a sentence.
        boxed = "\\boxed{" + answer + "}"
        return parse(boxed, extraction_config=extraction, fallback_mode="no_fallback", parsing_timeout=None)

    def equal(question: dict[str, Any]) -> dict[str, Any]:
        truth, said = parsed(question["truth"]), parsed(question["said"])
        return {"equal": bool(verify(truth, said, timeout_seconds=None))}

    parsed("1")  # the first parse loads grammars
    return equal


if __name__ == "__main__":
    serve(prepare)
