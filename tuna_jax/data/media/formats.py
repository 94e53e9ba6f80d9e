"""What a file is, by its first bytes: its name says nothing reliable. Nothing is decoded here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from PIL import Image

Kind = Literal["picture", "animation", "video", "sound", "other", "unknown"]

HEAD = 4096
"""Bytes that `sniff` and `explain` look at."""

# Pictures of one frame; pictures that may be animated; what FFmpeg reads. Offsets are 0 unless a pair names one.
_PICTURES = (
    b"\xff\xd8\xff",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"8BPS",
    b"P4",
    b"P5",
    b"P6",
    b"Pf",
    b"qoif",
    b"DDS ",
)
_ANIMATIONS = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\1",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: WMV
    b"\0\0\1\xba",  # MPEG program stream
    b"\0\0\1\xb3",  # MPEG video
    b"OggS",
    b".RMF",
)
_SOUNDS = (b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9")
_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_NOT_MOVIES = (b"mif1", b"msf1", b"crx ")


def _brands(head: bytes) -> list[bytes]:
    """The brands of an ISO media file (MP4, MOV, AVIF, HEIC), the major one first."""
    end = min(int.from_bytes(head[:4], "big"), len(head), 256)
    return [head[at : at + 4] for at in range(8, end - 3, 4) if at != 12]


def sniff(head: bytes) -> Kind:
    """What the first `HEAD` bytes of a file say it is; 'animation' may still have one frame.

    'other' is known to be neither a picture nor a video that can be read (`explain` says what it is).
    """
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if any(brand in _AVIF for brand in brands):
            return "animation"
        return "other" if any(b in (*_HEIC, *_NOT_MOVIES) for b in brands[:1]) else "video"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "video"  # QuickTime without ftyp.
    if head.startswith(b"RIFF"):
        form = head[8:12]
        if form == b"WEBP":
            return "animation"
        return "video" if form == b"AVI " else "sound" if form == b"WAVE" else "unknown"
    signatures: tuple[tuple[Kind, tuple[bytes, ...]], ...] = (
        ("animation", _ANIMATIONS),
        ("picture", _PICTURES),
        ("video", _VIDEOS),
        ("sound", _SOUNDS),
    )
    for kind, starts in signatures:
        if head.startswith(starts):
            return kind
    # Packets of a transport stream have 188 bytes, on Blu-ray 192.
    for first, step in ((0, 188), (4, 192)):
        if len(head) > first + 2 * step and all(head[first + step * i] == 0x47 for i in range(3)):
            return "video"
    return "other" if _known(head) else "unknown"


def _known(head: bytes) -> str:
    """What a file is that is neither a picture nor a video, with the mend; empty if that is not known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:512].lower()
    if not head:
        return "the file is empty (0 bytes)"
    if head[4:8] == b"ftyp" and any(b in (*_HEIC, *_NOT_MOVIES) for b in _brands(head)):
        return (
            "it is a HEIC or HEIF picture (as iPhones take them), which is not supported; convert it to JPEG or PNG, "
            "for example with `heif-convert` or Preview"
        )
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "it is a JPEG XL picture, which is not supported; convert it with `djxl` to PNG"
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "it is an SVG drawing, which is not supported; convert it to PNG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is a web page (HTML), not a picture: the download failed"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.startswith(b"\0\5\x16\7"):
        return "it is macOS metadata (AppleDouble, ._name), not a picture"
    if head.startswith(b"%PDF"):
        return "it is a PDF document, which is not supported; convert its pages to PNG"
    if head.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "it is a PostScript file, which is not supported; convert it to PNG"
    if head.startswith(b"v/1\1"):
        return "it is an OpenEXR picture, which is not supported; convert it to PNG"
    if head.startswith((b"#?RADIANCE", b"#?RGBE")):
        return "it is a Radiance HDR picture, which is not supported; convert it to PNG"
    if head.startswith((b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")):
        return "it is an archive; unpack it"
    if text.startswith((b"{", b"[")):
        return "it is JSON text, not a picture"
    return ""


def explain(head: bytes, wanted: str, error: object = None) -> str:
    """Why a file cannot be read as a 'picture' or a 'video', in words for its user.

    Args:
        head: its first bytes.
        wanted: 'picture' or 'video'.
        error: what the decoder reported, for a file that looks like what is wanted.
    """
    if known := _known(head):
        return known
    kind = sniff(head)
    if wanted == "picture" and kind in ("video", "sound"):
        return f"it is a {kind} file, not a picture"
    if wanted == "picture" and kind == "unknown":
        return "it is not a picture of a format that is supported"
    return str(error)


@functools.lru_cache
def picture_formats() -> tuple[str, ...]:
    """Pillow's formats that are read, the common ones first.

    Left out: stubs that cannot decode, files that start another program (PostScript), and MPEG, which is a video.
    """
    Image.init()
    common = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO"]
    left_out = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FPX", "MIC", "IPTC", "PCD"}
    rest = [name for name in Image.ID if name not in common and name not in left_out]
    return (*(name for name in common if name in Image.OPEN), *rest)


def is_hidden(path: Path) -> bool:
    """Whether a file is no part of a folder's content: hidden, macOS's ._name, or Windows' own."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")
