"""Rows of the weight map: a tensor family with its names and its change of layout."""

from __future__ import annotations

import dataclasses

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """An invertible change of layout: a permutation of axes, after adding or dropping unit axes.

    Attributes:
      axes: permutation that takes the PyTorch layout, without its dropped unit axes, to ours.
      units: number of trailing unit axes of the PyTorch tensor that ours does not have.
      leading: number of leading ones.
    """

    axes: tuple[int, ...]
    units: int = 0
    leading: int = 0

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """PyTorch layout -> ours."""
        shape = tensor.shape[self.leading : tensor.ndim - self.units]
        return tensor.reshape(shape).transpose(self.axes)

    def to_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch layout."""
        restored = tensor.transpose(tuple(int(i) for i in np.argsort(self.axes)))
        return restored.reshape((1,) * self.leading + restored.shape + (1,) * self.units)

    def torch_shape(self, ours: Shape) -> Shape:
        """The PyTorch shape of a tensor with this shape in our layout."""
        inner = tuple(ours[i] for i in np.argsort(self.axes))
        return (1,) * self.leading + inner + (1,) * self.units


@dataclasses.dataclass(frozen=True)
class PatchTransform(Transform):
    """A convolution whose stride is its kernel, `[out, colours, patch, patch]`, and a matrix `[patch^2 colours, out]`.

    The rows of the matrix are in the order of `models/pixels.patchify`: row, column, colour.
    """

    axes: tuple[int, ...] = (2, 3, 1, 0)
    patch: int = 16
    colours: int = 3

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """PyTorch layout -> ours."""
        return tensor.transpose(self.axes).reshape(-1, tensor.shape[0])

    def to_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch layout."""
        split = tensor.reshape(self.patch, self.patch, self.colours, tensor.shape[-1])
        return split.transpose(3, 2, 0, 1)

    def torch_shape(self, ours: Shape) -> Shape:
        """The PyTorch shape of a matrix with this shape."""
        return (ours[1], self.colours, self.patch, self.patch)


SAME1 = Transform((0,))
SAME2 = Transform((0, 1))
LINEAR = Transform((1, 0))  # [out, in] -> [in, out]
CONV1X1 = Transform((1, 0), units=2)  # [out, in, 1, 1] -> [in, out]
CONV2D = Transform((2, 3, 1, 0))  # [out, in, h, w] -> [h, w, in, out]
CONV3D = Transform((2, 3, 4, 1, 0))  # [out, in, t, h, w] -> [t, h, w, in, out]
GAMMA2D = Transform((0,), units=2)  # [c, 1, 1] -> [c]
GAMMA3D = Transform((0,), units=3)  # [c, 1, 1, 1] -> [c]
TOKEN = Transform((0,), leading=2)  # [1, 1, c] -> [c]
TOKENS = Transform((0, 1), leading=1)  # [1, n, c] -> [n, c]


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor family.

    Attributes:
      torch: PyTorch key; `{}` is replaced by the layer number.
      path: our dotted path.
      transform: from the PyTorch layout to ours, for one layer.
      layers: number of layers of the family; None for a single tensor.
    """

    torch: str
    path: str
    transform: Transform
    layers: int | None = None

    def names(self) -> list[str]:
        """The PyTorch keys of the family, in order."""
        if self.layers is None:
            return [self.torch]
        return [self.torch.format(i) for i in range(self.layers)]


def linear_rows(torch: str, path: str, layers: int | None = None, bias: bool = True) -> list[Row]:
    """The rows of a linear layer."""
    rows = [Row(f"{torch}.weight", f"{path}.kernel", LINEAR, layers)]
    return rows + [Row(f"{torch}.bias", f"{path}.bias", SAME1, layers)] if bias else rows


def norm_rows(torch: str, path: str, layers: int | None = None, bias: bool = False) -> list[Row]:
    """The rows of a norm."""
    rows = [Row(f"{torch}.weight", f"{path}.scale", SAME1, layers)]
    return rows + [Row(f"{torch}.bias", f"{path}.bias", SAME1, layers)] if bias else rows
