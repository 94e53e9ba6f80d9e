"""The files that `perf/input_pipeline.py` reads: JPEG images of noise, a clip, a TFDS data set, and latents."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import write_video
from tuna_jax.data.precompute_latents import Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import LatentExamples

LATENT_CHANNELS = 48  # Of the Wan 2.2 VAE.
WORDS = "a photograph of noise in many colours, of the kind that benchmarks are fond of"


def noise_picture(size: Size, random: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Colour noise with the 1/f spectrum of photographs, so that JPEG has about as much work."""
    total = np.zeros((size.height, size.width, 3), np.float32)
    side = 4
    while side <= min(size.height, size.width):
        # Photographs have equal contrast at every scale, most of it in brightness.
        grain = random.integers(0, 256, (side, side, 1), np.uint8) // 4 * 3
        grain = grain + random.integers(0, 64, (side, side, 3), np.uint8)
        grown = Image.fromarray(grain).resize((size.width, size.height), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float32) - 127.5
        side *= 2
    return np.clip(128 + total * (45 / total.std()), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Materials:
    """Files to read: paths of images by size, and a clip."""

    folder: Path
    pictures: dict[Size, list[Path]]
    clip: Path


def make_materials(
    folder: Path, sizes: Sequence[Size], count: int, clip_size: Size, clip_frames: int
) -> Materials:
    """Writes the JPEG files (quality 90), their manifests, and the MP4 (H.264)."""
    random = np.random.default_rng(0)
    pictures: dict[Size, list[Path]] = {}
    for size in sizes:
        (folder / str(size)).mkdir(parents=True)
        pictures[size] = [folder / str(size) / f"{i}.jpg" for i in range(count)]
        for path in pictures[size]:
            Image.fromarray(noise_picture(size, random)).save(path, quality=90)
        rows = [{"image": f"{size}/{path.name}", "caption": WORDS} for path in pictures[size]]
        _write_manifest(folder / f"{size}.jsonl", rows)
    clip, size = folder / "clip.mp4", clip_size
    wide = noise_picture(Size(size.height, size.width + 2 * clip_frames), random)
    moving = [wide[:, 2 * i : 2 * i + size.width] for i in range(clip_frames)]
    write_video(clip, np.stack(moving), fps=25.0)
    _write_manifest(folder / "clips.jsonl", [{"video": "clip.mp4", "caption": WORDS}] * count)
    return Materials(folder, pictures, clip)


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare_tfds(folder: Path, pictures: dict[Size, list[Path]]) -> Path:
    """Prepares the images as a TFDS data set in ArrayRecord files, with a split for each size; returns its folder."""
    import tensorflow_datasets as tfds  # takes seconds

    class TunaBenchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images of the benchmark."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image, text = tfds.features.Image(encoding_format="jpeg"), tfds.features.Text()
            features = tfds.features.FeaturesDict({"image": image, "caption": text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {
                f"of_{size}": self._generate_examples(paths) for size, paths in pictures.items()
            }

        def _generate_examples(self, paths: list[Path]) -> Iterator[Any]:
            for i, path in enumerate(paths):
                yield i, {"image": io.BytesIO(path.read_bytes()), "caption": WORDS}

    tfds.disable_progress_bar()
    builder = TunaBenchmark(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads
        builder.download_and_prepare()
    return Path(builder.data_path)


def latent_examples(folder: Path, manifest: Manifest, size: Size) -> LatentExamples:
    """Random latents of a 48-channel VAE for the images; only their reading is measured."""
    random = np.random.default_rng(0)

    def encode(clips: UInt8[np.ndarray, "n f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        n, frames, height, width, _ = clips.shape
        shape = (n, 1 + (frames - 1) // 4, height // 16, width // 16, LATENT_CHANNELS)
        mean = random.standard_normal(shape, np.float32)
        return mean, np.full_like(mean, 0.05)

    encoding = Encoding(vae_fingerprint="benchmark", sizes=(size,))
    encode_manifest(manifest, folder, encode, encoding, progress=False)
    return LatentExamples(folder)
