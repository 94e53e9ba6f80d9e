"""How near two pictures are, pixel by pixel: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, UInt8

# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004: a Gaussian window of
# 11x11 pixels and standard deviation 1.5, and constants that keep quotients finite.
_SIGMA, _RADIUS, _K1, _K2, _RANGE = 1.5, 5, 0.01, 0.03, 255.0


def psnr(
    one: UInt8[np.ndarray, "n *extent 3"], other: UInt8[np.ndarray, "n *extent 3"]
) -> Float[np.ndarray, " n"]:
    """Peak signal to noise ratio of each picture or clip in dB, float64; infinite where they are equal."""
    difference = one.astype(np.float64) - other
    error = np.mean(difference**2, axis=tuple(range(1, one.ndim)))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_RANGE**2 / error)


def ssim(
    one: UInt8[np.ndarray, "n height width 3"], other: UInt8[np.ndarray, "n height width 3"]
) -> Float[np.ndarray, " n"]:
    """Structural similarity of each picture, float64: the mean over windows that lie in it whole, and over colours.

    As `skimage.metrics.structural_similarity` with `gaussian_weights`, `sigma=1.5` and `use_sample_covariance=False`.

    Raises:
      ValueError: a side under 11 pixels.
    """
    size = 2 * _RADIUS + 1
    if min(one.shape[1:3]) < size:
        raise ValueError(
            f"SSIM wants pictures of {size}x{size} pixels or more, not {one.shape[1:3]}"
        )
    scores = [
        _ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(one, other, strict=True)
    ]
    return np.array(scores)


def _ssim(a: Float[np.ndarray, "h w c"], b: Float[np.ndarray, "h w c"]) -> float:
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a**2
    variance_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(brightness * structure))


def _windowed(x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h2 w2 c"]:
    """Gaussian means around every pixel whose window lies in the picture."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(x, len(weights), axis=axis)
        x = windows @ weights
    return x


def capped_psnr(a: UInt8[np.ndarray, "*shape"], b: UInt8[np.ndarray, "*shape"]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB; 114 at most, for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * math.log10(255**2 / max(error, 255**2 / 10**11.4))
