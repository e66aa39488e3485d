"""Every settings class of the core refuses what cannot work as it is built, in one sentence with the value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from poise.core import BASELINES, EstimatorConfig, ProbeConfig, StateSpec, TrackerConfig, ValueEstimator
from poise.errors import ConfigError

NAN, INF = math.nan, math.inf


pytestmark = pytest.mark.usefixtures("without_type_checks")


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (ProbeConfig, {"head": "linear"}, "unknown head 'linear'; choose one of ridge, logistic"),
        (ProbeConfig, {"weights": "scores"}, "unknown weights 'scores'; choose one of none, score"),
        (
            ProbeConfig,
            {"prompt_components": -1},
            "prompt_components must be a whole number of at least 0, got -1; None keeps every column",
        ),
        (
            ProbeConfig,
            {"reasoning_components": 2.5},
            "reasoning_components must be a whole number of at least 0, got 2.5; None keeps every column",
        ),
        (ProbeConfig, {"alpha": 0.0}, "alpha must be positive, got 0.0; a small one such as 0.01 is nearly no penalty"),
        (ProbeConfig, {"alpha": NAN}, "alpha must be a finite number, got nan"),
        (ProbeConfig, {"alpha": INF}, "alpha must be a finite number, got inf"),
        (ProbeConfig, {"alpha": "auto"}, "alpha must be a finite number, got 'auto'"),
        (ProbeConfig, {"clip": (1.0, 1.0)}, "clip must be (low, high) with low < high, got (1.0, 1.0)"),
        (ProbeConfig, {"clip": (0.0, 0.5, 1.0)}, "clip takes two numbers, low and high, got (0.0, 0.5, 1.0)"),
        (ProbeConfig, {"clip": 1.0}, "clip takes two numbers, low and high, got 1.0"),
        (ProbeConfig, {"clip": (0.0, INF)}, "the high end of clip must be a finite number, got inf"),
        (ProbeConfig, {"clip": (NAN, 1.0)}, "the low end of clip must be a finite number, got nan"),
        (EstimatorConfig, {"capacity": 0}, "capacity must be a whole number of at least 1, got 0"),
        (EstimatorConfig, {"capacity": 4096.0}, "capacity must be a whole number of at least 1, got 4096.0"),
        (EstimatorConfig, {"cold_start_rows": 0}, "cold_start_rows must be a whole number of at least 1, got 0"),
        (EstimatorConfig, {"cold_start_steps": -1}, "cold_start_steps must be a whole number of at least 0, got -1"),
        (
            EstimatorConfig,
            {"cold_start_steps": True},
            "cold_start_steps must be a whole number of at least 0, got True",
        ),
        (
            EstimatorConfig,
            {"capacity": 10, "cold_start_rows": 11},
            "cold_start_rows=11 must lie between 1 and the buffer's capacity=10, "
            "or a domain's own probe would never be used",
        ),
        (TrackerConfig, {"prior": NAN}, "tracker_prior must be a finite number, got nan"),
        (TrackerConfig, {"half_life": 0.0}, "tracker_half_life must be positive, got 0.0"),
        (TrackerConfig, {"half_life": INF}, "tracker_half_life must be a finite number, got inf"),
        (TrackerConfig, {"least_kept": NAN}, "least_kept must be a finite number, got nan"),
        (
            TrackerConfig,
            {"least_kept": 0.9, "most_kept": 0.5},
            "the tracker keeps between 0.9 and 0.5 of the past per visit; both must lie in [0, 1), "
            "the first not above the second",
        ),
        (StateSpec, {"window": 0}, "window must be a whole number of at least 1, got 0"),
        (StateSpec, {"prompt_layer": NAN}, "prompt_layer must be a finite number, got nan"),
        (StateSpec, {"reasoning_layer": "last"}, "reasoning_layer must be a finite number, got 'last'"),
        (StateSpec, {"end_of_reasoning": "</think>"}, "end_of_reasoning takes token ids, not text; got '</think>'"),
    ],
)
def test_what_cannot_work_is_refused(kind: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind(**settings)
    assert str(refusal.value) == sentence


def test_an_unknown_baseline_names_the_choices() -> None:
    with pytest.raises(ConfigError) as refusal:
        EstimatorConfig(baseline="oracle")  # pyright: ignore[reportArgumentType]
    assert str(refusal.value) == f"unknown baseline 'oracle'; choose one of {', '.join(BASELINES)}"


def test_numbers_of_other_libraries_are_numbers() -> None:
    probe = ProbeConfig(prompt_components=np.int64(8), alpha=np.float32(2.0))  # pyright: ignore[reportArgumentType]
    saved = ValueEstimator(EstimatorConfig(probe=probe)).identity["probe"]
    assert (saved["prompt_components"], saved["alpha"]) == (8, 2.0)
    assert StateSpec(prompt_layer=np.int64(2), window=np.int32(3)).resolve(4) == (2, 2)  # pyright: ignore
