"""When a checkpoint counts as finished, on disks and in mounted buckets."""

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
    commit.revoke(epath.Path(folder))
    assert not commit.is_finished(folder)


def test_a_removal_in_a_bucket_that_is_interrupted_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    state = {"w": jnp.ones(3)}
    with checkpoints.Checkpoints(tmp_path, keep=1) as saved:
        for step in (1, 2):
            saved.save(step, state, config={})
        saved.wait()
        monkeypatch.setattr(checkpoints, "renames_atomically", lambda folder: False)
        monkeypatch.setattr(type(saved._directory), "rmtree", _fails)
        with pytest.raises(KeyboardInterrupt):
            saved.save(3, state, config={})
        assert saved.steps() == [2]


def _fails(*arguments):
    raise KeyboardInterrupt
