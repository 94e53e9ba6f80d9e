"""Input images and videos: files, Pillow images and arrays become the same clips."""

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.random_images import random_image
from tuna_jax.inference.media_inputs import as_clip, as_list, as_picture, is_video, of_kind


def test_files_pillow_images_and_arrays_are_the_same_clip(tmp_path):
    image = random_image(3)
    Image.fromarray(image).save(tmp_path / "a.png")
    for item in (image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(as_clip(item, (64, 64)), image[None])


def test_other_sizes_are_scaled_and_cropped():
    image = random_image(0, 90, 50)
    clip = as_clip(image, (32, 48))
    assert clip.shape == (1, 32, 48, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(as_clip(Image.fromarray(image), (32, 48)), clip)
    frames = as_clip(np.stack([image, image]), (32, 48))
    np.testing.assert_array_equal(frames, np.concatenate([clip, clip]))


def test_one_input_or_several_are_a_list():
    image = random_image(0)
    assert as_list(None) == []
    assert as_list("a.png") == ["a.png"]
    assert as_list([image, "a.png"])[1] == "a.png"
    (only,) = as_list(image)
    assert only is image


def test_videos_are_arrays_with_frames_and_files_by_their_content(tmp_path):
    assert is_video(np.zeros((1, 8, 8, 3), np.uint8))
    assert not is_video(random_image(0)) and not is_video(Image.fromarray(random_image(0)))
    image = Image.fromarray(random_image(0))
    image.save(tmp_path / "picture.mp4", "PNG")
    image.save(tmp_path / "clip.png", "GIF", save_all=True, append_images=[image.rotate(90)] * 4)
    assert not is_video(tmp_path / "picture.mp4") and is_video(str(tmp_path / "clip.png"))
    assert is_video((tmp_path / "clip.png").read_bytes()) and is_video(tmp_path)
    # Files that do not exist are judged by their suffix.
    assert is_video(tmp_path / "a.MP4") and not is_video("a.png")


def test_a_file_may_be_read_as_the_other_kind(tmp_path):
    image = Image.fromarray(random_image(0))
    turned = [image.rotate(30 * i) for i in range(1, 5)]
    image.save(tmp_path / "a.gif", save_all=True, append_images=turned)
    path = tmp_path / "a.gif"
    (still,), (clip,) = of_kind([path], "image"), of_kind([str(path)], "video")
    assert len(as_clip(path, (32, 32))) == 5 == len(as_clip(clip, (32, 32)))
    np.testing.assert_array_equal(as_clip(still, (32, 32)), as_clip(path, (32, 32))[:1])
    np.testing.assert_array_equal(as_picture(path, (32, 32)), as_clip(still, (32, 32)))
    assert of_kind([path], "") == [path] and as_list(still) == [still]
    content = of_kind([path.read_bytes()], "image")[0]
    np.testing.assert_array_equal(as_clip(content, (32, 32)), as_clip(still, (32, 32)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_rejected(array):
    with pytest.raises(ValueError, match=f"{array.dtype}"):
        as_clip(array, (8, 8))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        as_clip(tmp_path / "none.png", (8, 8))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        as_clip(tmp_path / "bad.png", (8, 8))
