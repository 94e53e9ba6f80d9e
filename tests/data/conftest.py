"""Small real files for the tests of the data path."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Files:
    """Writes pictures, clips and manifests below a folder, and returns their names there."""

    def __init__(self, root: Path):
        self.root = root

    def image(self, name: str, height: int, width: int, shade: int = 100, **options) -> str:
        """A picture with a gradient, whose red is `shade` everywhere."""
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = shade
        pixels[..., 1] = np.linspace(0, 255, width)[None]
        pixels[..., 2] = np.linspace(0, 255, height)[:, None]
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / name, **options)
        return name

    def video(self, name: str, height: int = 48, width: int = 64, frames: int = 20, rate: int = 10):
        """A clip whose frame i is gray, of shade 6 i; a key frame every eight."""
        av = pytest.importorskip("av")
        with av.open(str(self.root / name), "w") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.options = {"g": "8", "crf": "1"}
            for i in range(frames):
                gray = np.full((height, width, 3), 6 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
            container.mux(stream.encode())
        return name

    def manifest(self, name: str, rows: list) -> Path:
        """A JSONL file; a row that is a string is written as it is."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.root / name


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="module")
def module_files(tmp_path_factory) -> Files:
    """A folder that the tests of one file share."""
    return Files(tmp_path_factory.mktemp("files"))
