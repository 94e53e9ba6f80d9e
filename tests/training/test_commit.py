"""When a checkpoint counts as finished, on disks and in mounted buckets."""

import errno
import os
import shutil

import jax.numpy as jnp
import pytest
from etils import epath

from tuna_jax.training import checkpoints, commit
from tuna_jax.utils.file_systems import renames_atomically

MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 21 0:40 / {folder}/my\\040bucket rw,relatime shared:1 - fuse.gcsfuse bucket rw
31 30 0:41 / {folder}/my\\040bucket/disk rw,relatime - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [(".", True), ("my bucket", False), ("my bucket/run", False), ("my bucket/disk/run", True)],
)
def test_file_systems_behind_fuse_do_not_rename_atomically(tmp_path, folder, expected):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(folder=tmp_path))
    assert renames_atomically(tmp_path / folder, mounts) == expected


def test_a_bucket_does_not_rename_atomically_and_a_system_without_a_table_does(tmp_path):
    assert not renames_atomically("gs://bucket/run")
    assert renames_atomically(tmp_path, tmp_path / "none")


def test_a_folder_is_finished_by_its_marker_or_without_any(tmp_path):
    folder = tmp_path / "00000001"
    folder.mkdir()
    assert not commit.is_finished(folder), "a killed save may leave an empty folder"
    (folder / "state").mkdir()
    assert commit.is_finished(folder), "committed by its rename"
    (folder / commit.PENDING).touch()
    assert not commit.is_finished(folder)
    (folder / commit.COMMITTED).touch()
    assert commit.is_finished(folder)


class Killed(BaseException):
    """In place of a kill."""


@pytest.mark.parametrize("moment", range(0, 24, 2))
def test_a_removal_in_a_bucket_that_is_killed_leaves_no_half_checkpoint(
    tmp_path, monkeypatch, moment
):
    left = moment

    def killed_after(method):
        def call(*arguments, **settings):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return method(*arguments, **settings)

        return call

    template = {"w": jnp.ones(3)}
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, template, config={})
    folder = epath.Path(tmp_path / "00000001")
    (folder / commit.COMMITTED).touch()
    # A listing has no order; here the marker comes first.
    listed = os.listdir
    first = lambda path: sorted(listed(path), key=lambda name: name != commit.PENDING)
    monkeypatch.setattr(os, "listdir", first)
    for name in ("remove", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, killed_after(getattr(os, name)))
    try:
        assert commit.remove(folder) and not folder.exists()
        assert moment > 15
    except Killed:
        monkeypatch.undo()
        whole = (folder / commit.COMMITTED).exists()
        assert commit.is_finished(folder) == whole == (moment == 0)
        with checkpoints.Checkpoints(tmp_path) as saved:
            assert (saved.restore(template) is not None) == whole


def test_a_folder_whose_listing_lacks_a_file_is_listed_again(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path / "00000001")
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "late").touch()
    monkeypatch.setattr(commit, "_PAUSES", (0.0,))
    rmtree, attempts = shutil.rmtree, []

    def late(path, *arguments):
        attempts.append(path)
        if len(attempts) == 1:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        rmtree(path, *arguments)

    monkeypatch.setattr(shutil, "rmtree", late)
    assert commit.remove(folder) and not folder.exists()
    # For good: a warning, and the next start tries again.
    folder.mkdir()
    (folder / "state").mkdir()
    monkeypatch.setattr(shutil, "rmtree", _never)
    assert not commit.remove(folder) and not commit.is_finished(folder)


def _never(path):
    raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
