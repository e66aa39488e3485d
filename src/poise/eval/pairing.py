"""Is one run better than another? A paired test over the prompts that both evaluations have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.errors import ConfigError
from poise.eval.metrics import Estimate, bootstrap, sign_flip_p_value
from poise.eval.results import Evaluation


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of two evaluations.

    Args:
        first, second: average of each on the shared prompts.
        difference: mean over shared prompts of second minus first, with its paired bootstrap interval.
        p_value: two-sided, of the sign-flip permutation test.
        prompts: number of shared prompts.
        only_first, only_second: prompts that one of the two has alone (or whose verifications all failed there).
        unlike: how the two were not sampled or judged alike: setting -> (the first's, the second's).
    """

    first: float
    second: float
    difference: Estimate
    p_value: float
    prompts: int
    only_first: int
    only_second: int
    unlike: Mapping[str, tuple[Any, Any]]


def compare(first: Evaluation, second: Evaluation, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Tests whether two evaluations differ in avg@k, prompt by prompt.

    Pairing removes the spread between easy and hard prompts, which is most of an evaluation's uncertainty.

    Args:
        first, second: evaluations on the same task; a prompt is recognised by its text and answer.
        resamples: bootstrap resamples, and random sign flips of the permutation test.
        seed: of both.

    Raises:
        ConfigError: the two share no prompt.
    """
    averages = [
        {result.key: result.average for result in run.results if not math.isnan(result.average)}
        for run in (first, second)
    ]
    shared = [key for key in averages[0] if key in averages[1]]
    if not shared:
        raise ConfigError(
            f"the two evaluations share no prompt ({len(averages[0])} and {len(averages[1])} of their own); "
            "compare runs on the same task, split and template"
        )
    values_2P = np.array([[averages[run][key] for key in shared] for run in (0, 1)])
    differences_P = values_2P[1] - values_2P[0]
    return Comparison(
        first=float(values_2P[0].mean()),
        second=float(values_2P[1].mean()),
        difference=bootstrap(differences_P, resamples=resamples, seed=seed),
        p_value=sign_flip_p_value(differences_P, flips=resamples, seed=seed),
        prompts=len(shared),
        only_first=len(averages[0]) - len(shared),
        only_second=len(averages[1]) - len(shared),
        unlike=_unlike(first.settings, second.settings),
    )


# What decides an accuracy besides the policy and the prompt.
_DECIDING = ("k", "temperature", "top_p", "max_new_tokens", "stop", "template", "reward")


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The deciding settings that both have and differ in; a list read from a file is the tuple that it was."""
    settings = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in of.items()}
        for of in (first, second)
    ]
    both = [name for name in _DECIDING if name in first and name in second]
    return {name: (settings[0][name], settings[1][name]) for name in both if settings[0][name] != settings[1][name]}
