"""Locks the folder of a run, so that only one run at a time uses it."""

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
    """Another run is using this workdir."""


def check_folder(workdir: str) -> None:
    """Checks that `workdir` is a folder, since log, samples and model are written as files.

    Raises:
      ValueError: `workdir` is the address of a bucket.
    """
    if "://" in workdir:
        raise ValueError(
            f"--workdir={workdir} is not a folder; mount the bucket and pass its folder, as launchers/gke.py and "
            f"launchers/tpu_vm.py do (docs/pods.md)"
        )


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Context manager that locks `workdir`, created if absent; the first process locks for all processes.

    The operating system releases the lock when the process ends, also after a crash.

    Raises:
      WorkdirInUseError: another run holds the lock; the message names its process and host.
    """
    if jax.process_index() != 0:
        yield
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
                yield
                return
            file.seek(0)
            raise WorkdirInUseError(
                f"{workdir} is in use by {file.read().strip() or 'another run'}; two runs in one folder would damage "
                f"each other's checkpoints. Wait until it ends, stop it, or use another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
