"""Verifies procedural answers: the answer is extracted first, then reasoning-gym's own scorer judges it alone.

The `verify` step for `poise.tasks.procedural`. reasoning-gym gives points when the right answer merely occurs
somewhere, and several of its scorers hand the answer to `eval`. So a completion must give exactly one
`<answer>...</answer>` outside its thinking; where a scorer would evaluate the answer, only text that cannot do
anything reaches it (`procedural_guard`); and where a scorer gives full marks to wrong answers, they are checked again
(`procedural_checks`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from poise.errors import ConfigError
from poise.rewards.procedural_checks import is_right
from poise.rewards.procedural_guard import SYMBOLIC, is_harmless
from poise.rewards.verdict import Verdict
from poise.rewards.workers import WorkerPool, WorkerTimeoutError
from poise.tasks.procedural import dataset, dump_entry, load_entry

# Beyond this no dataset's answer goes; a longer one is a loop, and some scorers are quadratic in it.
_LONGEST_ANSWER = 20_000
# sympy takes a tenth of a second for what entries ask, and hours for what a policy may write.
_SECONDS = 10.0
_SYMBOLIC = WorkerPool("poise.rewards.procedural_worker", min(4, os.cpu_count() or 1))


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """1 if reasoning-gym gives the extracted answer full marks, else 0.

    Args:
        completion: the rollout's text.
        example: a row of a procedural task; only `info` is read.
    """
    verdict = verify_partial(completion, example)
    if verdict.score is None:
        return verdict
    return Verdict(score=float(verdict.score >= 1.0), answer=verdict.answer)


def verify_partial(completion: str, example: Mapping[str, Any]) -> Verdict:
    """reasoning-gym's own score of the extracted answer, partial credit included, in [0, 1]."""
    answer = extract_answer(completion)
    if answer is None:
        return Verdict(score=0.0)
    try:
        info = load_entry(example["info"])
        name, entry = info["dataset"], info["entry"]
        scorer = dataset(name, json.dumps(info.get("options", {}), sort_keys=True))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        return Verdict.failed(f"the row's info names no reasoning-gym entry: {type(error).__name__}: {error}")
    own = str(entry.get("answer"))
    if len(answer) > _LONGEST_ANSWER or not (is_harmless(answer, name) or answer == own):
        return Verdict(score=0.0, answer=answer[:_LONGEST_ANSWER])
    try:
        score = _score(info, scorer, answer)
    except WorkerTimeoutError as error:
        return Verdict.failed(f"reasoning-gym's scorer of {name!r} was stopped: {error}")
    except Exception as error:
        if answer != own and _copes_with(scorer, entry, own):
            return Verdict(score=0.0, answer=answer)  # what it cannot read is wrong
        return Verdict.failed(f"reasoning-gym's scorer of {name!r} raised {type(error).__name__}: {error}")
    if score >= 1.0 and not is_right(name, answer, entry):
        score = 0.0
    return Verdict(score=min(1.0, max(0.0, score)), answer=answer)


def _score(info: Mapping[str, Any], scorer: Any, answer: str) -> float:
    """The dataset's own score; where it takes a computation without bounds, in a process that can be killed."""
    if info["dataset"] not in SYMBOLIC:
        return float(scorer.score_answer(answer, info["entry"]))
    question = {"name": info["dataset"], "options": info.get("options", {}), "answer": answer}
    found = _SYMBOLIC.ask({**question, "entry": dump_entry(info["entry"]), "seconds": _SECONDS}, _SECONDS)
    if "score" not in found:
        raise ValueError(found.get("error"))
    return float(found["score"])


def _copes_with(scorer: Any, entry: Mapping[str, Any], answer: str) -> bool:
    """Whether the scorer works on the entry itself, so that a text that it raises at is to blame."""
    try:
        scorer.score_answer(answer, entry)
    except Exception:
        return False
    return True


def extract_answer(completion: str) -> str | None:
    """The text of the only `<answer>...</answer>` outside the thinking; None if there is none, or more than one.

    Thinking that never ends hides everything after it, and a second answer, or a tag inside an answer, is no answer.
    """
    thought_out = re.sub(r"<think>.*?(</think>|\Z)", "", completion, flags=re.DOTALL)
    # A template may have opened <think> in the prompt: then everything up to the first </think> was thinking.
    said = thought_out.rsplit("</think>", 1)[-1]
    if said.count("<answer>") != 1 or said.count("</answer>") != 1:
        return None
    match = re.search(r"<answer>(.*)</answer>", said, re.DOTALL)
    return match.group(1).strip() if match else None
