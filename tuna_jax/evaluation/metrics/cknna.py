"""CKNNA, centred kernel nearest-neighbour alignment: how similar the neighbourhoods of two representations are.

Huh et al., "The Platonic Representation Hypothesis", 2024. The computation follows github.com/minyoungg/platonic-rep
at dcd76ba (metrics.py, unbiased; measure_alignment.py for how features are prepared).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def prepare(x: Float[np.ndarray, "n d"], clip: float | None = 0.95) -> Float[np.ndarray, "n d"]:
    """Features for the comparison, float64: outliers clipped, rows of length 1.

    Args:
      x: features.
      clip: magnitudes above this quantile are clipped to it (0.95 in the published code); None or 1 does not clip.

    Raises:
      ValueError: a quantile outside (0, 1], or numbers that are not finite.
    """
    if not np.isfinite(x).all():
        raise ValueError("features have numbers that are not finite")
    x = x.astype(np.float64)
    if clip is not None and clip != 1:
        if not 0 < clip < 1:
            raise ValueError(f"the quantile is {clip}; it must lie between 0 and 1")
        limit = np.sort(np.abs(x), axis=None)[int(clip * x.size)]
        x = np.clip(x, -limit, limit)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(length, 1e-12)


def cknna(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"], neighbours: int = 10) -> float:
    """CKNNA of two representations of the same inputs, row by row; 1 if equal, about 0 if unrelated.

    Kernels are inner products. A pair counts if the second is among the first's `neighbours` nearest in both
    representations; with n - 1 neighbours it is the unbiased CKA. As published it is not quite symmetric.

    Args:
      a, b: features, see `prepare`; widths may differ.
      neighbours: their number, from 2 to n - 1.

    Raises:
      ValueError: the numbers of rows differ or are below four, or `neighbours` is out of range.
    """
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} rows; both must have the same inputs in the same order"
        )
    if len(a) < 4 or not 2 <= neighbours < len(a):
        raise ValueError(
            f"{neighbours} neighbours of {len(a)} rows; at least 4 rows and 2 to rows - 1 neighbours are required"
        )
    kernel_a, kernel_b = a @ a.T, b @ b.T
    near_a, near_b = _nearest(kernel_a, neighbours), _nearest(kernel_b, neighbours)
    both = near_a & near_b
    shared = _hsic(kernel_a * both, kernel_b * both)
    own = _hsic(kernel_a * near_a, kernel_a * near_a) * _hsic(kernel_b * near_b, kernel_b * near_b)
    return float(shared / (np.sqrt(own) + 1e-6))


def _nearest(kernel: Float[np.ndarray, "n n"], neighbours: int) -> Bool[np.ndarray, "n n"]:
    """Which columns are among a row's nearest, excluding the row itself."""
    others = kernel.copy()
    np.fill_diagonal(others, -np.inf)
    nearest = np.argpartition(-others, neighbours - 1, axis=1)[:, :neighbours]
    mask = np.zeros(kernel.shape, bool)
    np.put_along_axis(mask, nearest, True, axis=1)
    return mask


def _hsic(k: Float[np.ndarray, "n n"], m: Float[np.ndarray, "n n"]) -> float:
    """The unbiased Hilbert-Schmidt independence criterion (Song et al., 2012, equation 5)."""
    n = len(k)
    k, m = (x * ~np.eye(n, dtype=bool) for x in (k, m))
    total = (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (total - 2 * (k.sum(0) @ m.sum(1)) / (n - 2)) / (n * (n - 3))
