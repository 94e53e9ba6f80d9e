"""Locks the folder of a run, so that only one run at a time uses it.

A lock of the operating system excludes other runs on a disk. In a mounted bucket it excludes only those of the same
host. There a run writes its name into OWNER_FILE when it begins, and reads it back before each checkpoint: of two runs
the one that began later continues, and the other ends before it has overwritten anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import logging
from etils import epath

from tuna_jax.training import staging
from tuna_jax.utils import text_files
from tuna_jax.utils.file_systems import renames_atomically

LOCK_FILE = ".lock"
OWNER_FILE = ".owner"


class WorkdirInUseError(ValueError):
    """Another run is using this workdir."""


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[Callable[[], None]]:
    """Context manager that locks `workdir`, created if absent; the first process locks for all processes.

    The operating system releases the lock when the process ends, also after a crash. The context is a function to call
    before files are replaced: it raises WorkdirInUseError if another run has taken over a mounted bucket.

    Raises:
      WorkdirInUseError: another run holds the lock; the message names its process and host.
    """
    if jax.process_index() != 0:
        yield lambda: None
        return
    path = Path(workdir) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            # A record lock: child processes, such as data workers, do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logging.warning(
                    "%s cannot be locked (%s): make sure that only one run uses it", path, error
                )
                yield _owned(workdir)
                return
            file.seek(0)
            raise WorkdirInUseError(
                f"{workdir} is in use by {file.read().strip() or 'another run'}; two runs in one folder would damage "
                f"each other's checkpoints. Wait until it ends, stop it, or use another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield _owned(workdir)


def _owned(workdir: str | Path) -> Callable[[], None]:
    """Takes over a folder in which locks mean nothing; returns the check that it still belongs to this run."""
    folder = epath.Path(staging.address_of(workdir))
    if renames_atomically(folder):
        return lambda: None
    path = folder / OWNER_FILE
    mine = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}\n"
    path.write_text(mine)

    def check() -> None:
        now = text_files.decode(path.read_bytes(), str(path)) if path.exists() else mine
        if now != mine:
            raise WorkdirInUseError(
                f"{folder} was taken over by {now.partition(',')[0]}, a run that began later; this one ends and "
                f"changes nothing more. Give each run its own --workdir"
            )

    return check
