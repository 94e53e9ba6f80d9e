"""Distances between two sets of images as distributions of features: FID and CMMD, for any extractor's features."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_BLOCK = 2048  # rows of a kernel matrix at a time


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"]) -> float:
    """The Frechet distance of two normal distributions with the features' means and covariances (Heusel et al., 2017).

    It is FID if features are Inception's pool3. With fewer rows than dimensions the covariances are singular; the
    distance is defined, but biased upward.

    Args:
      a, b: features of the two sets, at least two rows each.

    Raises:
      ValueError: fewer rows, different widths, or numbers that are not finite.
    """
    check(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"a covariance requires at least two rows; there are {len(a)} and {len(b)}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    return frechet_distance_of(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_distance_of(
    mean_a: Float[np.ndarray, " d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    covariance_b: Float[np.ndarray, "d d"],
) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), float64.

    The trace of the root of A B is that of the root of A^(1/2) B A^(1/2), which is symmetric: no complex numbers, and
    nothing to add to the diagonal where A or B is singular.
    """
    root_a = _root(covariance_a)
    mixed = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    trace = np.sqrt(np.clip(mixed, 0, None)).sum()
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace
    return float(np.sum((mean_a - mean_b) ** 2) + spread)


def cmmd(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
) -> float:
    """1000 times the squared maximum mean discrepancy of a Gaussian kernel (Jayasumana et al., "Rethinking FID", 2024).

    The minimum-variance estimate, as published: pairs of a row with itself count. CMMD's features are CLIP's image
    embeddings of length 1; they must be normalised before.

    Args:
      a, b: features of the two sets.
      sigma: of the kernel exp(-|x - y|^2 / (2 sigma^2)).
      scale: factor of the result.

    Raises:
      ValueError: no rows, different widths, or numbers that are not finite.
    """
    check(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    similar = [_mean_kernel(x, y, sigma) for x, y in ((a, a), (b, b), (a, b))]
    return float(scale * (similar[0] + similar[1] - 2 * similar[2]))


def check(a: np.ndarray, b: np.ndarray) -> None:
    """Raises ValueError unless both are features [rows, width] of one width, finite, with rows."""
    for name, x in (("the first", a), ("the second", b)):
        if x.ndim != 2 or not len(x):
            raise ValueError(
                f"{name} features have shape {list(x.shape)}; it must be [rows, width]"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name} features have numbers that are not finite")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features are {a.shape[1]} and {b.shape[1]} wide; they must come from the same extractor"
        )


def _covariance(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    return np.atleast_2d(np.cov(x, rowvar=False))


def _root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _mean_kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], sigma: float) -> float:
    total = 0.0
    for start in range(0, len(a), _BLOCK):
        part = a[start : start + _BLOCK]
        distance = (part**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * part @ b.T
        total += np.exp(-np.clip(distance, 0, None) / (2 * sigma**2)).sum()
    return total / (len(a) * len(b))
