"""Pictures: sizes, crops, colours, and files that are broken."""

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import Size, image_size, read_image


def test_a_picture_covers_the_size_and_keeps_its_middle(files) -> None:
    path = files.root / files.image("wide.png", 40, 120)
    picture = read_image(path, Size(32, 48))
    assert picture.shape == (32, 48, 3)
    assert picture.dtype == np.uint8
    # 40x120 covers 32x48 at 4/5: columns 30 to 90 of 120 are kept, all rows.
    np.testing.assert_allclose(picture[0, [0, -1], 1], [255 * 30 / 119, 255 * 89 / 119], atol=2)
    np.testing.assert_allclose(picture[[0, -1], 0, 2], [0, 255], atol=4)
    assert (picture[..., 0] == 100).all()


def test_a_shrunken_picture_is_not_aliased(tmp_path) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    picture = read_image(tmp_path / "stripes.png", Size(32, 32))
    assert abs(picture[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_orientation_is_obeyed_by_header_and_pixels(files, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to stand upright
    files.image("turned.jpg", 40, 80, exif=exif, quality=95)
    assert image_size(tmp_path / "turned.jpg") == Size(80, 40)
    picture = read_image(tmp_path / "turned.jpg", Size(80, 40))
    assert picture[5, 20, 1] < 30 and picture[75, 20, 1] > 220  # what grew rightwards grows down


@pytest.mark.parametrize(
    ("mode", "fill", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("LA", (9, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("I;16", 77 * 256, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, fill, seen) -> None:
    Image.new(mode, (20, 20), fill).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png", Size(16, 16))
    assert (picture == np.array(seen)).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(files, tmp_path) -> None:
    files.image("large.png", 1200, 1600)
    files.image("large.jpg", 1200, 1600, quality=95)
    exact = read_image(tmp_path / "large.png", Size(64, 64)).astype(int)
    drafted = read_image(tmp_path / "large.jpg", Size(64, 64)).astype(int)
    assert abs(exact - drafted).max() <= 6


def kind_of(read) -> str:
    with pytest.raises(Fault) as raised:
        read()
    return raised.value.kind


def test_faults_of_pictures_are_told_apart(files, tmp_path) -> None:
    whole = (tmp_path / files.image("whole.jpg", 200, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "note.jpg").write_text("not a picture")
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
