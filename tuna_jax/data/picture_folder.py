"""A folder of pictures as a manifest."""

from __future__ import annotations

import os
from pathlib import Path

from tuna_jax.data.sources.webdataset import IMAGES
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import json_line, read_text

CAPTIONS = ("txt", "names", "folders")


def list_pictures(folder: Path, manifest: Path, captions: str = "txt") -> dict[str, int]:
    """Writes a manifest of a folder's pictures and of those of its subfolders, in the order of their names.

    Names are relative to the manifest's folder. A picture without a caption is listed without one, so that training
    and `tuna-jax data inspect` name it.

    Args:
        folder: of the pictures.
        manifest: the JSONL file.
        captions: 'txt' reads NAME.txt (or NAME.caption) next to a picture; 'names' takes its name, with spaces for
            underscores and hyphens; 'folders' the name of its folder.

    Returns:
        The number of pictures ('pictures'), and of those without a caption ('without').

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    pictures = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.rpartition(".")[2].lower() in IMAGES and not name.startswith(".")
    )
    if not pictures:
        raise FileNotFoundError(
            f"the folder {folder} has no pictures ({', '.join(sorted(IMAGES))})"
        )
    without = 0
    with atomic_file(manifest) as scratch, scratch.open("w", encoding="utf-8") as file:
        for picture in pictures:
            row = {"image": os.path.relpath(picture, manifest.parent)}
            text = _caption(picture, captions)
            if text:
                row["caption"] = text
            else:
                without += 1
            file.write(json_line(row))
    return {"pictures": len(pictures), "without": without}


def _caption(picture: Path, captions: str) -> str:
    if captions == "txt":
        for suffix in (".txt", ".caption"):
            if picture.with_suffix(suffix).is_file():
                return read_text(picture.with_suffix(suffix)).strip()
        return ""
    name = picture.stem if captions == "names" else picture.parent.name
    return " ".join(name.replace("_", " ").replace("-", " ").split())
