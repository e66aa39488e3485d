from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from poise.lab.memory import give_back_memory


def resident() -> int:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_freed_between_what_is_kept_goes_back() -> None:
    blocks = [torch.zeros(4000) for _ in range(20_000)]  # 16 KB each, from the heap
    kept = blocks[::200]
    del blocks
    before = resident()
    give_back_memory()
    assert resident() < before - 100
    assert len(kept) == 100
