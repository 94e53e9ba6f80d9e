from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.media.pictures import read_picture


def test_a_picture_is_cropped_to_its_middle_and_scaled(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png", 16)
    assert picture.shape == (16, 16, 3)
    assert (picture[4:12, 4:12] == (200, 100, 50)).all()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", 8) == 255).all()


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"note\.png is not a picture"):
        read_picture(tmp_path / "note.png", 8)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "none.png", 8)
