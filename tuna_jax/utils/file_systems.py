"""What the file system of a folder can do."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


def renames_atomically(folder: str | os.PathLike[str], mounts: Path = _MOUNTS) -> bool:
    """Whether a folder can be renamed in one step: False for buckets, and for file systems that are served by FUSE.

    Args:
      folder: an existing folder.
      mounts: the table of mounts, as Linux writes it; without one every file system counts as local.
    """
    if "://" in os.fspath(folder):
        return False
    if not mounts.exists():
        return True
    path, kind, longest = Path(folder).resolve(), "", -1
    for line in mounts.read_text(errors="surrogateescape").split("\n"):
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # Of mounts at the same folder, the last one counts.
        if path.is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = after.split()[0], len(point.parts)
    return not kind.startswith("fuse")
