"""A reward that fails, reproducibly, for one answer in sixteen: what a flaky sandbox does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from poise.rewards import Verdict, verifier


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    if crc32(completion.encode()) % 16 == 0:
        raise TimeoutError("the sandbox did not answer")
    return verifier("procedural")(completion, example)
