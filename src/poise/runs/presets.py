"""What a run's preset decides: after this, its settings are the same whatever later versions decide."""

from __future__ import annotations

from dataclasses import replace

from poise.core.presets import with_preset
from poise.runs.settings import TrainSettings

# The core's name of each setting, and a run's.
_NAMES = {
    "baseline": "baseline",
    "weights": "probe_weights",
    "sibling_outcome": "probe_sibling_outcome",
    "cold_start_rows": "cold_start_rows",
    "cold_start_steps": "cold_start_steps",
}


def decided(settings: TrainSettings) -> TrainSettings:
    """The settings with the preset's values in place of those that are None."""
    given = {theirs: getattr(settings.poise, ours) for theirs, ours in _NAMES.items()}
    chosen = with_preset(settings.poise.preset, given)
    return replace(settings, poise=replace(settings.poise, **{_NAMES[name]: value for name, value in chosen.items()}))
