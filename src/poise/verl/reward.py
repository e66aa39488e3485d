"""Our rewards as verl's custom reward function, unchanged: a failed verification comes back as NaN, never as a zero.

    reward.custom_reward_function.path=pkg://poise.verl.reward
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.reward=math      # optional: one reward for all rows

The trainer takes a NaN reward out of the update and out of the probe's buffer. Needs no verl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from poise.rewards import Verdict, Verifier, check_row_names, verifier
from poise.tasks import reward_of
from poise.verl.convert import info_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    reward: str = "",
    **kwargs: Any,
) -> dict[str, Any]:
    """Verify one completion with a reward of ours.

    Args:
        data_source: the row's domain; if nothing else names a reward, the task whose reward verifies it.
        solution_str: the completion.
        ground_truth: the row's answer.
        extra_info: may name a registered reward (`reward`), and holds the row's `info`.
        reward: a built-in reward or `module:function`, over what the row says.
        kwargs: what else verl passes.

    Returns:
        verl's reward dictionary: score (what is learnt from) and acc (what validation averages), NaN if verification
        failed; pred, the extracted answer; failure, the reason.

    Raises:
        ConfigError: no reward has that name, or the row names one of its own.
    """
    extra_info = extra_info or {}
    named = str(extra_info.get("reward") or "")
    if named and not reward:
        check_row_names(named)
    verify = _verifier(reward or named or reward_of(data_source))
    example = {"prompt": "", "answer": ground_truth, "domain": data_source, "info": info_of(extra_info)}
    try:
        verdict = verify(solution_str, example)
    except Exception as error:
        verdict = Verdict.failed(f"{type(error).__name__}: {error}")
    score = math.nan if verdict.score is None else float(verdict.score)
    return {"score": score, "acc": score, "pred": verdict.answer or "", "failure": verdict.failure or ""}


@cache
def _verifier(name: str) -> Verifier:
    return verifier(name)
