"""Clips as people have them: times, shapes, colours and containers. Reports of the field are named in comments."""

import functools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import odd_media as odd
from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.clips import is_clip
from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import choose_frames, load_video, read_video, video_size

SIZE = Size(32, 32)


def kind_of(read) -> str:
    with pytest.raises(Fault) as raised:
        read()
    return raised.value.kind


def shades(clip) -> list[int]:
    """The numbers of the frames of `odd.greys`, from the lower right corner."""
    return [round((frame[-4:, -4:].mean() - 20) / 8) for frame in clip.astype(float)]


def center(clip) -> list[int]:
    return clip[:, 12:20, 12:20].reshape(-1, 3).mean(0).round().astype(int).tolist()


# Times.

VARIABLE = [*range(0, 1000, 42), 1000, 4000, 7000]  # 24 frames in a second, then 3 that stay for 3.


def test_frames_are_chosen_by_time_and_the_last_one_lasts() -> None:  # 35
    times = [at / 1000 for at in VARIABLE]
    red = [index < 24 for index in choose_frames(times, 9, end=10.0)]
    assert sum(red) == 1
    assert [i < 24 for i in choose_frames(times, 9, 1.0, end=10.0)] == [True] + [False] * 8
    assert [i < 24 for i in choose_frames(times, 9, 1.0, 1.0, end=10.0)] == [False] * 9
    # Without the last frame's duration nine seconds are not there.
    assert sum(i < 24 for i in choose_frames(times, 9, 2.0, end=10.0)) == 2


def test_a_rate_near_the_clips_own_takes_frame_after_frame() -> None:
    # facebookresearch/SlowFast#182: of 29.97 frames per second at 30 the first came twice.
    times = [i * 1001 / 30000 for i in range(60)]
    assert choose_frames(times, 17, 30.0) == list(range(17))
    rounded = [round(time, 3) for time in times]  # Matroska's milliseconds.
    assert choose_frames(rounded, 17, 30.0) == list(range(17))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("fps", [None, 1.0])
def test_variable_rates(tmp_path, name, fps) -> None:  # 35
    frames = [odd.plain(odd.RED, 32, 32)] * 24 + [odd.plain((20, 200, 20), 32, 32)] * 3
    path = odd.write_clip(tmp_path / name, frames, times=VARIABLE, options={"bf": "0"})
    if name.endswith(
        "mp4"
    ):  # The muxer gives the last frame the duration of a frame: correct stts.
        data = bytearray(path.read_bytes())
        at = data.index(b"stts")
        count = struct.unpack(">I", data[at + 8 : at + 12])[0]
        timescale = struct.unpack(">I", data[(m := data.index(b"mdhd")) + 16 : m + 20])[0]
        data[at + 12 + 8 * (count - 1) + 4 : at + 12 + 8 * count] = struct.pack(">I", 3 * timescale)
        data[m + 20 : m + 24] = struct.pack(">I", 10 * timescale)
        if b"elst" in data:  # In the movie's units, milliseconds.
            data[(e := data.index(b"elst")) + 12 : e + 16] = struct.pack(">I", 10000)
        path.write_bytes(data)
    clip = read_video(path, SIZE, 9, fps=fps)
    red = [frame[..., 0].mean() > 100 for frame in clip]
    # The muxer of Matroska wrote 0.1 s for the last frame, so the file ends at 7.1 s.
    most = 1 if name.endswith("mp4") else 2
    assert red[0] and sum(red) <= most


