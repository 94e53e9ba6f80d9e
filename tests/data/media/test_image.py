"""Images: sizes, crops, colours, and broken files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import (
    Size,
    image_size,
    load_image,
    read_image,
    stretch,
    to_rgb,
)


def test_an_image_covers_the_size_and_keeps_its_centre(files) -> None:
    path = files.root / files.image("wide.png", 40, 120)
    image = read_image(path, Size(32, 48))
    assert image.shape == (32, 48, 3)
    assert image.dtype == np.uint8
    # 40x120 covers 32x48 at 4/5: columns 30 to 90 of 120 are kept, all rows.
    np.testing.assert_allclose(image[0, [0, -1], 1], [255 * 30 / 119, 255 * 89 / 119], atol=2)
    np.testing.assert_allclose(image[[0, -1], 0, 2], [0, 255], atol=4)
    assert (image[..., 0] == 100).all()


def test_a_downscaled_image_is_not_aliased(tmp_path) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    image = read_image(tmp_path / "stripes.png", Size(32, 32))
    assert abs(image[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_orientation_is_applied_to_size_and_pixels(files, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees clockwise to display.
    files.image("turned.jpg", 40, 80, exif=exif, quality=95)
    assert image_size(tmp_path / "turned.jpg") == Size(80, 40)
    image = read_image(tmp_path / "turned.jpg", Size(80, 40))
    assert (
        image[5, 20, 1] < 30 and image[75, 20, 1] > 220
    )  # The gradient to the right now runs down.


@pytest.mark.parametrize(
    ("mode", "fill", "rgb"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("LA", (9, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("I;16", 77 * 256, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, fill, rgb) -> None:
    Image.new(mode, (20, 20), fill).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", Size(16, 16))
    assert (image == np.array(rgb)).all()


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(files, tmp_path) -> None:
    files.image("large.png", 1200, 1600)
    files.image("large.jpg", 1200, 1600, quality=95)
    exact = read_image(tmp_path / "large.png", Size(64, 64)).astype(int)
    drafted = read_image(tmp_path / "large.jpg", Size(64, 64)).astype(int)
    assert abs(exact - drafted).max() <= 6


def kind_of(read) -> str:
    with pytest.raises(Fault) as raised:
        read()
    return raised.value.kind


def test_a_reduced_jpeg_is_decoded_at_the_size_needed_and_looks_alike(tmp_path) -> None:
    """Only on request: at twice the size of the target, nothing else is reduced."""
    low = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(low).resize((128, 128), Image.Resampling.BICUBIC).save(
        tmp_path / "a.jpg", quality=95
    )
    plain = read_image(tmp_path / "a.jpg", Size(64, 64)).astype(int)
    reduced = read_image(tmp_path / "a.jpg", Size(64, 64), reduced=True).astype(int)
    with Image.open(tmp_path / "a.jpg") as opened:
        opened.draft("RGB", (64, 64))
        np.testing.assert_array_equal(reduced, np.asarray(opened))
    assert 0 < abs(plain - reduced).mean() <= 3
    larger = read_image(tmp_path / "a.jpg", Size(65, 65), reduced=True)
    np.testing.assert_array_equal(larger, read_image(tmp_path / "a.jpg", Size(65, 65)))


def test_faults_are_distinguished(files, tmp_path) -> None:
    whole = (tmp_path / files.image("whole.jpg", 200, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "note.jpg").write_text("not an image")
    (tmp_path / "nothing.jpg").write_bytes(b"")
    files.image("five.png", 5, 5)
    size = Size(32, 32)
    for name, kind in (
        ("none.jpg", "missing_file"),
        ("note.jpg", "corrupt_image"),
        ("nothing.jpg", "corrupt_image"),
        ("five.png", "tiny_image"),
        (".", "missing_file"),
    ):
        assert kind_of(lambda: read_image(tmp_path / name, size)) == kind  # noqa: B023
        assert kind_of(lambda: image_size(tmp_path / name)) == kind  # noqa: B023
    assert image_size(tmp_path / "cut.jpg") == Size(200, 300), "its header is whole"
    assert kind_of(lambda: read_image(tmp_path / "cut.jpg", size)) == "corrupt_image"


def test_16_bit_grey_is_scaled_by_its_range(tmp_path) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "deep.png")
    header = b"P5 64 64 65535\n"
    (tmp_path / "deep.pgm").write_bytes(header + values.astype(">u2").tobytes())
    for name in ("deep.png", "deep.pgm"):
        image = read_image(tmp_path / name, Size(64, 64))
        np.testing.assert_array_equal(image, np.repeat((values >> 8)[..., None], 3, axis=-1))


def test_a_transparent_value_of_16_bit_grey_becomes_white(tmp_path) -> None:
    values = np.full((16, 16), 20000, np.uint16)
    values[:8] = 300
    Image.fromarray(values).save(tmp_path / "a.png", transparency=300)
    image = read_image(tmp_path / "a.png", Size(16, 16))
    assert (image[:8] == 255).all() and (image[8:] == 20000 >> 8).all()


def test_a_stretched_image_keeps_its_borders() -> None:
    pixels = np.zeros((8, 32, 3), np.uint8)
    pixels[:, :16] = 250
    image = stretch(Image.fromarray(pixels), Size(16, 16))
    assert (image[:, :6] == 250).all() and (image[:, 10:] == 0).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_size_and_pixels_agree_on_the_orientation_of_every_format(tmp_path, suffix) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 20)).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        upright = to_rgb(opened)
    assert (upright.height, upright.width) == (40, 20)
    assert image_size(tmp_path / f"a.{suffix}") == Size(40, 20)


def test_load_image_crops_scales_and_takes_any_size(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = load_image(tmp_path / "wide.png", 16)
    assert image.shape == (16, 16, 3)
    assert (image[4:12, 4:12] == (200, 100, 50)).all()
    np.testing.assert_array_equal(load_image((tmp_path / "wide.png").read_bytes(), (16, 16)), image)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (load_image(str(tmp_path / "clear.png"), 8) == 255).all()


def test_load_image_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"note\.png"):
        load_image(tmp_path / "note.png", 8)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png", 8)
