"""Nested dataclasses of tensors: map over them, take them apart for a checkpoint, put them together again.

A checkpoint is one safetensors file whose metadata is JSON, written in one atomic step. Loading it executes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from poise.errors import SaveError, StateMismatchError

T = TypeVar("T")
SCHEMA = 3  # 2: weights and rewards in the buffer; 3: heads of several penalties, the mixture's past


def map_tensors(tree: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same structure with `function` applied to every tensor in it (dataclasses and dicts are walked)."""
    if isinstance(tree, Tensor):
        return cast(T, function(tree))
    if isinstance(tree, dict):
        items = cast(dict[Any, Any], tree).items()
        return cast(T, {key: map_tensors(value, function) for key, value in items})
    if is_dataclass(tree) and not isinstance(tree, type):
        changed = {field.name: map_tensors(getattr(tree, field.name), function) for field in fields(tree)}
        return replace(cast(Any, tree), **changed)
    return tree


def tensors_of(tree: object) -> list[Tensor]:
    """Every tensor of the structure, in the order in which `map_tensors` visits them."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, note)
    return found


def cat_tensors(parts: Sequence[T]) -> T:
    """Structures of one form joined along the first axis, tensor by tensor; what is no tensor is the first part's."""
    columns = zip(*(tensors_of(part) for part in parts), strict=True)
    return map_tensors(parts[0], lambda _: torch.cat(next(columns)))


def flatten(tree: object, prefix: str, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Collect the tensors and scalars of a dataclass under dotted names; None leaves no trace."""
    assert is_dataclass(tree)
    for field in fields(tree):
        name, value = f"{prefix}.{field.name}", getattr(tree, field.name)
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        elif is_dataclass(value):
            flatten(value, name, tensors, scalars)
        elif value is not None:
            scalars[name] = value


def restore(kind: type[T], prefix: str, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> T:
    """Rebuild a dataclass that `flatten` took apart."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        path = f"{prefix}.{name}"
        nested = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if path in tensors:
            values[name] = tensors[path]
        elif path in scalars:
            values[name] = scalars[path]
        elif nested is not None and any(key.startswith(f"{path}.") for key in (*tensors, *scalars)):
            values[name] = restore(cast(type[Any], nested), path, tensors, scalars)
        elif NoneType in get_args(hint):
            values[name] = None
        else:
            raise StateMismatchError(f"the saved state lacks {path}; it was written by another version of this package")
    return kind(**values)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write {"tensors": ..., "meta": ...} to one safetensors file; a kill leaves the old file or the new one.

    Raises:
        SaveError: the disk is full, or does not take the file.
    """
    temporary = path.with_name(f"{path.name}.partial")
    meta = json.dumps({"schema": SCHEMA, **state["meta"]})
    try:
        save_file(state["tensors"], temporary, metadata={"poise": meta})
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise SaveError(f"{path} could not be written ({error}); make room, or choose another disk") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        StateMismatchError: no such file, not such a file, or one of another schema.
    """
    if not path.is_file():
        raise StateMismatchError(f"{path} does not exist; this checkpoint was not written by POISE, or not completely")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["poise"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise StateMismatchError(f"{path} is not a complete POISE state ({error})") from error
    schema = cast(dict[str, Any], meta).get("schema") if isinstance(meta, dict) else None
    if schema != SCHEMA:
        raise StateMismatchError(f"{path} has schema {schema}, this version reads schema {SCHEMA}")
    return {"tensors": tensors, "meta": meta}
