"""Settings as TOML: read over defaults, checked key by key, and written back so that `--config` reads the same again.

Works on any frozen dataclass whose fields are either sections (dataclasses) or plain values.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from poise.errors import ConfigError

SettingsT = TypeVar("SettingsT")

# What others call a setting - TRL, or another command of this program - where letters alone would suggest another one.
_ELSEWHERE = {
    "num_generations": ("rollouts_per_prompt", "k"),
    "per_device_train_batch_size": ("micro_batch",),
    "batch_size": ("micro_batch",),
    "num_train_epochs": ("steps",),
    "max_new_tokens": ("max_completion_tokens",),
    "max_tokens": ("max_completion_tokens", "max_new_tokens"),
    "max_completion_tokens": ("max_new_tokens",),
    "lr": ("learning_rate",),
    "beta": ("kl_weight",),
    "epsilon": ("clip_low",),
    "delta": ("dual_clip",),
    "save_steps": ("save_every",),
    "eval_steps": ("eval_every",),
    "use_peft": ("lora_rank",),
    "dataset": ("data", "task"),
    "dataset_name": ("data", "task"),
    "train_data": ("data", "task"),
    "data": ("task",),
    "samples": ("k", "eval_samples"),
}


def read_settings(path: Path, base: SettingsT) -> SettingsT:
    """`base` with the values of a TOML file in place of its own.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown (the nearest one is named), or a value has the
            wrong type.
    """
    return overlay(base, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; --config wants a TOML file, e.g. {path / 'config.toml'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def overlay(
    base: SettingsT, table: Mapping[str, Any], source: str, prefix: str = "", known: list[str] | None = None
) -> SettingsT:
    """`base` with the entries of `table`.

    Args:
        base: settings, or a section of them.
        table: values by key; sections are tables of their own.
        source: where the table comes from, for messages.
        prefix: of the section's keys.
        known: every key of the whole settings; collected at the top.
    """
    known = all_keys(type(base)) if known is None else known
    kinds = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            raise ConfigError(f"{source}: unknown key {name!r}{suggest(name, known)}")
        current = getattr(base, key)
        if not is_dataclass(current):
            changes[key] = coerce(value, kinds[key], f"{source}: {name}")
        elif isinstance(value, Mapping):
            changes[key] = overlay(current, value, source, f"{name}.", known)
        else:
            raise ConfigError(f"{source}: {name!r} is a section, write [{name}] with its keys below it, not {value!r}")
    return replace(base, **changes)  # pyright: ignore


def all_keys(kind: type, prefix: str = "") -> list[str]:
    """Every key of a settings class, sections included, as section.key."""
    names: list[str] = []
    for name, hint in get_type_hints(kind).items():
        names.append(f"{prefix}{name}")
        if is_dataclass(hint):
            names += all_keys(hint, f"{prefix}{name}.")  # pyright: ignore
    return names


def suggest(word: str, known: Iterable[str]) -> str:
    """A clause that names the known word nearest to `word`, its last part first (right key, wrong section)."""
    known = list(known)
    tail = word.rsplit(".", 1)[-1]
    moved = [name for name in known if name.rsplit(".", 1)[-1] == tail] or _called_elsewhere(tail, known)
    near = moved or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near:
        tails = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [tails[match] for match in difflib.get_close_matches(tail, tails, n=1, cutoff=0.5)]
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"


def _called_elsewhere(word: str, known: list[str]) -> list[str]:
    """The known name of what has another name elsewhere; none if letters have to decide."""
    here = {name.rsplit(".", 1)[-1].lstrip("-").replace("-", "_"): name for name in known}
    meant = _ELSEWHERE.get(word.lstrip("-").replace("-", "_"), ())
    return [here[name] for name in meant if name in here][:1]


def coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as the type `kind`; an integer passes for a float, a single value for a list of one.

    Raises:
        ConfigError: it is of another type.
    """
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (kind,) = [option for option in options if option is not types.NoneType]
        return coerce(value, kind, where)
    if origin is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(coerce(item, options[0], where) for item in values)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, options))}, got {value!r}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where} must be {names.get(kind, kind)}, got {value!r}")
    return at_home(value) if kind is str else value


def at_home(text: str) -> str:
    """A place below `~` as a whole path, as a shell would say it: a file of settings and `--out=~/runs` meet no shell.

    >>> at_home("path=~/data").endswith("/data"), at_home("about ~3")
    (True, 'about ~3')
    """
    return re.sub(r"^([\w-]*=)?~(?=/)", lambda start: f"{start[1] or ''}{Path.home()}", text)


def to_toml(settings: Any) -> str:
    """The settings as TOML, one table per section; keys without a value (None) are left out."""
    lines: list[str] = []
    for section in fields(settings):
        value = getattr(settings, section.name)
        if is_dataclass(value):
            entries = ((entry.name, getattr(value, entry.name)) for entry in fields(value))
            lines += [
                "",
                f"[{section.name}]",
                *(f"{key} = {literal(item)}" for key, item in entries if item is not None),
            ]
        elif value is not None:
            lines.insert(0, f"{section.name} = {literal(value)}")
    return "\n".join(lines).strip() + "\n"


def literal(value: Any) -> str:
    """A TOML literal. JSON's strings, numbers and booleans are TOML's, DEL aside."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two settings of one class: section.key -> (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for entry in fields(old):
        before, after = getattr(old, entry.name), getattr(new, entry.name)
        if is_dataclass(before):
            found |= differences(before, after, f"{prefix}{entry.name}.")
        elif before != after:
            found[f"{prefix}{entry.name}"] = (before, after)
    return found
