"""Released checkpoints that lack layers, and layers that look untrained (model.md section 13).

The authors announce files in which some layers of the language transformer and of the flow head are removed, or are
initialised again at random. A removed layer can be filled with one that changes nothing until it is trained: its output
projections (and the flow head's modulation) are zero.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.readers import Entry, StateDict
from tuna_jax.conversion.weight_rows import Row
from tuna_jax.models import tuna
from tuna_jax.utils import seeds
from tuna_jax.utils.param_tree import flatten

MODES = ("refuse", "initialise")

# Part -> prefix of a layer's keys in the released layout.
_PREFIXES = {"language": "tuna.model.layers.{}.", "flow_head": "diffusion_head_a.{}."}
# What ends a residual branch: zero, so that a filled layer is the identity, in spans and outside.
_ENDS = (".out.kernel", ".mlp.down.kernel")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of the released layout.

    Attributes:
      part: 'language' or 'flow_head'.
      index: its number.
    """

    part: str
    index: int

    @property
    def prefix(self) -> str:
        """Prefix of its keys."""
        return _PREFIXES[self.part].format(self.index)

    @property
    def trained(self) -> str:
        """What `optimizer.trained` calls it."""
        return f"{self.part}.layers[{self.index}]"


def layers(config: TunaConfig) -> list[Layer]:
    """All layers of the language transformer and of the flow head."""
    counts = {"language": config.language.layers, "flow_head": config.flow_head.layers}
    return [Layer(part, index) for part, count in counts.items() for index in range(count)]


def missing(config: TunaConfig, keys: Iterable[str]) -> list[Layer]:
    """The layers of which a state dict in the released layout has no tensor."""
    present = set(keys)
    return [
        layer
        for layer in layers(config)
        if not any(key.startswith(layer.prefix) for key in present)
    ]


def describe(some: Iterable[Layer]) -> str:
    """'language: 3, 4; flow_head: 7'."""
    by_part: dict[str, list[str]] = {}
    for layer in some:
        by_part.setdefault(layer.part, []).append(str(layer.index))
    return "; ".join(f"{part}: {', '.join(numbers)}" for part, numbers in by_part.items())


def check(config: TunaConfig, state: StateDict, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConversionError if whole layers are missing and all else fits: they are listed, with what to do.

    Args:
      config: the model.
      state: in the released layout.
      expected: keys and shapes of the model. If other tensors do not fit either, it is probably another model, and
        `weight_map.compare` lists the differences.
    """
    absent = missing(config, state.entries)
    gone = tuple(layer.prefix for layer in absent)
    optional = {*weight_map.aliases(config), *(key for key in expected if key.startswith(gone))}
    fits = set(expected) - optional <= set(state.entries) and all(
        expected.get(key) == tuple(entry.shape) for key, entry in state.entries.items()
    )
    if absent and fits:
        names = ",".join(f"'{layer.trained}'" for layer in absent) + "," * (len(absent) == 1)
        raise weight_map.ConversionError(
            f"{len(absent)} whole layers are missing ({describe(absent)}), as in the foundation checkpoints of the "
            f"authors. --missing_layers=initialise fills them with layers that change nothing until they are trained "
            f"(config.optimizer.trained=({names})); otherwise take the complete weights, or a config with fewer layers"
        )


def filled(config: TunaConfig, state: StateDict, *, seed: int = 0) -> tuple[StateDict, list[Layer]]:
    """The state dict with every missing layer, and those layers.

    Args:
      config: the model.
      state: in the released layout.
      seed: of the new weights; each layer has its own key.

    A filled layer is the identity: fresh weights (as `tuna.init`), norms of one, biases of zero, and zeros where a
    residual branch ends. Its tensors have the dtypes of the first present layer of its part, else float32.
    """
    absent = missing(config, state.entries)
    if not absent:
        return state, absent
    rows = {
        part: [row for row in weight_map.rows(config) if row.path.startswith(f"{part}.layers.")]
        for part in _PREFIXES
    }
    entries: dict[str, Entry] = dict(state.entries)
    origin: dict[str, tuple[Layer, Row]] = {}
    for layer in absent:
        for row in rows[layer.part]:
            key = row.torch.format(layer.index)
            like = next((state.entries[k] for k in row.names() if k in state.entries), None)
            dtype = np.dtype(np.float32) if like is None else like.dtype
            shape = row.transform.torch_shape(_one_layer(config)[row.path].shape)
            entries[key] = Entry(shape, dtype, "initialised")
            origin[key] = layer, row

    def read(key: str, index: int | None) -> np.ndarray:
        if key not in origin:
            return state.reader(key, index)
        layer, row = origin[key]
        tensor = row.transform.to_torch(_fresh(config, seed, layer, row.path))
        tensor = tensor.astype(entries[key].dtype)
        return tensor if index is None else tensor[index]

    return StateDict(entries, read, state.metadata), absent


def _single_layer(config: TunaConfig) -> TunaConfig:
    """The model with a single layer in each stack, so that one layer is made and not all."""
    return dataclasses.replace(
        config,
        language=dataclasses.replace(config.language, layers=1),
        flow_head=dataclasses.replace(config.flow_head, layers=1),
    )


def _one_layer(config: TunaConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters of one layer, without the axis of layers, by path."""
    shapes = flatten(tuna.shapes(_single_layer(config)))
    return {
        path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        for path, leaf in shapes.items()
        if ".layers." in path
    }


def _fresh(config: TunaConfig, seed: int, layer: Layer, path: str) -> np.ndarray:
    """A parameter of a filled layer, float32."""
    if path.endswith(_ENDS):
        return np.zeros(_one_layer(config)[path].shape, np.float32)
    key = jax.random.fold_in(seeds.key(seed), layers(config).index(layer))
    # XLA removes everything else from the program.
    return np.asarray(_maker(_single_layer(config), path)(key))[0]


@functools.lru_cache(maxsize=64)
def _maker(config: TunaConfig, path: str) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda key: flatten(tuna.init(config, key))[path])


