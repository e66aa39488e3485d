"""What a verifier says about one rollout: a score, or a failure with its reason. A failure is never a zero.

This is the `verify` step of the flow. A verifier is a pure function `(completion, example) -> Verdict`; the adapters
here give it TRL's signature. A failed verification becomes NaN: its rollout leaves the update and the probe's buffer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of verifying one completion.

    Args:
        score: reward on the verifier's own finite scale; None if the verification itself failed.
        failure: why there is no score (time-out, exception, missing isolation); None if there is one.
        answer: what was extracted from the completion and compared, for logs and reports; equal answers are one vote.
        note: what else is worth a log line, such as which test a program failed.

    Raises:
        ValueError: neither or both of score and failure are given, or the score is not finite.
    """

    score: float | None
    failure: str | None = None
    answer: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if (self.score is None) == (self.failure is None):
            raise ValueError(f"a verdict has a score or a failure, got score={self.score}, failure={self.failure}")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"a score must be finite, got {self.score}; report a failure instead")

    @staticmethod
    def failed(reason: str) -> Verdict:
        return Verdict(score=None, failure=reason)


Verifier = Callable[[str, Mapping[str, Any]], Verdict]
# Said by a reward of TRL's form that returns None: of several rewards, the others then decide alone.
DOES_NOT_APPLY = "the reward function returned None"


def verdict_of(said: Any) -> Verdict:
    """What a user's own verifier said: a verdict as it is, a number as its score, None or NaN as a failure.

    Raises:
        TypeError: it is none of these.

    >>> verdict_of(True).score, verdict_of(None).failure
    (1.0, 'it returned None')
    """
    if isinstance(said, Verdict):
        return said
    if inspect.iscoroutine(said):
        said.close()
        raise TypeError("only a reward of the form (completions, **columns) may be async")
    try:
        score = math.nan if said is None else float(said)
    except (TypeError, ValueError):
        raise TypeError(f"return a number or a Verdict, not {said!r:.80}") from None
    return Verdict(score=score) if math.isfinite(score) else Verdict.failed(f"it returned {said}")


def completion_text(completion: str | list[Mapping[str, Any]]) -> str:
    """Text of a completion in TRL's plain (str) or conversational (list of messages) form."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def as_trl_reward(verify: Verifier, name: str | None = None) -> Callable[..., list[float]]:
    """A TRL reward function from a verifier: columns in, one float per rollout out, NaN where verification failed.

    NaN rather than None, which in TRL means that a reward does not apply: beside another reward, that would be a zero.

    Args:
        verify: `(completion, example) -> Verdict`; `example` is the dataset row (every column but the prompt's copies).
        name: what TRL logs the reward under; the verifier's own name if None.

    Why the last failed rollout has no score stands in the function's attribute `last_failure`.
    """

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        rows = {
            key: values for key, values in columns.items() if isinstance(values, list) and len(values) == len(prompts)
        }

        def score(index: int) -> float:
            example = {"prompt": prompts[index], **{key: values[index] for key, values in rows.items()}}
            try:
                verdict = verdict_of(verify(completion_text(completions[index]), example))
            except Exception as error:
                verdict = Verdict.failed(f"{type(error).__name__}: {error}")
            if verdict.failure is not None:
                reward.last_failure = f"{reward.__name__}: {verdict.failure}"  # pyright: ignore
            return math.nan if verdict.score is None else verdict.score

        # Verifiers that wait for other processes say how many rollouts they can look at side by side.
        threads = getattr(verify, "concurrency", 1)
        if threads == 1:
            return [score(index) for index in range(len(completions))]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(score, range(len(completions))))

    reward.__name__ = name or getattr(verify, "__name__", type(verify).__name__)
    return reward
