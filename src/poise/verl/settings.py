"""The `poise.*` part of a verl configuration, checked: which states, which probe, which baseline."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from poise.core import BASELINES, EstimatorConfig, ProbeConfig, StateSpec
from poise.errors import ConfigError


@dataclass(frozen=True)
class PoiseSettings:
    """What a verl user chooses under `poise.*`; the defaults stand in config/poise.yaml with their sources.

    Args:
        baseline: "probe" (POISE), "leave-one-out", "shrinkage", "group-mean" or "none".
        prompt_layer, reasoning_layer: index (1 = first block), negative index, or fraction of depth.
        window: how many of the last tokens of each part are averaged.
        end_of_reasoning: text that closes the reasoning; None if the model has none.
        capacity: rows of the probe's buffer, per domain.
        cold_start_rows, cold_start_steps: leave-one-out until the probe has seen this much.
        probe: how the probe is fitted.
        allow_fresh_probe: continue from a checkpoint that holds no probe (one written by plain verl) with a cold one.
    """

    baseline: Any = "probe"
    prompt_layer: int | float = 0.5
    reasoning_layer: int | float = 0.5
    window: int = 10
    end_of_reasoning: str | None = "</think>"
    capacity: int = 4096
    cold_start_rows: int = 256
    cold_start_steps: int = 0
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    allow_fresh_probe: bool = False

    @staticmethod
    def of(section: Mapping[str, Any]) -> PoiseSettings:
        """Read the section; `layer` is the default of both layers.

        Raises:
            ConfigError: an unknown key, or a value that cannot work.
        """
        values = {key: value for key, value in section.items() if value is not None or key == "end_of_reasoning"}
        layer = values.pop("layer", None)
        probe = dict(values.pop("probe", {}))
        if isinstance(probe.get("clip"), list):
            probe["clip"] = tuple(float(bound) for bound in probe["clip"])
        if "alpha" in probe:
            probe["alpha"] = float(probe["alpha"])
        _refuse_unknown(values, {item.name for item in fields(PoiseSettings)} | {"layer"}, "poise.")
        _refuse_unknown(probe, {item.name for item in fields(ProbeConfig)}, "poise.probe.")
        _refuse_unknown([values.get("baseline", "probe")], set(BASELINES), "poise.baseline=")
        layers = {} if layer is None else {"prompt_layer": layer, "reasoning_layer": layer}
        settings = PoiseSettings(**{**layers, **values, "probe": ProbeConfig(**probe)})
        settings.estimator()  # raises where the numbers contradict each other
        return settings

    def estimator(self) -> EstimatorConfig:
        """The settings that `ValueEstimator` takes."""
        return EstimatorConfig(
            baseline=self.baseline,
            probe=self.probe,
            capacity=self.capacity,
            cold_start_rows=self.cold_start_rows,
            cold_start_steps=self.cold_start_steps,
        )

    def states(self, tokenizer: Any, depth: int) -> StateSpec:
        """The states to capture from a model of `depth` blocks, layers resolved to indices."""
        ids = tokenizer.encode(self.end_of_reasoning, add_special_tokens=False) if self.end_of_reasoning else []
        end = () if tokenizer.unk_token_id in ids else tuple(ids)  # a text that it cannot write marks nothing
        prompt, reasoning = StateSpec(self.prompt_layer, self.reasoning_layer, self.window).resolve(depth)
        return StateSpec(prompt, reasoning, self.window, end)


def feature_identity(spec: StateSpec, depth: int) -> dict[str, Any]:
    """What a probe's features are, as saved with it and compared on resuming; the TRL adapter saves the same keys."""
    return {
        "prompt_layer": spec.prompt_layer,
        "reasoning_layer": spec.reasoning_layer,
        "depth": depth,
        "window": spec.window,
        "end_of_reasoning": list(spec.end_of_reasoning),
        "features": ["prompt", "reasoning", "entropy"],
    }


def _refuse_unknown(given: Iterable[str], known: set[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.0)
            raise ConfigError(f"{prefix}{name} is not a setting; did you mean {prefix}{close[0]}?")
