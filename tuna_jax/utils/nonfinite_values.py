"""Finds NaN and infinity in arrays of any floating dtype, by their bits: as fast as the memory."""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

_CHUNK = 1 << 18
# Dtype -> (unsigned integers of its size, the bits of the magnitude, the smallest magnitude that is not finite).
_BITS: dict[np.dtype, tuple[type[np.unsignedinteger], int, int]] = {
    np.dtype(np.float64): (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    np.dtype(np.float32): (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    np.dtype(np.float16): (np.uint16, 0x7FFF, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7FFF, 0x7F80),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, 0x7F, 0x7C),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 0x7F, 0x7F),
}


def count(array: np.ndarray) -> int:
    """The number of values that are NaN or infinite; 0 for integers."""
    if array.dtype not in _BITS:
        return 0
    unsigned, magnitude, smallest = _BITS[array.dtype]
    mask, limit = unsigned(magnitude), unsigned(smallest)
    bits = np.ravel(array, order="K").view(unsigned)
    total = 0
    for start in range(0, bits.size, _CHUNK):
        part = bits[start : start + _CHUNK] & mask
        # Nearly always nothing is found, and a maximum is faster than a count.
        if part.max() >= limit:
            total += int((part >= limit).sum())
    return total


def describe(found: Iterable[tuple[str, int, int]], most: int = 5) -> str:
    """Tensors with such values as one line: (name, number of them, size) of each."""
    listed = list(found)
    named = ", ".join(f"{name} ({bad} of {size})" for name, bad, size in listed[:most])
    more = f" and {len(listed) - most} more tensors" if len(listed) > most else ""
    return f"{named}{more}"
