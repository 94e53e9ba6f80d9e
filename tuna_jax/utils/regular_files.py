"""Files that somebody else named: which errors are the machine's fault, and how to open a file without waiting."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from typing import BinaryIO, TypeVar

T = TypeVar("T")

NO_SUCH_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
"""Error numbers of a name at which there is no file."""

_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EMFILE),
    *(errno.ENFILE, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(getattr(errno, name) for name in ("EREMOTEIO", "ENOLINK") if hasattr(errno, name)),
}
_TENSORSTORE = re.compile(r"(?P<text>[^\n]{0,200})\[os_error_code='(?P<number>\d+)'\]")
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENOBUFS, errno.EROFS}


def is_machine_fault(error: BaseException) -> bool:
    """Whether an error says that the machine or its file system is ill, and nothing about the file that was read.

    Libraries raise OSError without a number for broken content: that is the file's fault.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _PASSING | _LASTING
    )


def passing_fault(error: BaseException | None) -> str | None:
    """What an error, or one that caused it, says of input or output that failed and may pass; None if nothing.

    TensorStore does not raise OSError: its errors have the number in their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return str(error)
        for found in _TENSORSTORE.finditer(str(error)):
            if int(found["number"]) in _PASSING:
                return found["text"].strip()
        error = error.__cause__ or error.__context__
    return None


def with_retries(work: Callable[[], T], *, attempts: int = 3, pause: float = 0.2) -> T:
    """The result of `work`, which is called again after an input/output error that may pass.

    Args:
      work: reads something; may be called several times.
      attempts: calls in all; the last one's error is raised.
      pause: seconds before the second call; each further pause is twice as long.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause * 2 ** (attempt - 1))
    return work()


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading; a named pipe, a device or a socket is refused in place of waiting for it.

    Raises:
      IsADirectoryError: it is a folder.
      OSError: it cannot be opened, or is not a regular file.
    """
    # O_NONBLOCK: opening a named pipe would wait for a writer. Regular files ignore it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe, a device or a socket, not a file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
