"""What a study has finished, on disk: one file a chunk of work, written in one go, so that a killed study goes on.

Chunks are safetensors with JSON metadata (`poise.core.trees`); loading one executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from poise.core import load_state, save_state
from poise.errors import StateMismatchError
from poise.runs.journal import finite, replace_json

Tensors = dict[str, Tensor]


class Cache:
    """A folder of finished chunks, opened under the settings that made them.

    Args:
        folder: where the chunks lie.
        settings: everything that changes them; chunks made under other settings are refused.

    Raises:
        StateMismatchError: the folder holds chunks made under other settings, which are named.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file, present = folder / "settings.json", json.loads(json.dumps(finite(settings)))
        if not (file.exists() and any(folder.glob("*.safetensors"))):
            replace_json(file, present)
            return
        written = json.loads(file.read_text("utf-8"))
        names = sorted(name for name in {*written, *present} if written.get(name) != present.get(name))
        if names:
            listed = "; ".join(f"{name} was {written.get(name)!r} and is {present.get(name)!r}" for name in names)
            raise StateMismatchError(
                f"{folder} holds parts of a study made under other settings ({listed}); give another --out or delete it"
            )

    def once(self, name: str, make: Callable[[], tuple[Tensors, Mapping[str, Any]]]) -> tuple[Tensors, dict[str, Any]]:
        """A chunk's tensors and metadata: read if it is finished, else made and written."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            tensors, meta = make()
            save_state(
                path, {"tensors": {key: value.contiguous() for key, value in tensors.items()}, "meta": dict(meta)}
            )
        state = load_state(path)
        return state["tensors"], state["meta"]
