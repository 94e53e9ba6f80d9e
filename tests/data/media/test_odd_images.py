"""Pictures as people have them: profiles, depths, orientations, and other files; comments name reports."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import odd_media as odd
from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import (
    Size,
    file_size,
    image_size,
    load_image,
    load_rgb,
    read_image,
    to_rgb,
)

SIZE = Size(48, 80)
RAMP = odd.ramp()
GREY = np.round(RAMP * 255)


def near(pixels: np.ndarray, expected, most: int = 2) -> None:
    difference = np.abs(pixels.astype(int) - np.broadcast_to(expected, pixels.shape))
    assert difference.max() <= most, (difference.max(), pixels[0, 0])


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


# Colours.


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_profiles_are_applied(tmp_path, suffix) -> None:  # 31
    exchanged = odd.profile(odd.SRGB[2], odd.SRGB[1], odd.SRGB[0])
    options = {"quality": 100} if suffix != "tif" else {}
    for name, stored, profile in (
        ("p3", (202, 59, 51), odd.profile(*odd.P3)),
        ("exchanged", (40, 40, 220), exchanged),
        ("plain", (220, 40, 40), odd.profile(*odd.SRGB)),
    ):
        path = tmp_path / f"{name}.{suffix}"
        saved(path, odd.plain(stored), icc_profile=profile, **options)
        near(read_image(path, SIZE), (220, 40, 40), 4)


def test_profiles_of_other_modes(tmp_path) -> None:
    exchanged = odd.profile(odd.SRGB[2], odd.SRGB[1], odd.SRGB[0])
    layer = odd.plain((40, 40, 220, 255))
    layer[:, :20, 3] = 0
    saved(tmp_path / "alpha.png", layer, icc_profile=exchanged)
    image = Image.fromarray(odd.plain((40, 40, 220))).quantize(4)
    image.save(tmp_path / "palette.png", icc_profile=exchanged)
    keyed = odd.plain((40, 40, 220))
    keyed[:, :20] = (1, 2, 3)
    saved(tmp_path / "key.png", keyed, icc_profile=exchanged, transparency=(1, 2, 3))
    for name in ("alpha.png", "palette.png", "key.png"):
        pixels = read_image(tmp_path / name, SIZE)
        near(pixels[:, 40:], (220, 40, 40))
        if name != "palette.png":
            near(pixels[:, :16], 255)
    # Linear light of 0.2 is 124 in sRGB.
    linear = odd.profile(*odd.SRGB, space=b"GRAY")
    saved(tmp_path / "grey.png", np.full((48, 80), 51, np.uint8), icc_profile=linear)
    near(read_image(tmp_path / "grey.png", SIZE), 124, 3)
    saved(tmp_path / "deep.png", np.full((48, 80), 51 * 257, np.uint16), icc_profile=linear)
    near(read_image(tmp_path / "deep.png", SIZE), 124, 3)


@pytest.mark.parametrize("profile", [b"nonsense" * 40, odd.profile(*odd.SRGB, space=b"GRAY")])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path, profile) -> None:
    path = saved(tmp_path / "a.png", odd.plain(odd.RED), icc_profile=profile)
    near(read_image(path, SIZE), odd.RED, 0)


def test_png_names_colours_by_numbers_and_gamma(tmp_path) -> None:
    content = odd.insert_chunk(odd.png(odd.plain((202, 59, 51))), b"cICP", bytes((12, 13, 0, 1)))
    near(np.asarray(load_rgb(content)), (220, 40, 40), 2)
    pq = odd.insert_chunk(odd.png(odd.plain((110,) * 3)), b"cICP", bytes((9, 16, 0, 1)))
    # PQ's code 110/255 is 45.4 nits, 0.223 of SDR white, in sRGB 130.
    near(np.asarray(load_rgb(pq)), 130, 2)
    with pytest.raises(Fault, match="hdr"):
        read_image(pq, SIZE, hdr="refuse")
    linear = odd.insert_chunk(odd.png(odd.plain((51,) * 3)), b"gAMA", struct.pack(">I", 100000))
    near(np.asarray(load_rgb(linear)), 123, 2)
    usual = odd.insert_chunk(odd.png(odd.plain((51,) * 3)), b"gAMA", struct.pack(">I", 45455))
    near(np.asarray(load_rgb(usual)), 51, 0)


# Depth.


def test_deep_pictures_are_scaled_by_their_range(tmp_path) -> None:  # 25
    deep = np.round(RAMP * 65535).astype(np.uint16)
    saved(tmp_path / "a.png", deep)
    saved(tmp_path / "a.tif", deep)
    (tmp_path / "a.pgm").write_bytes(b"P5\n80 48\n65535\n" + deep.astype(">u2").tobytes())
    twelve = np.round(RAMP * 4095).astype(">u2")
    (tmp_path / "twelve.pgm").write_bytes(b"P5\n80 48\n4095\n" + twelve.tobytes())
    saved(tmp_path / "float.tif", RAMP.astype(np.float32))
    for name in ("a.png", "a.tif", "a.pgm", "twelve.pgm", "float.tif"):
        near(read_image(tmp_path / name, SIZE), GREY[..., None], 1)


@pytest.mark.parametrize(
    "pixels",
    [
        np.round(RAMP * 65535).astype(np.int32),
        (RAMP * 255).astype(np.float32),
        (RAMP - 0.5).astype(np.float32),
        np.full((48, 80), np.nan, np.float32),
    ],
)
def test_pictures_without_a_known_range_are_refused_by_name(tmp_path, pixels) -> None:  # 25
    path = saved(tmp_path / "odd.tif", pixels)
    with pytest.raises(Fault, match=r"odd\.tif.*(integers|floats)"):
        read_image(path, SIZE)
    with pytest.raises(ValueError, match="the picture holds"):
        to_rgb(Image.fromarray(pixels))


def test_a_transparent_value_of_deep_grey(tmp_path) -> None:  # 26
    values = np.zeros((48, 80), np.uint16)
    values[:, 40:] = 30000
    content = odd.insert_chunk(odd.png(values), b"tRNS", struct.pack(">H", 0))
    pixels = np.asarray(load_rgb(content))
    near(pixels[:, :40], 255, 0)
    near(pixels[:, 40:], 30000 >> 8, 0)


# Orientation.


def _oriented(tmp_path, name: str, orientation: int):
    """A picture that is dark on its left."""
    pixels = odd.plain((200, 200, 200))
    pixels[:, :20] = 0
    path = tmp_path / name
    if name == "after.png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.write_bytes(
            odd.insert_chunk(odd.png(pixels), b"eXIf", exif.tobytes()[6:], before=b"IEND")
        )
    elif name == "xmp_after.png":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + odd.xmp(orientation)
        path.write_bytes(odd.insert_chunk(odd.png(pixels), b"iTXt", text, before=b"IEND"))
    elif name == "xmp.png":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + odd.xmp(orientation)
        path.write_bytes(odd.insert_chunk(odd.png(pixels), b"iTXt", text))
    elif name == "xmp.tif":
        saved(path, pixels, tiffinfo={700: odd.xmp(orientation)})
    else:
        saved(path, pixels, xmp=odd.xmp(orientation), quality=95)
    return path


@pytest.mark.parametrize(
    "name", ["xmp.jpg", "xmp.webp", "xmp.png", "xmp_after.png", "after.png", "xmp.tif"]
)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_header_and_pixels_agree_on_the_orientation(tmp_path, name, orientation) -> None:  # 32
    path = _oriented(tmp_path, name, orientation)
    with Image.open(path) as opened:
        pixels = np.asarray(to_rgb(opened))
    assert image_size(path) == Size(*pixels.shape[:2]) == file_size(path)
    assert (pixels.shape[0] > pixels.shape[1]) == (orientation in (6, 8))
    sides = {
        "left": pixels[:, 4],
        "right": pixels[:, -5],
        "top": pixels[4],
        "bottom": pixels[-5],
    }
    dark = [side for side, line in sides.items() if line.mean() < 20]
    assert dark == [{1: "left", 3: "right", 6: "top", 8: "bottom"}[orientation]]


# Files that are no pictures.


def _heic() -> bytes:
    return struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.heic", _heic(), "HEIC.*convert"),
        ("b.jpg", _heic(), "HEIC"),
        ("a.jpg", b"<!DOCTYPE html><html>404</html>", "HTML"),
        ("c.jpg", b"", "empty"),
        ("d.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("._e.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X        ", "AppleDouble"),
        ("a.jxl", b"\xff\x0a" + bytes(40), "JPEG XL"),
        ("a.svg", b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        ("note.png", b"a note", r"note\.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_named_with_the_mend(tmp_path, name, content, words) -> None:  # 29
    (tmp_path / name).write_bytes(content)
    for read in (
        lambda path: read_image(path, SIZE),
        image_size,
        lambda path: load_image(path, 32),
        load_rgb,
    ):
        with pytest.raises(ValueError, match=words) as raised:
            read(tmp_path / name)
        assert name in str(raised.value) and "\n" not in str(raised.value)
        assert "BytesIO" not in str(raised.value)


def test_truncated_pictures_and_bombs_are_named(tmp_path) -> None:  # 27, 28
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    saved(tmp_path / "cut.jpg", noise)
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    header = b"\x89PNG\r\n\x1a\n" + odd.chunk(
        b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    )
    (tmp_path / "bomb.png").write_bytes(header + odd.chunk(b"IDAT", b"") + odd.chunk(b"IEND", b""))
    for name, words in (
        ("cut.jpg", r"cut\.jpg.*truncated"),
        ("bomb.png", r"bomb\.png.*3600000000"),
    ):
        for read in (lambda path: load_image(path, 32), load_rgb):
            with pytest.raises(ValueError, match=words):
                read(tmp_path / name)
        with pytest.raises(Fault, match=words):
            read_image(tmp_path / name, SIZE)


def test_a_video_named_as_a_picture_is_not_read_whole(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 20) + b"ftypisom\0\0\2\0isom" + bytes(9999))
    with pytest.raises(ValueError, match=r"a\.jpg.*video file, not a picture"):
        load_image(tmp_path / "a.jpg", 32)


def test_pictures_are_read_from_bytes_too() -> None:
    file = io.BytesIO()
    Image.fromarray(odd.plain(odd.RED)).save(file, "PNG")
    near(read_image(file.getvalue(), SIZE), odd.RED, 0)
    with pytest.raises(Fault, match="the image or video in the example.*empty"):
        read_image(b"", SIZE)