# ---- layers that look untrained ------------------------------------------------------------------


def untrained(config: TunaConfig, state: StateDict) -> dict[str, list[str]]:
    """Layers of a state dict, in the released layout or in ours, that look untrained: `optimizer.trained`'s name ->
    signs.

    A layer is named if all of its norms are exactly one. Further signs: biases or modulation that are exactly zero,
    output projections that are, and a standard deviation of the query's weights as in a fresh layer.
    """
    rows = weight_map.rows(config)
    suspects: dict[str, list[str]] = {}
    for layer in layers(config):
        own: dict[str, Callable[[], np.ndarray]] = {}
        for row in rows:
            if not row.path.startswith(f"{layer.part}.layers."):
                continue
            if (key := row.torch.format(layer.index)) in state.entries:
                own[row.path] = functools.partial(state.read, key)
            elif row.path in state.entries:  # Ours: all layers in one array.
                own[row.path] = functools.partial(state.read, row.path, layer.index)
        norms = [read for path, read in own.items() if path.endswith(".scale")]
        if not norms or not all(_is(read(), 1.0) for read in norms):
            continue
        suspects[layer.trained] = ["norms are one", *_further_signs(own)]
    return suspects


def _further_signs(own: Mapping[str, Callable[[], np.ndarray]]) -> list[str]:
    signs = []
    for what, ending in (
        ("biases of the query are zero", ".query.bias"),
        ("modulation is zero", ".modulation.linear.kernel"),
        ("output projections are zero", _ENDS[0]),
    ):
        found = [read for path, read in own.items() if path.endswith(ending)]
        if found and all(_is(read(), 0.0) for read in found):
            signs.append(what)
    for path, read in own.items():
        if path.endswith(".query.kernel"):
            weights = np.asarray(read(), np.float32)
            # The width of the input is the second axis in the released layout, the first in ours.
            fresh = {
                "0.02": (0.02,),
                "fan-in": tuple(width**-0.5 for width in weights.shape),
                "Xavier": ((2 / sum(weights.shape)) ** 0.5,),
            }
            std = float(weights.std())
            like = [
                name
                for name, values in fresh.items()
                if any(abs(std / value - 1) < 0.02 for value in values)
            ]
            if like:
                names = ", ".join(like)
                signs.append(f"the query's standard deviation is that of a fresh layer ({names})")
    return signs


def _is(tensor: Any, value: float) -> bool:
    return bool((np.asarray(tensor, np.float32) == value).all())
