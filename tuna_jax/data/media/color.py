"""Colours of any source as 8-bit sRGB: ICC profiles, deep and float pictures, high dynamic range (PQ and HLG).

Numbers of primaries, transfer functions and matrices are those of ITU-T H.273 ("CICP"), which video streams, PNG's cICP
chunk and AVIF's colr box share.
"""

from __future__ import annotations

import functools
import hashlib
import io
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageCms

from tuna_jax.data.invalid_examples import Fault

Hdr = Literal["tone_map", "refuse"]
HDR_CHOICES: tuple[Hdr, ...] = ("tone_map", "refuse")

PQ, HLG, LINEAR = 16, 18, 8
SDR_WHITE = 203.0
"""Nits of diffuse white in PQ and HLG (ITU-R BT.2408); it becomes nearly white, and what is brighter is compressed."""
_PEAK = 1000.0  # Nits that become full white.
_KNEE = 0.75  # Linear light, of SDR white, up to which tone mapping changes nothing.

# Chromaticities (x, y) of red, green, blue and white, H.273 table 2. Others count as BT.709's.
_D65 = (0.3127, 0.3290)
_BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_PRIMARIES = {
    1: _BT709,
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
# Weights of red and blue in luma, H.273 table 4; swscale knows the same matrices.
MATRICES = (1, 4, 5, 6, 7, 9)


def check_hdr(hdr: str) -> None:
    """ValueError if `hdr` is not one of HDR_CHOICES."""
    if hdr not in HDR_CHOICES:
        raise ValueError(f"hdr is {hdr!r}; choose one of {', '.join(HDR_CHOICES)}")


def refuse_hdr(where: str, kind: str) -> Fault:
    """The fault of a file in high dynamic range where the setting refuses it."""
    return Fault(
        kind,
        f"{where} is in high dynamic range (PQ or HLG), which hdr='refuse' excludes; set hdr='tone_map', or convert it",
    )


@functools.lru_cache
def _to_bt709(primaries: int) -> Float32[np.ndarray, "3 3"]:
    """Linear RGB of these primaries to linear RGB of BT.709's, which are sRGB's."""

    def to_xyz(points: Any) -> np.ndarray:
        xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
        return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])

    source = _PRIMARIES.get(primaries, _BT709)
    return (np.linalg.inv(to_xyz(_BT709)) @ to_xyz(source)).astype(np.float32)


@functools.lru_cache
def _linear(transfer: int) -> Float32[np.ndarray, " 65536"]:
    """16-bit code values as linear light: in units of SDR white for PQ, of the peak for HLG (before its gamma)."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:  # SMPTE ST 2084.
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10000 / SDR_WHITE
    elif transfer == HLG:  # ARIB STD-B67, ITU-R BT.2100.
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    elif transfer == LINEAR:
        light = code
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@functools.lru_cache
def _srgb_codes() -> UInt8[np.ndarray, " 65536"]:
    """Linear light, in 65,535ths, as 8-bit sRGB."""
    light = np.linspace(0, 1, 65536)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(code * 255).astype(np.uint8)


def _compressed(light: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Tone mapping: unchanged up to the knee, then an extended Reinhard curve of the largest channel up to the peak.

    The three channels of a pixel are scaled by one factor, which keeps its hue.
    """
    largest = light.max(-1, keepdims=True)
    room = 1 - _KNEE
    over, top = (largest - _KNEE) / room, (_PEAK / SDR_WHITE - _KNEE) / room
    rolled = _KNEE + room * over * (1 + over / top**2) / (1 + over)
    factor = np.where(largest > _KNEE, np.minimum(rolled, 1) / np.maximum(largest, 1e-6), 1)
    return light * factor.astype(np.float32)


