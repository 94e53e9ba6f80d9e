"""The shapes that a model was trained on: an image in a question or an edit takes the nearest one, as in training.

Shapes are kept by task, as `RunRecord.shapes` has them: 'understand', 'video_understand', 'edit' and 'i2v'. A task
without shapes takes the model's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.data.media.image import Size, image_size, standard_errors, upright_size
from tuna_jax.data.media.video import video_size
from tuna_jax.data.mixture.bucketing import FAMILIES, named_sizes, nearest
from tuna_jax.inference.media_inputs import MediaInput, is_video, medium_of

Shape = tuple[int, int]
"""(height, width) in pixels."""
Shapes = Mapping[str, Sequence[Shape]]

TASKS = ("understand", "video_understand", "edit", "i2v")


def of_streams(streams: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Shape]]:
    """The shapes by task of an experiment's streams, `config.data.streams`."""
    shapes: dict[str, list[Shape]] = {}
    for stream in streams.values():
        task = stream.get("task")
        if task not in TASKS:
            continue
        of_task = shapes.setdefault(task, [])
        for name in stream.get("sizes") or ("512",):
            pairs = [(size.height, size.width) for size in named_sizes(str(name))]
            of_task += [pair for pair in pairs if pair not in of_task]
    return shapes


def of_released_model(side: int) -> dict[str, list[Shape]]:
    """The shapes by task of a released model whose encoder sees squares of `side` pixels (model.md section 1)."""
    family = FAMILIES.get(str(side), ())
    return {"understand": [(size.height, size.width) for size in family]} if family else {}


def of_media(shapes: Shapes, size: Shape, media: Sequence[MediaInput]) -> Shape:
    """The shape that the media of one conversation take: the nearest to that of the first, as in training.

    Raises:
      FileNotFoundError, ValueError: the first cannot be read; the file is named.
    """
    if not media:
        return size
    task = "video_understand" if is_video(media[0]) else "understand"
    return nearest_shape(shapes.get(task, ()), size, media[0])


def nearest_shape(shapes: Sequence[Shape], size: Shape, item: MediaInput) -> Shape:
    """The shape nearest to an image or video; `size` if there are none, and the only one without a look at the item."""
    if len(shapes) < 2:
        return (shapes[0][0], shapes[0][1]) if shapes else size
    own = _size_of(item)
    sizes = [Size(height, width) for height, width in shapes]
    chosen = sizes[int(nearest(np.array([own.height]), np.array([own.width]), sizes)[0])]
    return chosen.height, chosen.width


def _size_of(item: MediaInput) -> Size:
    """The upright size of an image, or of a video's frames."""
    if isinstance(item, Image.Image):
        return upright_size(item)
    if isinstance(item, np.ndarray):
        height, width = item.shape[-3:-1] if item.ndim in (3, 4) else (1, 1)
        return Size(height, width)
    medium = medium_of(item)
    with standard_errors(medium):
        return (video_size if is_video(item) else image_size)(medium, smallest=1)
