"""Video files: written, read back, sampled evenly, and refused by name."""

import sys

import numpy as np
import pytest

from tuna_jax.data.media import clips


def _clip(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is grey with brightness 10 i."""
    grey = 10 * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)).copy()


def test_there_and_back(tmp_path):
    pytest.importorskip("av")
    path = clips.write_clip(tmp_path / "a.mp4", _clip(9))
    again = clips.read_clip(path, (32, 48), 9)
    assert again.shape == (9, 32, 48, 3)
    assert np.abs(again.astype(int) - _clip(9)).max() <= 4


@pytest.mark.parametrize(
    ("asked", "brightness"),
    [(1, [0]), (5, [0, 50, 100, 150, 200]), (33, [*range(0, 80, 10)])],
    ids=["first", "five of twenty-one", "more than there are"],
)
def test_frames_are_spread_evenly(tmp_path, asked, brightness):
    pytest.importorskip("av")
    path = clips.write_clip(tmp_path / "a.mp4", _clip(21))
    taken = clips.read_clip(path, (16, 16), asked)
    assert taken.shape[1:] == (16, 16, 3)
    assert len(taken) == min(asked, 21)
    means = taken.mean((1, 2, 3))
    assert np.abs(means[: len(brightness)] - brightness).max() < 4


def test_a_short_video_gives_what_it_has(tmp_path):
    pytest.importorskip("av")
    path = clips.write_clip(tmp_path / "a.mp4", _clip(7))
    assert len(clips.read_clip(path, (16, 16), 17)) == 5


def test_what_is_no_video_is_named(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with pytest.raises(FileNotFoundError, match=r"no video at .*a\.mp4"):
        clips.read_clip(path, (16, 16), 5)
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"a\.mp4 is not a video"):
        clips.read_clip(path, (16, 16), 5)
    with pytest.raises(ValueError, match=r"4 frames is not 1 \+ 4k"):
        clips.read_clip(path, (16, 16), 4)
    with pytest.raises(ValueError, match="even sides"):
        clips.write_clip(path, _clip(1, 15, 16))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        clips.write_clip(tmp_path / "a.mp4", _clip(1))
