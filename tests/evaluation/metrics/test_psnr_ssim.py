"""PSNR and SSIM against their definitions."""

import numpy as np
import pytest

from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr, psnr, ssim


def _pairs():
    random = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 40)[None, :, None] * np.ones((24, 1, 3))
    images = np.stack([random.integers(0, 256, (24, 40, 3)), smooth]).astype(np.uint8)
    references = np.clip(images + random.normal(0, 12, images.shape), 0, 255).astype(np.uint8)
    return images, references


def test_psnr_is_its_definition():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    references = images.copy()
    references[0] = 16
    references[1, 0, 0, 0] = 48  # One of 48 values: a mean square of 48.
    expected = 10 * np.log10(255**2 / np.array([256.0, 48.0]))
    np.testing.assert_allclose(psnr(images, references), expected)
    assert psnr(images, images).tolist() == [np.inf] * 2


def test_psnr_of_a_video_counts_all_frames():
    images, references = _pairs()
    error = np.mean((images.astype(float) - references) ** 2)
    np.testing.assert_allclose(
        psnr(images[None], references[None]), [10 * np.log10(255**2 / error)]
    )


def test_capped_psnr_takes_any_shape_and_stays_finite():
    images, references = _pairs()
    assert capped_psnr(images[0], references[0]) == psnr(images, references)[0]
    assert capped_psnr(images[0], images[0]) == 114
    mask = np.zeros((24, 40), bool)
    mask[3:9] = True
    part = capped_psnr(images[0][mask], references[0][mask])
    error = np.mean((images[0, 3:9].astype(float) - references[0, 3:9]) ** 2)
    assert part == pytest.approx(10 * np.log10(255**2 / error))


def _definition(a, b):
    """Wang et al. (2004), equation 13, with sliding Gaussian windows."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def windowed(x):
        for axis in (0, 1):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis) @ weights
        return x

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = windowed(a), windowed(b)
    variances = windowed(a * a) - mean_a**2 + windowed(b * b) - mean_b**2
    covariance = windowed(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return np.mean(luminance * (2 * covariance + c2) / (variances + c2))


def test_ssim_is_its_definition():
    images, references = _pairs()
    expected = [_definition(a, b) for a, b in zip(images, references, strict=True)]
    np.testing.assert_allclose(ssim(images, references), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim(images, images), [1, 1])


def test_ssim_requires_a_window():
    small = np.zeros((1, 10, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="11x11"):
        ssim(small, small)
