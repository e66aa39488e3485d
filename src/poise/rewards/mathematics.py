r"""The math reward: is the completion's final answer mathematically equal to the ground truth?

The answer is what stands last in `\boxed{}`, `<answer>`, `Answer:` or `####`; several different answers side by side
are right only if the truth names them all. The truth of a worked solution is what follows its last `####`. Plain
numbers are compared exactly and at once; everything else goes to math-verify in a worker process that is killed when it
takes too long.

Wrong (score 0): no answer, another answer, an answer that leaves the arithmetic to the reader where the truth is a
plain number, and monstrous answers (towers of powers, hundreds of nested braces), which are not computed. Failed (no
score): the check took too long or ran out of memory.
"""

from __future__ import annotations

import importlib.util
import os
from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from threading import Lock
from typing import Any

from poise.errors import ConfigError
from poise.rewards.answers import after_hashes, final_answers
from poise.rewards.choices import choice, letter_of
from poise.rewards.math_text import canonical, is_monstrous, plain_number, still_to_work_out
from poise.rewards.math_words import (
    DECIMALS,
    is_worded,
    number_asked,
    number_said,
    other_things,
    other_unit,
    same_time,
    sides_said,
    value_said,
    words,
)
from poise.rewards.verdict import Verdict
from poise.rewards.workers import WorkerPool, WorkerTimeoutError

# math-verify rounds to six decimals; numbers whose difference is a smaller share of the truth are left to it.
_CLOSE = Fraction(1, 10**4)
_REMEMBERED = 8192


class MathVerifier:
    """Compares final answers with the example's `answer`.

    Args:
        seconds: longest time of one check.
        workers: most worker processes at once.

    Raises:
        ConfigError: math-verify is not installed.
    """

    # Checks wait for their worker, so a batch of rollouts keeps all workers busy.
    concurrency = 4

    def __init__(self, seconds: float = 5.0, workers: int = min(4, os.cpu_count() or 1)) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("the reward 'math' needs math-verify: pip install 'poise-rl[math]'")
        self.__name__ = "math"
        self.seconds = seconds
        self.pool = WorkerPool("poise.rewards.math_worker", workers)
        self._known: OrderedDict[tuple[str, str, int], bool] = OrderedDict()
        self._lock = Lock()

    def __call__(self, completion: str, example: Mapping[str, Any]) -> Verdict:
        """1 if the final answer equals `example["answer"]`, 0 if not, a failure if that could not be found out."""
        truth = "" if example["answer"] is None else canonical(after_hashes(str(example["answer"])))
        if not truth:
            return Verdict.failed("the example has no ground truth")
        stated = list(dict.fromkeys(canonical(answer) for answer in final_answers(completion)))
        if not stated:
            return Verdict(0.0)
        said = ", ".join(stated)
        try:
            if len(stated) > 1 and all(self.equal(stated[0], other) for other in stated[1:]):
                said = stated[0]  # one answer in several spellings
            equal = self.equal(truth, said)
            return Verdict(float(equal), answer=_vote(truth, said, equal))
        except WorkerTimeoutError:
            return Verdict.failed(f"comparing {said[:80]!r} with {truth[:80]!r} took longer than {self.seconds:g} s")
        except EOFError as error:
            return Verdict.failed(f"comparing {said[:80]!r} with {truth[:80]!r}: {error}")

    def equal(self, truth: str, said: str) -> bool:
        """Whether two answers in canonical spelling are equal.

        Raises:
            WorkerTimeoutError, EOFError: the check did not come to an end.
        """
        known = quickly_equal(truth, said)
        if known is not None:
            return known
        number = number_asked(truth)
        asked = number or value_said(truth, truth) or truth
        value = (number and number_said(said)) or value_said(said, asked)
        if value is None or not self._checked(asked, value):
            return False
        last = asked.rsplit("=", 1)[-1]
        return all(self._checked(last, side, decimals) for side, decimals in sides_said(said, asked))

    def _checked(self, truth: str, said: str, decimals: int = DECIMALS) -> bool:
        key = (truth, said, decimals)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        answer = self.pool.ask(
            {"truth": truth, "said": said, "decimals": decimals, "seconds": self.seconds}, self.seconds
        )
        if answer.get("error") == "MemoryError":
            raise EOFError("out of memory")
        # Any other error is text that is no mathematics, so it is not the truth.
        equal = bool(answer.get("equal", False))
        with self._lock:
            self._known[key] = equal
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return equal


def quickly_equal(truth: str, said: str) -> bool | None:
    """Whether two answers in canonical spelling are equal, if that is plain to see; None if it takes a computation."""
    if said == truth:
        return True
    time = same_time(truth, said)
    if time is not None:
        return time
    number = plain_number(number_asked(truth) or "")
    if number is not None:
        return not (other_unit(truth, said) or other_things(truth, said)) and _number_equal(number, truth, said)
    letter = letter_of(truth)
    if letter is not None:
        return choice(said) == letter
    if is_worded(truth) or is_worded(said):
        return words(said) == words(truth)
    if "\\text" in truth + said and words(said) == words(truth):
        return True
    if not said.isascii() or is_monstrous(said, truth) or other_unit(truth, said):
        return False
    return None


def _vote(truth: str, said: str, equal: bool) -> str:
    """What is logged and voted on: right answers as the truth, other numbers and letters in one spelling each."""
    right = _spelled(truth, truth)
    vote = right if equal else _spelled(said, truth)
    return said[:200] if vote == right and not equal else vote


def _spelled(said: str, truth: str) -> str:
    bare = number_said(said)
    if bare is not None:
        number = plain_number(bare)
        return bare if number is None else str(number)
    return (choice(said) if letter_of(truth) else None) or said[:200]


def _number_equal(number: Fraction, truth: str, said: str) -> bool | None:
    bare = None if is_monstrous(said, truth) else number_said(said)
    if bare is None:
        return False
    found = plain_number(bare)
    if found is None:
        return False if still_to_work_out(bare) else None
    if found == number:
        return True
    return False if abs(found - number) > _CLOSE * abs(number) else None
