"""The `poise.*` part of a verl configuration, checked: which states, which probe, which baseline."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from poise.core import BASELINES, READ_STATES, EstimatorConfig, ProbeConfig, StateSpec, with_preset
from poise.errors import ConfigError

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class PoiseSettings:
    """What a verl user chooses under `poise.*`; the defaults stand in config/poise.yaml with their sources.

    Every setting of `EstimatorConfig` is a key of the section, every setting of `ProbeConfig` one of `poise.probe`.

    Args:
        estimator: what credits the rollouts, the probe included.
        prompt_layer, reasoning_layer: index (1 = first block), negative index, or fraction of depth.
        window: how many of the last tokens of each part are averaged.
        end_of_reasoning: text that closes the reasoning; None if the model has none.
        allow_fresh_probe: continue from a checkpoint that holds no probe (one written by plain verl) with a cold one.
    """

    estimator: EstimatorConfig
    prompt_layer: int | float = 0.5
    reasoning_layer: int | float = 0.5
    window: int = 10
    end_of_reasoning: str | None = "</think>"
    allow_fresh_probe: bool = False

    def __post_init__(self) -> None:
        StateSpec(self.prompt_layer, self.reasoning_layer, self.window)  # refuses a window that pools nothing

    @staticmethod
    def of(section: Mapping[str, Any]) -> PoiseSettings:
        """Read the section; `layer` is the default of both layers.

        Raises:
            ConfigError: an unknown key, or a value that cannot work.
        """
        values = dict(section)
        layer, probe = _fitting(values.pop("layer", None), int | float | None, "poise.layer"), values.pop("probe", None)
        for name in ("prompt_layer", "reasoning_layer"):
            values[name] = layer if values.get(name) is None else values[name]
            if values[name] is None:
                del values[name]
        _refuse_unknown(
            values, {*names_of(PoiseSettings, EstimatorConfig), "layer", "preset"} - {"estimator", "tracker"}, "poise."
        )
        probe = {} if probe is None else probe
        if not isinstance(probe, Mapping):
            raise ConfigError(f"poise.probe holds the probe's settings (poise.probe.alpha, ...), got {probe!r}")
        _refuse_unknown(probe, set(names_of(ProbeConfig)), "poise.probe.")
        decided = with_preset(values.pop("preset", "default"), {**values, **probe})
        probe = {**probe, **{name: decided.pop(name) for name in ("weights", "sibling_outcome")}}
        values |= decided
        _refuse_unknown([values["baseline"]], set(BASELINES) - {"tracker", "critic"}, "poise.baseline=")
        ours = {name: values.pop(name) for name in names_of(EstimatorConfig) if name in values}
        ours["probe"] = _built(ProbeConfig, probe, "poise.probe.")
        return _built(PoiseSettings, {**values, "estimator": _built(EstimatorConfig, ours, "poise.")}, "poise.")

    @property
    def needs_features(self) -> bool:
        """Whether credit reads the policy's states at all."""
        return self.estimator.baseline in READ_STATES

    @property
    def needs_scores(self) -> bool:
        """Whether the probe reads the rollouts' squared scores."""
        return self.needs_features and self.estimator.probe.reads_scores

    def states(self, tokenizer: Any, depth: int) -> StateSpec:
        """The states to capture from a model of `depth` blocks, layers resolved to indices."""
        ids = tokenizer.encode(self.end_of_reasoning, add_special_tokens=False) if self.end_of_reasoning else []
        end = () if tokenizer.unk_token_id in ids else tuple(ids)  # a text that it cannot write marks nothing
        prompt, reasoning = StateSpec(self.prompt_layer, self.reasoning_layer, self.window).resolve(depth)
        return StateSpec(prompt, reasoning, self.window, end)


def names_of(*kinds: type) -> list[str]:
    """Names of all settings of some settings classes."""
    return [item.name for kind in kinds for item in fields(kind)]


def _built(kind: type[SettingsT], values: Mapping[str, Any], prefix: str) -> SettingsT:
    """A settings object from YAML's values.

    Raises:
        ConfigError: a value that is of another type than its setting, or none of its choices.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _fitting(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def _fitting(value: Any, hint: Any, name: str) -> Any:
    """YAML's lists are tuples here, and its whole numbers may be meant as floats."""
    if get_origin(hint) is Literal:
        _refuse_unknown([value], set(get_args(hint)), f"{name}=")
        return value
    kinds = get_args(hint) or (hint,)
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    takes_pair = any(get_origin(kind) is tuple for kind in kinds)
    if takes_pair and isinstance(value, list) and len(value) == 2 and {type(part) for part in value} <= {int, float}:
        return float(value[0]), float(value[1])
    if type(value) not in kinds:
        raise ConfigError(f"{name} must be of type {' or '.join(map(_in_words, kinds))}, got {value!r}")
    return value


def _in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "[low, high]"
    return "null" if kind is type(None) else kind.__name__


def _refuse_unknown(given: Iterable[str], known: set[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.0)
            raise ConfigError(f"{prefix}{name} is not a setting; did you mean {prefix}{close[0]}?")
