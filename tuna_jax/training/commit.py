"""When the folder of a checkpoint is complete.

On a local disk a save is written to a temporary folder, which is renamed at the end. Buckets have no atomic renames of
folders, neither by their own interface nor mounted with FUSE: there a save is written under its final name. Its first
file is PENDING, its last one Orbax's commit file; a folder that has only the first is an unfinished save.
"""

from __future__ import annotations

import time
from pathlib import Path

import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.path import atomicity

from tuna_jax.utils.file_systems import renames_atomically

PENDING = "pending.txt"
COMMITTED = "commit_success.txt"
"""The file that Orbax's CommitFileTemporaryPath writes last."""
_PAUSES = (0.5, 2.0)  # Seconds before a folder is listed again.


class MarkedFolder(atomicity.CommitFileTemporaryPath):
    """A save under its final name: PENDING is its first file, COMMITTED its last."""

    async def create(self) -> epath.Path:
        """Creates the folder; process 0 calls it, and all others wait for it."""
        folder = await super().create()
        (folder / PENDING).write_text(
            "a save began here; it is finished if commit_success.txt exists\n"
        )
        return folder


_Class = type[atomicity.TemporaryPathBase]


def temporary_path_classes(folder: epath.Path) -> tuple[_Class, _Class]:
    """How Orbax commits saves in a folder, and the items of a save."""
    if renames_atomically(folder):
        return atomicity.AtomicRenameTemporaryPath, atomicity.AtomicRenameTemporaryPath
    return MarkedFolder, atomicity.CommitFileTemporaryPath


def remove(folder: epath.Path) -> bool:
    """Removes a checkpoint or an unfinished save where folders cannot be renamed; says whether it is gone.

    Killed at any moment, it leaves a folder that does not count as finished: PENDING is there before COMMITTED goes,
    and goes last. A listing may lack a file that was just stored: the folder is not empty then, and is listed again.
    """
    (folder / PENDING).write_text("this checkpoint is being removed\n")
    (folder / COMMITTED).unlink(missing_ok=True)
    for pause in (*_PAUSES, None):
        try:
            for path in folder.iterdir():
                if path.is_dir():
                    path.rmtree()
                elif path.name != PENDING:
                    path.unlink(missing_ok=True)
            folder.rmtree()
            return True
        except OSError as error:
            if pause is None:
                logging.warning("%s cannot be removed now: %s", folder, error)
                return False
            time.sleep(pause)
    raise AssertionError("the last attempt returns")


def is_finished(folder: epath.Path | Path) -> bool:
    """Whether the folder of a step is a finished checkpoint, however it was committed."""
    folder = epath.Path(folder)
    if (folder / COMMITTED).exists():
        return True
    if "://" in str(folder) or (folder / PENDING).exists():
        return False
    # Between the folder and PENDING, a save holds nothing that is read.
    return ocp.utils.is_checkpoint_finalized(folder) and any(
        (folder / item).exists() for item in ("state", "config")
    )
