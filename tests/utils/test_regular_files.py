"""Opening files that somebody else named; errors of the machine are tried again."""

import errno
import os

import pytest

from tuna_jax.utils.regular_files import is_machine_fault, open_regular, with_retries


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"x"
    for path, number in [
        ("pipe", errno.EINVAL),
        ("loop", errno.ELOOP),
        (".", errno.EISDIR),
        ("no", errno.ENOENT),
        ("a/b", errno.ENOTDIR),
        ("x" * 5000, errno.ENAMETOOLONG),
        ("/dev/zero", errno.EINVAL),
    ]:
        with pytest.raises(OSError) as raised:
            open_regular(tmp_path / path)
        assert raised.value.errno == number
        assert not is_machine_fault(raised.value)


def test_errors_that_may_pass_are_tried_again() -> None:
    errors = [OSError(errno.EIO, "disk"), OSError(errno.ESTALE, "handle")]

    def work() -> str:
        if errors:
            raise errors.pop()
        return "read"

    assert with_retries(work, pause=0) == "read"
    for error, calls in [
        (OSError(errno.EIO, "disk"), 3),
        (OSError(errno.ENOSPC, "full"), 1),
        (ValueError(), 1),
    ]:
        count = 0

        def failing(error=error) -> None:
            nonlocal count
            count += 1
            raise error

        with pytest.raises(type(error)):
            with_retries(failing, pause=0)
        assert count == calls
