"""Clips: which frames, which way up, and files that are broken."""

import struct
import sys

import numpy as np
import pytest

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media import clips
from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import check_frames, choose_frames, read_video, video_size


def kind_of(read) -> str:
    with pytest.raises(Fault) as raised:
        read()
    return raised.value.kind


TIMES = [i / 10 for i in range(41)]  # four seconds at 10 frames a second


@pytest.mark.parametrize(
    ("frames", "fps", "place", "chosen"),
    [
        (5, None, 0.0, [0, 10, 20, 30, 40]),
        (1, None, 0.0, [0]),
        (5, 2.0, 0.0, [0, 5, 10, 15, 20]),
        (5, 2.0, 1.0, [20, 25, 30, 35, 40]),
        (5, 4.0, 0.0, [0, 2, 5, 7, 10]),  # 0.25 s is shown by the frame of 0.2 s
        (5, 0.5, 0.0, [0, 10, 20, 30, 40]),  # eight seconds: the whole clip instead
    ],
)
def test_frames_are_chosen(frames, fps, place, chosen) -> None:
    assert choose_frames(TIMES, frames, fps, place) == chosen


def test_a_clip_that_is_too_short_repeats_evenly() -> None:
    assert choose_frames([0.0, 0.1, 0.2], 5) == [0, 0, 1, 2, 2]
    assert choose_frames([0.0], 5, 10.0) == [0] * 5


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, [0, 10, 20, 29, 39]),
        ({"fps": 2.0}, [0, 5, 10, 15, 20]),
        ({"fps": 10.0, "place": 1.0}, [35, 36, 37, 38, 39]),
        ({"fps": 10.0, "place": 0.5}, [17, 18, 19, 20, 21]),
    ],
)
def test_a_clip_shows_exactly_the_chosen_frames(files, tmp_path, options, shown) -> None:
    files.video("a.mp4", frames=40)
    assert video_size(tmp_path / "a.mp4") == Size(48, 64)
    clip = read_video(tmp_path / "a.mp4", Size(16, 32), 5, **options)
    assert clip.shape == (5, 16, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_allclose(clip.mean((1, 2, 3)) / 6, shown, atol=0.3)


def test_a_clip_without_time_stamps_is_read_by_number(files, tmp_path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "raw.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": "0"}
        for i in range(20):
            gray = np.full((48, 64, 3), 6 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    clip = read_video(tmp_path / "raw.h264", Size(16, 16), 5)
    np.testing.assert_allclose(clip.mean((1, 2, 3)) / 6, [0, 5, 10, 14, 19], atol=0.3)


def turn(path, matrix) -> None:
    """Writes a turn into an MP4's track header, where phones write theirs (ISO 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    content[at : at + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)],
    ids=["upright", "clockwise", "upside down", "counter-clockwise"],
)
def test_a_phones_turn_is_obeyed(tmp_path, matrix, turns) -> None:
    pytest.importorskip("av")
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 250  # bright where the picture begins
    clips.write_clip(tmp_path / "a.mp4", np.stack([frame] * 5))
    turn(tmp_path / "a.mp4", matrix)
    upright = np.rot90(frame, -turns)
    assert video_size(tmp_path / "a.mp4") == Size(*upright.shape[:2])
    clip = read_video(tmp_path / "a.mp4", Size(*upright.shape[:2]), 5)
    assert abs(clip.astype(int) - upright).mean() < 8


def test_a_clip_may_be_shortened_rather_than_repeated(files, tmp_path) -> None:
    files.video("a.mp4", frames=7)
    for frames, found in ((17, 5), (5, 5), (1, 1)):
        assert len(read_video(tmp_path / "a.mp4", Size(16, 16), frames, shorten=4)) == found
    for i in range(7):
        files.image(f"clip/{i}.png", 32, 48)
    assert len(read_video(tmp_path / "clip", Size(16, 16), 17, shorten=4)) == 5


def test_a_folder_of_pictures_is_a_clip(files, tmp_path) -> None:
    for i in range(9):
        files.image(f"clip/frame_{i:03}.png", 32, 48, shade=10 * i)
    assert video_size(tmp_path / "clip") == Size(32, 48)
    clip = read_video(tmp_path / "clip", Size(16, 16), 5)
    np.testing.assert_array_equal(clip[:, 0, 0, 0], [0, 20, 40, 60, 80])


def test_faults_of_clips_are_told_apart(files, tmp_path) -> None:
    av = pytest.importorskip("av")
    whole = (tmp_path / files.video("whole.mp4")).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    files.video("small.mp4", 8, 8)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, kind in (
        ("none.mp4", "missing_file"),
        ("cut.mp4", "corrupt_video"),
        ("empty", "no_frames"),
        ("sound.wav", "no_frames"),
        ("small.mp4", "tiny_image"),
    ):
        assert kind_of(lambda: video_size(tmp_path / name)) == kind  # noqa: B023
        assert kind_of(lambda: read_video(tmp_path / name, Size(16, 16), 5)) == kind  # noqa: B023


def test_a_missing_decoder_is_not_the_rows_fault(files, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        read_video(tmp_path / "a.mp4", Size(16, 16), 5)


def test_frames_are_one_and_a_multiple() -> None:
    assert [check_frames(n) for n in (1, 5, 13, 81)] == [1, 2, 4, 21]
    with pytest.raises(ValueError, match=r"12 frames is not 1 \+ 4k.*9 and 13"):
        check_frames(12)
