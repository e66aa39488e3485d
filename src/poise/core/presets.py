"""Presets: the published form of POISE, and the one that did better in our own measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poise.core.limits import one_of

# `weights` and `sibling_outcome` are ProbeConfig's, the others EstimatorConfig's.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "baseline": "auto",
        "weights": "score",
        "sibling_outcome": True,
        "cold_start_rows": 256,
        "cold_start_steps": 0,
    },
    "paper": {
        "baseline": "probe",
        "weights": "none",
        "sibling_outcome": False,
        "cold_start_rows": 1,
        "cold_start_steps": 16,
    },
}


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the estimator where the preset decides those that are None.

    Args:
        name: "default": the probe and the means, weighted by their errors so far; fitted with squared scores, the
            sibling's outcome beside its states. "paper": the probe alone, fitted to the expected reward, from states
            alone, after 16 steps of leave-one-out.
        given: settings of those names; one that is missing counts as None.

    Raises:
        ConfigError: no preset has that name.

    Source: "paper" is the authors' code (arXiv 2605.07579); why "default" differs is measured in docs/results/lab.

    >>> with_preset("paper", {"weights": None, "cold_start_rows": 64})
    {'baseline': 'probe', 'weights': 'none', 'sibling_outcome': False, 'cold_start_rows': 64, 'cold_start_steps': 16}
    """
    one_of("preset", name, PRESETS)
    return {key: value if given.get(key) is None else given[key] for key, value in PRESETS[name].items()}
