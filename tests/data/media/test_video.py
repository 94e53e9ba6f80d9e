"""Video: which frames are taken, rotation, writing, and broken files."""

import ctypes
import gc
import struct
import sys

import numpy as np
import pytest

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import (
    check_frames,
    choose_frames,
    load_video,
    read_video,
    video_size,
    write_video,
)


def kind_of(read) -> str:
    with pytest.raises(Fault) as raised:
        read()
    return raised.value.kind


TIMES = [i / 10 for i in range(41)]  # four seconds at 10 frames per second


@pytest.mark.parametrize(
    ("frames", "fps", "position", "chosen"),
    [
        (5, None, 0.0, [0, 10, 20, 30, 40]),
        (1, None, 0.0, [0]),
        (5, 2.0, 0.0, [0, 5, 10, 15, 20]),
        (5, 2.0, 1.0, [20, 25, 30, 35, 40]),
        (5, 4.0, 0.0, [0, 2, 5, 7, 10]),  # At 0.25 s the frame of 0.2 s is on screen.
        (5, 0.5, 0.0, [0, 10, 20, 30, 40]),  # Eight seconds are needed: the whole video instead.
    ],
)
def test_frames_are_chosen(frames, fps, position, chosen) -> None:
    assert choose_frames(TIMES, frames, fps, position) == chosen


def test_a_short_video_repeats_frames_evenly() -> None:
    assert choose_frames([0.0, 0.1, 0.2], 5) == [0, 0, 1, 2, 2]
    assert choose_frames([0.0], 5, 10.0) == [0] * 5


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({}, [0, 10, 20, 29, 39]),
        ({"fps": 2.0}, [0, 5, 10, 15, 20]),
        ({"fps": 10.0, "position": 1.0}, [35, 36, 37, 38, 39]),
        ({"fps": 10.0, "position": 0.5}, [17, 18, 19, 20, 21]),
    ],
)
def test_a_video_gives_exactly_the_chosen_frames(files, tmp_path, options, indices) -> None:
    files.video("a.mp4", frames=40)
    assert video_size(tmp_path / "a.mp4") == Size(48, 64)
    clip = read_video(tmp_path / "a.mp4", Size(16, 32), 5, **options)
    assert clip.shape == (5, 16, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_allclose(clip.mean((1, 2, 3)) / 6, indices, atol=0.3)


def test_a_video_without_time_stamps_is_read_by_frame_number(files, tmp_path) -> None:
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


def rotate(path, matrix) -> None:
    """Writes a rotation into an MP4's track header, as phones do (ISO 14496-12, 8.3.2)."""
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
def test_rotation_metadata_is_applied(tmp_path, matrix, turns) -> None:
    pytest.importorskip("av")
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 250  # Bright in the top left corner.
    write_video(tmp_path / "a.mp4", np.stack([frame] * 5))
    rotate(tmp_path / "a.mp4", matrix)
    upright = np.rot90(frame, -turns)
    assert video_size(tmp_path / "a.mp4") == Size(*upright.shape[:2])
    clip = read_video(tmp_path / "a.mp4", Size(*upright.shape[:2]), 5)
    assert abs(clip.astype(int) - upright).mean() < 8


def test_a_video_may_be_shortened_instead_of_repeated(files, tmp_path) -> None:
    files.video("a.mp4", frames=7)
    for frames, count in ((17, 5), (5, 5), (1, 1)):
        assert len(read_video(tmp_path / "a.mp4", Size(16, 16), frames, shorten=4)) == count
    for i in range(7):
        files.image(f"clip/{i}.png", 32, 48)
    assert len(read_video(tmp_path / "clip", Size(16, 16), 17, shorten=4)) == 5


def test_a_folder_of_images_is_a_video(files, tmp_path) -> None:
    for i in range(9):
        files.image(f"clip/frame_{i:03}.png", 32, 48, shade=10 * i)
    assert video_size(tmp_path / "clip") == Size(32, 48)
    clip = read_video(tmp_path / "clip", Size(16, 16), 5)
    np.testing.assert_array_equal(clip[:, 0, 0, 0], [0, 20, 40, 60, 80])


def test_faults_are_distinguished(files, tmp_path) -> None:
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


def test_a_missing_decoder_is_not_a_fault_of_the_example(files, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        read_video(tmp_path / "a.mp4", Size(16, 16), 5)


def test_frame_counts_are_one_plus_a_multiple_of_four() -> None:
    assert [check_frames(n) for n in (1, 5, 13, 81)] == [1, 2, 4, 21]
    with pytest.raises(ValueError, match=r"12 frames is not 1 \+ 4k.*9 and 13"):
        check_frames(12)


def _grey_video(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is grey with brightness 10 i."""
    grey = 10 * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)).copy()


def test_a_video_is_written_and_read_back(tmp_path):
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", _grey_video(9))
    again = load_video(path, (32, 48), 9)
    assert again.shape == (9, 32, 48, 3)
    assert np.abs(again.astype(int) - _grey_video(9)).max() <= 4


@pytest.mark.parametrize(
    ("frames", "brightness"),
    [(1, [0]), (5, [0, 50, 100, 150, 200]), (33, [*range(0, 80, 10)])],
    ids=["first", "five of twenty-one", "more than available"],
)
def test_frames_are_spread_evenly(tmp_path, frames, brightness):
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", _grey_video(21))
    taken = load_video(path, (16, 16), frames)
    assert taken.shape[1:] == (16, 16, 3)
    assert len(taken) == min(frames, 21)
    means = taken.mean((1, 2, 3))
    assert np.abs(means[: len(brightness)] - brightness).max() < 4


def test_a_short_video_gives_fewer_frames(tmp_path):
    pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", _grey_video(7))
    assert len(load_video(path, (16, 16), 17)) == 5


def test_files_that_are_not_videos_are_named(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with pytest.raises(FileNotFoundError, match=r"a\.mp4"):
        load_video(path, (16, 16), 5)
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"a\.mp4"):
        load_video(path, (16, 16), 5)
    with pytest.raises(ValueError, match=r"a\.mp4: 4 frames .*1 \+ 4k"):
        load_video(path, (16, 16), 4)
    with pytest.raises(ValueError, match=r"a\.mp4.*15x16"):
        write_video(path, _grey_video(1, 15, 16))


def test_writing_without_av_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        write_video(tmp_path / "a.mp4", _grey_video(1))


def malloc_bytes() -> int:
    """Bytes that C code of this process has allocated and not freed (glibc)."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    fields = [(name, ctypes.c_size_t) for name in names.split()]
    count = ctypes.CDLL(None).mallinfo2
    count.restype = type("Counts", (ctypes.Structure,), {"_fields_": fields})
    return count().uordblks


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads counts of glibc")
def test_clips_that_are_decoded_in_part_leave_no_memory(files) -> None:
    """`av` leaks 260 bytes where a generator of packets is dropped before its end and not closed."""
    path, size = files.root / files.video("clip.mp4"), Size(32, 32)

    def held(clips: int) -> int:
        for _ in range(clips):
            video_size(path)
            read_video(path, size, 2, fps=5.0)
        gc.collect()
        return malloc_bytes()

    before = held(10)
    assert held(30) - before < 30 * 150
