"""Memory that has been freed, back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Hand what this process has freed to the system, where the C library can.

    The gradients of single rollouts come and go in blocks of all sizes, and glibc, left alone, often enlarges its heap
    instead of using the gaps: by up to a megabyte a rollout.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