def test_an_edit_list_hides_frames(tmp_path) -> None:
    path = odd.write_clip(tmp_path / "a.mp4", odd.greys(20), options={"bf": "0", "g": "5"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 8  # After version, flags: the number of entries.
    assert struct.unpack(">I", data[at : at + 4]) == (1,)
    timescale = struct.unpack(">I", data[(m := data.index(b"mdhd")) + 16 : m + 20])[0]
    duration, start = struct.unpack(">Ii", data[at + 4 : at + 12])
    data[at + 4 : at + 12] = struct.pack(
        ">Ii", duration * 12 // 20, start + round(0.8 * timescale)
    )  # The first 8 of 20 frames, in the middle of a group of pictures.
    path.write_bytes(data)
    assert shades(read_video(path, SIZE, 12)) == list(range(8, 20))
    assert shades(read_video(path, SIZE, 2, fps=10.0, position=0.0)) == [8, 9]


def test_a_clip_that_starts_late_and_has_sound(tmp_path) -> None:
    path = odd.write_clip(
        tmp_path / "a.mkv", odd.greys(10), times=[5000 + 100 * i for i in range(10)]
    )
    assert shades(read_video(path, SIZE, 5, fps=10.0)) == [0, 1, 2, 3, 4]
    assert shades(read_video(path, SIZE, 5)) == [0, 2, 4, 7, 9]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3", "g": "8"}),
        ("open.mkv", "libx264", {"bf": "3", "g": "8", "x264-params": "open-gop=1"}),
        ("a.ts", "libx264", {"bf": "2", "g": "8"}),
        ("a.avi", "mpeg4", {"bf": "2", "g": "8", "qmin": "1", "qmax": "2"}),
        ("b_frames.avi", "libx264", {"bf": "3", "g": "16"}),
        ("a.mjpeg", "mjpeg", {"qmin": "1", "qmax": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2", "g": "8", "qmin": "1", "qmax": "2"}),
        ("interlaced.ts", "mpeg2video", {"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"}),
        ("interlaced.mp4", "libx264", {"x264-params": "tff=1", "g": "8"}),
        ("a.wmv", "wmv2", {"g": "8", "qmin": "1", "qmax": "2"}),
        ("a.flv", "flv", {"g": "8", "qmin": "1", "qmax": "2"}),
    ],
)
def test_every_container_gives_the_frames_at_their_times(tmp_path, name, codec, options) -> None:
    frames = odd.greys(24)
    path = tmp_path / name
    if codec == "mpeg2video":  # It knows few rates.
        _write_25(path, frames, options)
    else:
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        odd.write_clip(path, frames, codec, pixels, options=options)
    clip = read_video(path, SIZE, 9)
    expected = [0, 3, 6, 9, 12, 14, 17, 20, 23]
    assert np.abs(np.array(shades(clip)) - expected).max() <= (1 if codec == "wmv2" else 0)
    np.testing.assert_array_equal(clip, load_video(path, (32, 32), 9))
    assert is_clip(path)
    if codec != "mjpeg":  # Its bytes alone are those of a JPEG.
        np.testing.assert_array_equal(clip, load_video(path.read_bytes(), (32, 32), 9))
        assert is_clip(path.read_bytes())


def _write_25(path, frames, options) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# Shapes.


@pytest.mark.parametrize(("aspect", "width"), [((2, 1), 160), ((1, 2), 40), ((8, 9), 71)])
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, aspect, width) -> None:  # 36
    frame = odd.plain((40, 40, 40))
    frame[:, 20:60] = odd.RED  # Half of the width, in the centre.
    path = odd.write_clip(tmp_path / "a.mp4", [frame] * 5, aspect=Fraction(*aspect))
    assert video_size(path) == Size(48, width)
    clip = read_video(path, Size(48, width), 5)
    red = clip[0, 24, :, 0] > 120
    assert abs(red.sum() - width / 2) <= 2 and red[width // 2]
    square = read_video(path, Size(48, 48), 5)[0, :, :, 0]
    if width == 160:  # 48 of 160 columns: all of them in the red half.
        assert (square > 120).all()


def test_turned_and_not_square(tmp_path) -> None:
    path = odd.write_clip(tmp_path / "a.mp4", odd.greys(5), aspect=Fraction(2))
    path.write_bytes(odd.turned(path.read_bytes(), (0, 1, -1, 0)))
    assert video_size(path) == Size(160, 48)
    clip = read_video(path, Size(160, 48), 5)
    dark = clip[4, :, :, 0] < 26
    assert dark[10, -5] and not dark[10, 5] and not dark[-5, -5]  # Now in the upper right corner.


@pytest.mark.parametrize(("matrix", "corner"), [((-1, 0, 0, 1), (0, -1)), ((1, 0, 0, -1), (-1, 0))])
def test_mirrored_clips(tmp_path, matrix, corner) -> None:
    path = odd.write_clip(tmp_path / "a.mp4", odd.greys(5))
    path.write_bytes(odd.turned(path.read_bytes(), matrix))
    clip = read_video(path, Size(48, 80), 5)
    corners = {(y, x): clip[4, y, x].mean() < 26 for y in (0, -1) for x in (0, -1)}
    assert corners == {place: place == corner for place in corners}


# Colours.


@pytest.mark.parametrize(
    ("matrix", "tags", "full", "side"),
    [
        ("709", {"colorspace": 1, "color_range": 1}, False, 64),
        ("709", {"colorspace": 1, "color_range": 2}, True, 64),
        ("601", {"colorspace": 5, "color_range": 1}, False, 64),
        ("601", {"colorspace": 6, "color_range": 2}, True, 64),
        ("2020", {"colorspace": 9, "color_range": 1}, False, 64),
        ("601", {}, False, 64),
        ("709", {}, False, 640),  # 43: high definition that names nothing.
    ],
)
def test_matrix_and_range(tmp_path, matrix, tags, full, side) -> None:  # 43
    frame = odd.yuv_frame(*odd.coded(odd.RED, matrix, full), side=side)
    path = odd.write_clip(tmp_path / "a.mp4", [frame] * 2, tags=tags)
    assert np.abs(np.array(center(read_video(path, SIZE, 1))) - odd.RED).max() <= 2


def _pq(nits: float) -> float:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    y = (nits / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


def _hlg(light: float) -> float:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return (3 * light) ** 0.5 if light <= 1 / 12 else a * np.log(12 * light - b) + c


def _deep(code: float):
    return odd.yuv_frame(round((code * 219 + 16) * 4), 512, 512, "yuv420p10le")


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_tone_mapped_or_refused(tmp_path, transfer) -> None:  # 41
    greys = []
    for part in (0.05, 0.25, 0.6, 2.0, 4.9):  # Of SDR white, 203 nits.
        nits = part * 203
        # HLG's display of 1,000 nits has a gamma of 1.2.
        code = _pq(nits) if transfer == 16 else _hlg((nits / 1000) ** (1 / 1.2))
        path = odd.write_clip(
            tmp_path / "a.mp4",
            [_deep(code)] * 2,
            "libx264",
            "yuv420p10le",
            tags={"colorspace": 9, "color_primaries": 9, "color_trc": transfer, "color_range": 1},
        )
        greys.append(center(read_video(path, SIZE, 1))[1])
        assert (
            kind_of(functools.partial(read_video, path, SIZE, 1, hdr="refuse")) == "corrupt_video"
        )
    # sRGB of 0.05, 0.25 and 0.6 is 63, 137 and 203.
    assert np.abs(np.array(greys[:3]) - (63, 137, 203)).max() <= 3
    assert 230 < greys[3] < greys[4] <= 255


def test_transparent_parts_of_clips_are_white(tmp_path) -> None:  # 42
    frame = np.zeros((48, 80, 4), np.uint8)
    frame[:, 40:] = (200, 0, 0, 255)
    argb = frame[..., [3, 0, 1, 2]].copy()
    odd.write_clip(tmp_path / "a.mov", [argb] * 5, "qtrle", "argb", source="argb")
    odd.write_clip(
        tmp_path / "a.webm", [frame] * 5, "libvpx-vp9", "yuva420p", source="rgba",
        options={"lossless": "1"},
    )  # fmt: skip
    stills = [Image.fromarray(frame)] * 4
    later = Image.fromarray(np.roll(frame, 8, 0) // 2 * 2)
    for suffix in ("png", "webp", "gif"):
        stills[0].save(
            tmp_path / f"a.{suffix}", save_all=True, append_images=[later] * 4, duration=100
        )
    for name in ("a.mov", "a.webm", "a.png", "a.webp", "a.gif"):
        clip = read_video(tmp_path / name, Size(48, 80), 5)
        assert (clip[:, 2:-2, 2:30] >= 253).all(), name
        assert np.abs(clip[0, 24, 60].astype(int) - (200, 0, 0)).max() <= 6, name


# Animated pictures, folders, sounds.


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_animated_pictures_have_all_their_frames_at_their_times(tmp_path, suffix) -> None:  # 37
    frames = [Image.fromarray(frame) for frame in odd.greys(6)]
    # One second each, and five for the last.
    frames[0].save(
        tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:],
        duration=[1000] * 5 + [5000], quality=95,
    )  # fmt: skip
    path = tmp_path / f"a.{suffix}"
    assert is_clip(path)
    assert shades(read_video(path, SIZE, 10, fps=1.0)) == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert len(load_video(path, (32, 32), 17)) == 5
    frames[0].save(tmp_path / f"still.{suffix}")
    assert not is_clip(tmp_path / f"still.{suffix}")
    assert len(load_video(tmp_path / f"still.{suffix}", (32, 32), 17)) == 1


def test_an_animation_of_absurd_size_is_an_error_with_its_size(tmp_path) -> None:
    frames = [Image.fromarray(frame) for frame in odd.greys(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 9000, 8000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(Fault, match=r"a\.gif.*9000x8000"):
        read_video(tmp_path / "a.gif", SIZE, 3)


def test_pages_and_previews_are_no_animation(tmp_path) -> None:
    frames = [Image.fromarray(frame) for frame in odd.greys(3)]
    for name in ("a.tif", "a.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert not is_clip(tmp_path / name)
        assert len(load_video(tmp_path / name, (32, 32), 5)) == 1


def test_numbers_of_frames_are_ordered_by_value_and_hidden_files_are_none(
    tmp_path,
) -> None:  # 30, 39
    for i, frame in enumerate(odd.greys(12)):
        Image.fromarray(frame).save(tmp_path / f"{i + 1}.png")
        (tmp_path / f"._{i + 1}.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert shades(read_video(tmp_path, SIZE, 12)) == list(range(12))
    assert shades(load_video(tmp_path, (32, 32), 9))[:3] == [0, 1, 3]


def test_a_song_with_a_cover_has_no_frames(tmp_path) -> None:  # 40
    path = odd.song(tmp_path / "song.mp3")
    for read in (lambda: video_size(path), lambda: read_video(path, SIZE, 5)):
        assert kind_of(read) == "no_frames"
    with pytest.raises(ValueError, match=r"song\.mp3"):
        load_video(path, (32, 32), 5)


def test_names_are_files_and_never_addresses_or_scripts(tmp_path) -> None:
    path = odd.write_clip(tmp_path / "12:30 %03d.mp4", odd.greys(5))
    assert len(read_video(path, SIZE, 5)) == 5
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{path.name}'\n")
    (tmp_path / "notes.txt").write_text("no video at all\n" * 50)
    for name in ("list.m3u8", "list.ffconcat", "notes.txt"):
        assert kind_of(functools.partial(read_video, tmp_path / name, SIZE, 5)) == "corrupt_video"


def test_tags_that_are_no_text_do_not_matter(tmp_path) -> None:  # nagadomi/nunif#570
    path = odd.write_clip(tmp_path / "a.mkv", odd.greys(5))
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\x83f"))
    assert shades(read_video(path, SIZE, 5)) == [0, 1, 2, 3, 4]


def test_a_clip_of_absurd_size_is_an_error_with_its_size(tmp_path) -> None:
    path = odd.write_clip(tmp_path / "a.mov", [odd.plain((1, 2, 3))] * 3, "qtrle", "rgb24")
    data = bytearray(path.read_bytes())
    at = data.index(b"rle ", data.index(b"stsd")) + 28
    assert struct.unpack(">HH", data[at : at + 4]) == (80, 48)
    data[at : at + 4] = struct.pack(">HH", 16000, 15000)
    path.write_bytes(data)
    with pytest.raises(Fault, match="16000x15000"):
        read_video(path, SIZE, 3)
