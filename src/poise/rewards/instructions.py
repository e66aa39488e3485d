"""The instruction-following reward: does the response keep every constraint that its prompt carries?

The constraints are in the example's `answer` (see `constraints.read_constraints`); they are checked on what the
response shows, without its reasoning. A constraint that nobody can check is a failure, not a broken constraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poise.rewards.answers import spoken
from poise.rewards.constraints import UnknownConstraintError, holds, read_constraints
from poise.rewards.verdict import Verdict

# A response longer than this is not read on: constraints ask for hundreds of words, not for a book.
_LONGEST = 200_000


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if every constraint is kept, else 0."""
    return _verdict(completion, example, partial=False)


def verify_partial(completion: str, example: Mapping[str, Any]) -> Verdict:
    """The share of constraints that are kept, as IF-RLVR's training reward has it."""
    return _verdict(completion, example, partial=True)


def shown(completion: str) -> str:
    """What a response shows: its part after the reasoning, without answer tags."""
    return spoken(completion).replace("<answer>", "").replace("</answer>", "").strip()


def _verdict(completion: str, example: Mapping[str, Any], partial: bool) -> Verdict:
    try:
        constraints = read_constraints(str(example["answer"]))
        response = shown(completion)[:_LONGEST]
        kept = [holds(wanted, response) for wanted in constraints]
    except (UnknownConstraintError, TypeError, ValueError) as error:
        return Verdict.failed(f"unreadable constraints: {error}")
    broken = [wanted.id for wanted, good in zip(constraints, kept, strict=True) if not good]
    score = sum(kept) / len(kept) if partial else float(not broken)
    return Verdict(score, note=f"broken: {', '.join(broken)}" if broken else "all kept")
