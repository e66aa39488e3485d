"""The child process in which math-verify compares two answers: `python -m poise.rewards.math_worker`.

One JSON line in, {"truth", "said", "decimals", "seconds"}; one out, {"equal": bool} or {"error": text}.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from poise.rewards.worker_loop import serve


def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from math_verify import LatexExtractionConfig, parse, verify

    extraction = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(answer: str) -> list[Any]:
        # Only the whole answer counts: without fallback, math-verify does not look for a number inside a sentence.
        # It takes `\pi(6)` for a function of 6.
        boxed = "\\boxed{" + re.sub(r"\\pi\s*\(", r"\\pi\\cdot(", answer) + "}"
        return parse(boxed, extraction_config=extraction, fallback_mode="no_fallback", parsing_timeout=None)

    def equal(question: dict[str, Any]) -> dict[str, Any]:
        truth, said = parsed(question["truth"]), parsed(question["said"])
        return {"equal": bool(verify(truth, said, float_rounding=question["decimals"], timeout_seconds=None))}

    parsed("1")  # the first parse loads grammars
    return equal


if __name__ == "__main__":
    serve(prepare)
