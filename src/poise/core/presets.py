"""Presets: the published form of POISE, and the one that did better in our own measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poise.core.limits import one_of

# `weights` is ProbeConfig's, the others EstimatorConfig's.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"weights": "score", "cold_start_rows": 256, "cold_start_steps": 0},
    "paper": {"weights": "none", "cold_start_rows": 1, "cold_start_steps": 16},
}


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the estimator where the preset decides those that are None.

    Args:
        name: "default": fitted with squared scores, cold for 256 rows; "paper": fitted to the expected reward, cold for
            16 steps.
        given: `weights`, `cold_start_rows`, `cold_start_steps`; one that is missing counts as None.

    Raises:
        ConfigError: no preset has that name.

    Source: "paper" is the authors' code (arXiv 2605.07579); why "default" differs is measured in docs/results/lab.

    >>> with_preset("paper", {"weights": None, "cold_start_rows": 64})
    {'weights': 'none', 'cold_start_rows': 64, 'cold_start_steps': 16}
    """
    one_of("preset", name, PRESETS)
    return {key: value if given.get(key) is None else given[key] for key, value in PRESETS[name].items()}
