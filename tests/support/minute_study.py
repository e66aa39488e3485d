"""Studies of minute size: the flags that make one, and a verifier of random texts."""

from __future__ import annotations

from poise.rewards import Verdict

MINUTE = ["--train-prompts", "12", "--resamples", "50", "--critic-rates", "1e-3", "--critic-epochs", "1"]
MINUTE += ["--max-new-tokens", "40", "--device", "cpu"]


def verify(text: str, row: dict[str, str]) -> Verdict:
    """Longer texts are better; what starts with a digit cannot be judged."""
    return Verdict.failed("digit") if text[:1].isdigit() else Verdict(score=float(len(text) > 5))
