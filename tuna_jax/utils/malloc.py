"""Memory that a program frees stays with the process, on Linux with glibc.

A compiled program on CPU asks for its temporaries anew at every call. glibc takes so much from the system and gives it
back each time, and the system fills every page with zeros again: an eighth of a training step of the `mid` preset.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD = 256 << 20  # bytes that are asked of the system at once


def keep() -> bool:
    """Keeps freed memory for what comes next; before any thread but the first allocates, so before JAX computes.

    The process then holds as much as it ever held at once. Where JAX computes on an accelerator little changes.

    Returns:
      Whether that could be said to this system's malloc; where not, nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # One arena: only the first grows as far as it likes, and the others would ask the system for what is large.
    wanted = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _PAD}
    done = [mallopt(name, value) for name, value in wanted.items()]
    return all(value == 1 for value in done)
