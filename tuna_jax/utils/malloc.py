"""Keeps memory that a program frees in the process, on Linux with glibc.

A compiled program on CPU allocates its temporaries at every call. By default glibc requests such large blocks from the
system and returns them each time, and the system zeroes every page again: 1/8 of a training step of the `mid` preset.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD = 256 << 20  # Bytes requested from the system at once.


def keep() -> bool:
    """Keeps freed memory for reuse. Call it before JAX computes: before any thread but the first allocates.

    The process then holds its peak memory until it ends. With JAX on an accelerator little changes.

    Returns:
      Whether this system's malloc accepted the settings; if not, nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # One arena: only the first grows without limit, and the others would request large blocks from the system.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _PAD}
    accepted = [mallopt(name, value) for name, value in settings.items()]
    return all(value == 1 for value in accepted)
