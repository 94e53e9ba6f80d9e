"""Labelled contact sheets of images, for samples during training and for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG, PLAIN = (24, 128, 80), (196, 48, 48), (70, 74, 84)
_MARGIN = 10
_FONT_SIZE = 12
_LINES = 4


def _wrapped(
    text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> list[str]:
    """The text in at most `_LINES` lines that fit the width; the rest becomes an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _LINES:
        lines = lines[:_LINES]
        lines[-1] = lines[-1].rsplit(" ", 1)[0] + " …"
    return lines


def tiled(images: UInt8[np.ndarray, "n height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """The images as one, side by side in about as many rows as columns; what is left of the last row is black."""
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, 3), np.uint8)
    grid[:count] = images
    grid = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def contact_sheet(
    images: UInt8[np.ndarray, "n height width 3"],
    labels: Sequence[str],
    right: Sequence[bool | None] | None = None,
    *,
    columns: int = 8,
    scale: int = 2,
) -> Image.Image:
    """Images in a grid, each with its label below, and with a green or red frame where it was judged.

    Args:
        images: all of one size.
        labels: one text per image.
        right: one verdict per image; None for no verdict.
        columns: the most images per row.
        scale: sheet pixels per image pixel.
    """
    images = np.asarray(images)
    count = len(images)
    right = [None] * count if right is None else list(right)
    if not count == len(labels) == len(right):
        raise ValueError(
            f"{count} images, {len(labels)} labels and {len(right)} verdicts; the numbers must be equal"
        )
    if count and (images.dtype != np.uint8 or images.ndim != 4):
        raise ValueError(
            f"images are {images.dtype} {images.shape}; they must be uint8 [n, h, w, 3]"
        )
    font = ImageFont.load_default(_FONT_SIZE)
    height, width = (images.shape[1] * scale, images.shape[2] * scale) if count else (0, 0)
    columns = max(1, min(columns, count))
    line = _FONT_SIZE + 3
    step_x, step_y = width + 2 * _MARGIN, height + _LINES * line + 2 * _MARGIN
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, (image, label, verdict) in enumerate(zip(images, labels, right, strict=True)):
        x, y = _MARGIN + i % columns * step_x, _MARGIN + i // columns * step_y
        large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        colour = PLAIN if verdict is None else RIGHT if verdict else WRONG
        if verdict is not None:
            pen.rectangle((x - 4, y - 4, x + width + 3, y + height + 3), fill=colour)
        sheet.paste(large, (x, y))
        for nth, text in enumerate(_wrapped(label, font, width)):
            pen.text((x, y + height + 5 + nth * line), text, fill=colour, font=font)
    return sheet
