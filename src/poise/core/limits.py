"""What a setting may be. Every settings class asks here as it is built, so that a wrong value fails with its name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from poise.errors import ConfigError


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices."""
    known = list(choices)
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")


def whole(name: str, value: object, least: int, hint: str = "") -> None:
    """Refuse what is no whole number, or a smaller one than `least`; the hint follows the sentence."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}{hint}")


def finite(name: str, value: object) -> None:
    """Refuse what is no number, NaN and the infinities."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")


def positive(name: str, value: float, hint: str = "") -> None:
    """Refuse what is no finite number above zero; the hint follows the sentence."""
    finite(name, value)
    if value <= 0:
        raise ConfigError(f"{name} must be positive, got {value}{hint}")


def interval(name: str, value: object) -> None:
    """Refuse what is not two finite numbers, the first below the second."""
    if not isinstance(value, tuple) or len(value) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise ConfigError(f"{name} takes two numbers, low and high, got {value!r}")
    for end, number in zip(("low", "high"), value, strict=True):  # pyright: ignore[reportUnknownArgumentType]
        finite(f"the {end} end of {name}", number)
    if not value[0] < value[1]:
        raise ConfigError(f"{name} must be (low, high) with low < high, got {value}")
