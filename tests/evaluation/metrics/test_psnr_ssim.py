"""PSNR against its definition, SSIM against scikit-image."""

import numpy as np
import pytest

from tuna_jax.evaluation.metrics.psnr_ssim import psnr, ssim


def _pairs():
    random = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 40)[None, :, None] * np.ones((24, 1, 3))
    one = np.stack([random.integers(0, 256, (24, 40, 3)), smooth]).astype(np.uint8)
    other = np.clip(one + random.normal(0, 12, one.shape), 0, 255).astype(np.uint8)
    return one, other


def test_psnr_is_its_definition():
    one = np.zeros((2, 4, 4, 3), np.uint8)
    other = one.copy()
    other[0] = 16
    other[1, 0, 0, 0] = 48  # a 48th of the numbers: a mean square of 48
    np.testing.assert_allclose(psnr(one, other), 10 * np.log10(255**2 / np.array([256.0, 48.0])))
    assert psnr(one, one).tolist() == [np.inf] * 2


def test_psnr_of_clips_counts_all_frames():
    one, other = _pairs()
    clips = psnr(one[None], other[None])
    error = np.mean((one.astype(float) - other) ** 2)
    np.testing.assert_allclose(clips, [10 * np.log10(255**2 / error)])


def test_ssim_is_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    one, other = _pairs()
    wanted = [
        metrics.structural_similarity(
            a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(ssim(one, other), wanted, rtol=1e-7)
    np.testing.assert_allclose(ssim(one, one), [1, 1])


def test_ssim_wants_a_window():
    small = np.zeros((1, 10, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="11x11 pixels or more"):
        ssim(small, small)
