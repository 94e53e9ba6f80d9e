"""PSNR and SSIM of images, from scikit-image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from skimage import metrics

_RANGE = 255
_WINDOW = 11  # pixels; a Gaussian window of standard deviation 1.5, as in Wang et al. (2004)
_CAP_DB = 114.0


def psnr(
    images: UInt8[np.ndarray, "n *extent 3"], references: UInt8[np.ndarray, "n *extent 3"]
) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each image or video in dB, float64; infinite where the two are equal."""
    return np.array([_psnr(a, b) for a, b in zip(images, references, strict=True)])


def capped_psnr(a: UInt8[np.ndarray, "*shape"], b: UInt8[np.ndarray, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of two arrays, at most 114 dB, which equal arrays get."""
    return min(_psnr(a, b), _CAP_DB)


def ssim(
    images: UInt8[np.ndarray, "n height width 3"], references: UInt8[np.ndarray, "n height width 3"]
) -> Float[np.ndarray, " n"]:
    """Structural similarity of each image, float64 (Wang et al., "Image quality assessment", 2004).

    The mean over all windows of 11x11 pixels (Gaussian, standard deviation 1.5) that lie within the image, and over
    colour channels.

    Raises:
      ValueError: a side is shorter than 11 pixels.
    """
    if min(images.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"SSIM requires images of at least {_WINDOW}x{_WINDOW} pixels, not {images.shape[1:3]}"
        )
    return np.array([_ssim(a, b) for a, b in zip(images, references, strict=True)])


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(metrics.peak_signal_noise_ratio(b, a, data_range=_RANGE))


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    score = metrics.structural_similarity(
        a,
        b,
        data_range=_RANGE,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(score)  # pyright: ignore[reportArgumentType]
