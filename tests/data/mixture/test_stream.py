"""Streams: defaults, shapes, and invalid settings."""

import numpy as np
import pytest

from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture import stream as streams
from tuna_jax.data.mixture.bucketing import SIZES_512
from tuna_jax.data.mixture.stream import UNUSED_SIZE, BatchShape, ExampleStream, stream_grids
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.sequence import Grid


def stream(files, **settings):
    path = files.manifest("m.jsonl", [{"image": "a", "caption": "b"}])
    defaults = {"name": "s", "task": "t2i", "weight": 1.0, "rows": 4, "lengths": (64, 2048)}
    return ExampleStream(source=Manifest(path), **{**defaults, **settings})


def test_defaults(files) -> None:
    assert stream(files).picture_sizes == SIZES_512
    assert stream(files, task="chat").picture_sizes == (UNUSED_SIZE,)
    assert stream(files).slot_counts == (1,)
    assert stream(files, task="edit").slot_counts == (2,)
    assert stream(files, task="i2v", frames=5).slot_counts == (2,)
    video = stream(files, task="t2v", frames=13, sizes=(Size(384, 672),), lengths=(4096,))
    assert stream_grids(video, 16, 4) == [Grid(4, 24, 42)]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lengths": (64, 32)}, r"lengths is \(64, 32\)"),
        ({"slots": ()}, r"slots is \(\)"),
        ({"task": "edit", "slots": (1, 2)}, "slots is"),
        ({"frames": 5}, "frames is 5"),
        ({"sizes": (Size(32, 32),) * 2}, "sizes is"),
        ({"text_dropout": 1.5}, "text_dropout is 1.5"),
        ({"both_dropout": 1.5}, "both_dropout is 1.5"),
        ({"text_dropout": 0.6, "source_dropout": 0.3, "both_dropout": 0.2}, "more than 1 together"),
        ({"task": "i2v"}, "frames is 1, but task 'i2v'"),
        ({"task": "i2v", "frames": 5, "slots": (1,)}, "at least 2 visual slots"),
        ({"weight": -1.0}, "weight is -1"),
        ({"sizes": (Size(32, 40),)}, "32x40 .*multiples of 16"),
        ({"task": "t2v", "frames": 4, "sizes": (Size(32, 32),)}, "4 frames is not 1"),
        ({"lengths": (64,)}, "512x512 needs at least 1029 tokens.*is 64"),
        ({"task": "edit"}, "512x512 needs at least 2054 tokens"),
        ({"task": "i2v", "frames": 5}, "512x512 needs at least 3078 tokens"),
    ],
)
def test_invalid_settings_are_named(files, settings, key) -> None:
    with pytest.raises(ValueError, match=f"stream 's': .*{key}"):
        stream_grids(stream(files, **settings), 16, 4)


def test_an_unknown_task_is_named(files, monkeypatch) -> None:
    # Another table in this module only: removing the entry and putting it back would change the order.
    remaining = {task: kinds for task, kinds in streams.ACCEPTS.items() if task != "t2i"}
    monkeypatch.setattr(streams, "ACCEPTS", remaining)
    with pytest.raises(ValueError, match="stream 's': task 't2i'.*understand, chat"):
        stream(files)


def test_a_shape_gives_its_arrays() -> None:
    shape = BatchShape(8, 2, 5, Size(32, 64), 100)
    assert str(shape) == "8 rows of 2x5x32x64, 100 tokens"
    arrays = shape.arrays(process_count=2)
    assert arrays["pixels"] == ((4, 2, 5, 32, 64, 3), np.dtype(np.uint8))
    assert arrays["spans"] == ((4, 2, 2), np.dtype(np.int32))
    assert arrays["tokens"] == arrays["labels"] == ((4, 100), np.dtype(np.int32))
