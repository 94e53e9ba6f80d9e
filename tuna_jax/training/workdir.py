"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

LOCK_FILE = ".lock"


class WorkdirInUseError(ValueError):
    """Another run is going on in this workdir."""


def check_folder(workdir: str) -> None:
    """Raises ValueError if `workdir` is the address of a bucket: its log, pictures and model are written as files."""
    if "://" in workdir:
        raise ValueError(
            f"--workdir={workdir} is no folder; mount the bucket and name its folder, as launchers/gke.py and "
            f"launchers/tpu_vm.py do (docs/pods.md)"
        )


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Inside it no other run can begin in `workdir`, which is made if absent; the first process holds the lock for all.

    The system gives the lock back when the process ends, however it ends.

    Raises:
      WorkdirInUseError: another run has it; says which process on which host.
    """
    if jax.process_index() != 0:
        yield
        return
    path = Path(workdir) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            # A record lock: children of this process, such as those that prepare batches, do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logging.warning("%s cannot be locked (%s): see that one run uses it", path, error)
                yield
                return
            file.seek(0)
            raise WorkdirInUseError(
                f"{workdir} is in use by {file.read().strip() or 'another run'}; two runs in one folder would spoil "
                f"each other's checkpoints. Wait for it, stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
