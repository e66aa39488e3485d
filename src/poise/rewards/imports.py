"""From `module:function` to the function itself: how a user's own reward is found for the `verify` step."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from poise.errors import ConfigError

# A user's file and when it was last changed, with its module: what it loads and keeps is loaded once and shared.
_FILES: dict[tuple[Path, int], ModuleType] = {}


def import_attribute(spec: str) -> Any:
    """The object that `package.module:name` or `path/to/file.py:name` stands for.

    Raises:
        ConfigError: the module cannot be imported, or it has no such attribute (the nearest one is named).
    """
    module_name, _, attribute = spec.rpartition(":")
    try:
        module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    except Exception as error:
        raise ConfigError(f"cannot import {spec!r}: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f"{module_name} has no {attribute!r}{nearest(attribute, public)}")
    return getattr(module, attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence that names the closest known name, or all of them.

    >>> nearest("mth", ["math", "code"])
    "; did you mean 'math'?"
    >>> nearest("zzz", ["math", "code"])
    '; known are math, code'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _import_module(name: str) -> ModuleType:
    # A console script does not have the current folder on its path, and that is where a user's own module lies.
    _look_in(Path.cwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"poise_user_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no Python file at {path}")
    known = path.resolve(), path.stat().st_mtime_ns
    if known in _FILES:
        return _FILES[known]
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _look_in(known[0].parent)  # for what it imports from beside it
    spec.loader.exec_module(module)
    _FILES[known] = module
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
