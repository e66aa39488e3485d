"""Every example in a docstring prints what it says, outside the core too (`tests/core/test_doctests.py` has that)."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import poise

_ROOT = Path(poise.__file__).parent
MODULES = sorted(
    ".".join(("poise", *path.relative_to(_ROOT).with_suffix("").parts))
    for path in _ROOT.rglob("*.py")
    if ">>> " in path.read_text("utf-8") and "core" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    pytest.importorskip("trl")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
