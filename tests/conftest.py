"""Shared settings of the whole suite: one thread, no network, warnings of ours are errors, shapes are checked.

The jaxtyping import hook turns every shape annotation in `poise.core` into an assertion. It has to be installed before
the first import of that package, which is why it stands at the top of the topmost conftest.
"""

# ruff: noqa: E402 (the imports below must come after the settings)

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[switch] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("poise.core", "beartype.beartype")

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

# Derandomised: a property that fails here fails everywhere. No deadline: the machine may be shared.
settings.register_profile(
    "poise", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("poise")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    config.addinivalue_line("filterwarnings", r"error:::poise(\..*)?")


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have no type checks; the suite's would speak before our own refusals."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)
