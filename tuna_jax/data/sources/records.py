"""Examples as records of ArrayRecord files: two per example, its row as JSON, and the bytes of its images and videos.

The row has {"bytes": N} in place of N bytes, which follow each other in the second record. So a scan, which needs texts
and sizes only, does not read images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_BYTES = "bytes"
NOT_READ = b"not read"
"""In place of the bytes of an image or a video, for the scan."""


def pack(row: Mapping[str, Any], size: tuple[int, int] | None = None) -> tuple[bytes, bytes]:
    """The two records of a row.

    Args:
        row: JSON values, and bytes at any depth.
        size: (height, width) of what decides its bucket, for the scan.
    """
    blobs: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            blobs.append(value)
            return {_BYTES: len(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    header = {"row": plain(row)} | ({"size": list(size)} if size else {})
    return json.dumps(header).encode(), b"".join(blobs)


def unpack(header: bytes, blobs: bytes | None) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """The row, and the size that was stored with it; without the second record, the bytes are texts of what is missing.

    Raises:
        ValueError: the records do not belong together, or are not of this format.
    """
    read = json.loads(header)
    at = 0

    def whole(value: Any) -> Any:
        nonlocal at
        if isinstance(value, dict):
            if value.keys() == {_BYTES} and isinstance(value[_BYTES], int):
                if blobs is None:
                    return NOT_READ
                at += value[_BYTES]
                return blobs[at - value[_BYTES] : at]
            return {key: whole(item) for key, item in value.items()}
        if isinstance(value, list):
            return [whole(item) for item in value]
        return value

    row = whole(read["row"])
    if blobs is not None and at != len(blobs):
        raise ValueError(f"the row has {at} bytes of images, and the record after it {len(blobs)}")
    size = read.get("size")
    return row, None if size is None else (int(size[0]), int(size[1]))