def to_srgb(
    pixels: UInt16[np.ndarray, "h w 3"], primaries: int, transfer: int
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of other primaries and another transfer function as sRGB; PQ and HLG are tone-mapped.

    Args:
        pixels: full-range 16-bit RGB.
        primaries, transfer: H.273.
    """
    table, matrix, out = _linear(transfer), _to_bt709(primaries), np.empty(pixels.shape, np.uint8)
    for start in range(
        0, len(pixels), 64
    ):  # Rows at a time: float32 of a large frame takes 100 MB.
        light = table[pixels[start : start + 64]]
        if transfer == HLG:  # The display's gamma of 1.2, of the luminance.
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light *= (np.maximum(luminance, 1e-6) ** 0.2)[..., None] * (_PEAK / SDR_WHITE)
        light = np.maximum(light @ matrix.T, 0)
        if transfer in (PQ, HLG):
            light = _compressed(light)
        out[start : start + 64] = _srgb_codes()[
            np.round(np.minimum(light, 1) * 65535).astype(np.uint16)
        ]
    return out


def is_hdr(transfer: int) -> bool:
    """Whether a transfer function is PQ or HLG."""
    return transfer in (PQ, HLG)


# ICC profiles.


@functools.lru_cache(maxsize=32)
def _srgb_profile() -> Any:
    return ImageCms.createProfile("sRGB")


class _Profile:
    """An embedded profile, hashable by its content, so that transforms are built once for thousands of files."""

    def __init__(self, content: bytes):
        self.content, self.digest = content, hashlib.sha256(content).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Profile) and self.digest == other.digest


_TARGETS = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "L": "RGB", "LAB": "RGB"}


@functools.lru_cache(maxsize=64)
def _transform(profile: _Profile, mode: str) -> Any:
    """The transform from a profile to sRGB; None if it changes nothing, or if viewers would ignore the profile."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile.content))
        transform = ImageCms.buildTransform(
            source, _srgb_profile(), mode, _TARGETS[mode], ImageCms.Intent.PERCEPTUAL
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        # A damaged profile, or one of another kind of colours (CMYK's in an RGB file).
        return None
    if mode in ("RGB", "RGBA"):
        # Most profiles are sRGB's own, under many names; applying it would cost time and rounding.
        steps = np.linspace(0, 255, 6).astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        probe = Image.fromarray(cube).convert(mode)
        changed = np.asarray(ImageCms.applyTransform(probe, transform))[..., :3]  # pyright: ignore[reportArgumentType]
        if np.abs(changed.astype(int) - cube).max() <= 2:
            return None
    return transform


def apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image (RGB, RGBA, L, LA, P, PA, CMYK or LAB) in sRGB by its embedded ICC profile; alpha is kept.

    An image without a profile, and one whose profile cannot be read or is of another kind of colours, is returned
    unchanged, as viewers show it.
    """
    if not profile:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if _has_alpha(image) else "RGB")
    if image.mode == "LA":
        grey, alpha = image.split()
        return _with_alpha(apply_profile(grey, profile), alpha)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in _TARGETS:
        return image
    if image.mode == "RGB" and "transparency" in image.info:
        image = image.convert("RGBA")  # The transparent colour is named in the profile's numbers.
    transform = _transform(_Profile(profile), image.mode)
    if transform is None:
        return image
    changed = ImageCms.applyTransform(image, transform)
    assert changed is not None
    return changed


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode == "PA"


def _with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.putalpha(alpha)
    return image


# Transparency and depth.


def on_white(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as RGB, with its transparent parts on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "L" and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def eight_bits(image: Image.Image, where: str) -> Image.Image:
    """A picture of integers or floats (modes I, I;16 and F) as 8-bit grey with alpha, scaled by its type's range.

    Pillow's own conversion clips: 16-bit grey becomes white, and floats in 0..1 become black. 16 bits keep the high
    byte, as Pillow does for 16-bit RGB. Floats must lie in 0..1. 32-bit integers have no range that a picture uses.

    Raises:
        Fault: corrupt_image, where the range is not known.
    """
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise Fault("corrupt_image", f"{where} holds floats that are not finite")
        if values.min() < 0 or values.max() > 1:
            raise Fault(
                "corrupt_image",
                f"{where} holds floats from {values.min():.4g} to {values.max():.4g}, and only 0 to 1 has a meaning as "
                "brightness; save it with 8 or 16 bits",
            )
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    # PNG and PNM have 16 bits at most, which Pillow may give as 32-bit integers.
    if not (image.mode.startswith("I;16") or image.format in ("PNG", "PPM")):
        raise Fault(
            "corrupt_image",
            f"{where} holds 32-bit integers (from {values.min()} to {values.max()}), whose brightness no file says; "
            "save it with 8 or 16 bits",
        )
    values = values.astype(np.int64)
    alpha = np.full(values.shape, 255, np.uint8)
    if isinstance(image.info.get("transparency"), int):
        alpha[values == image.info["transparency"]] = 0
    luminance = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(luminance), Image.fromarray(alpha)])


# Colours that a picture's header names by numbers.


def coding_of(opened: Any) -> tuple[int, int] | None:
    """(primaries, transfer) of H.273 of a picture that is not decoded yet, where they matter; else None.

    PNG names them in its chunk cICP, which takes precedence over an ICC profile, and AVIF in its box colr.
    """
    file = getattr(opened, "fp", None)
    if file is None or opened.format not in ("PNG", "AVIF") or not getattr(opened, "tile", None):
        return None
    if opened.format == "AVIF" and opened.info.get("icc_profile"):
        return None
    try:
        position = file.tell()
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(position)
    except (OSError, ValueError):
        return None
    if opened.format == "PNG":
        at = head[: head.find(b"IDAT")].find(b"\0\0\0\4cICP") + 8
        named = (head[at], head[at + 1]) if at > 7 else None
    else:
        at = head.find(b"colrnclx") + 8
        named = (head[at + 1], head[at + 3]) if 7 < at < len(head) - 4 else None
    if named is None or not (is_hdr(named[1]) or named[0] in (9, 12)):
        return None
    return named


def decode(
    image: Image.Image, primaries: int, transfer: int, *, hdr: Hdr = "tone_map"
) -> Image.Image:
    """An 8-bit picture of other primaries, or in PQ or HLG, as sRGB; alpha is kept.

    Raises:
        Fault: corrupt_image, if it is PQ or HLG and `hdr` is 'refuse'.
    """
    if is_hdr(transfer) and hdr == "refuse":
        raise refuse_hdr("the picture", "corrupt_image")
    layer = image.convert("RGBA")
    codes = np.asarray(layer.convert("RGB")).astype(np.uint16) * 257
    out = Image.fromarray(to_srgb(codes, primaries, transfer))
    out.putalpha(layer.getchannel("A"))
    return out


def apply_gamma(image: Image.Image, gamma: Any) -> Image.Image:
    """An image whose PNG header names another gamma than sRGB's 1/2.2, in sRGB; alpha is kept."""
    if not isinstance(gamma, float) or not 0.2 <= gamma <= 1.5 or abs(gamma * 2.2 - 1) < 0.06:
        return image
    table = [round(255 * (i / 255) ** (1 / (2.2 * gamma))) for i in range(256)]
    layer = image.convert("RGBA")
    red, green, blue, alpha = layer.split()
    channels = [channel.point(table) for channel in (red, green, blue)]
    return Image.merge("RGBA", [*channels, alpha])
