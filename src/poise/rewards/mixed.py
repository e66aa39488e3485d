"""The reward of a mixture of domains: each row is verified by the reward that its own `info` names.

For tasks whose rows need different verifiers (GURU: math, code, logic, ...). A row that names none is a failure, and
so is one that names code of its own: what is imported is for the command line and the configuration to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from poise.errors import ConfigError
from poise.rewards.registry import check_row_names, verifier
from poise.rewards.verdict import Verdict


def verify(completion: str, example: Mapping[str, Any]) -> Verdict:
    """The verdict of the reward named by `reward` in the example's `info`."""
    name = json.loads(example.get("info") or "{}").get("reward")
    if not isinstance(name, str):
        return Verdict.failed("the row's info names no reward")
    if name == "mixed":
        return Verdict.failed("the row's info names the mixture itself")
    try:
        check_row_names(name)
    except ConfigError as error:
        return Verdict.failed(str(error))
    return verifier(name)(completion, example)


# Some of the rewards behind it wait for sandboxes and worker processes.
verify.concurrency = 4  # type: ignore[attr-defined]
