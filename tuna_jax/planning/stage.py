"""An experiment file as planning sees it: what its batches look like, without data, weights or devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.data.mixture.stream import BatchShape
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.trainers.stream_config import abstract_batch, possible_shapes, stream_settings
from tuna_jax.training.step import Heads
from tuna_jax.utils.config_parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """A stream's largest batch: most tokens, and of those most pixels.

    Attributes:
      name: of the stream. share: of all batches that are this stream's.
      shape: of the batch. heads: that it needs.
    """

    name: str
    share: float
    shape: BatchShape
    heads: Heads

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch's arrays as shapes."""
        return abstract_batch(self.shape)

    @property
    def tokens(self) -> int:
        """Positions of the sequences of a batch, text and visual ones."""
        return self.shape.rows * self.shape.length

    @property
    def pictures(self) -> int:
        """Pictures, or clips' frames, of a batch; 0 of text alone."""
        used = self.shape.size.height > 32
        return self.shape.rows * self.shape.slots * self.shape.frames if used else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment file says, checked.

    Attributes:
      name: of the file. settings: the file's. config: its model.
    """

    name: str
    settings: MultitaskExperiment
    config: TunaConfig

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the streams in their order."""
        return tuple(self.settings.data.streams)

    def streams(self, rows: int | None = None) -> list[Stream]:
        """Every stream's largest batch; `rows`, over all devices, in place of each stream's own.

        Raises:
          ValueError: a stream's settings that cannot be.
        """
        found = stream_settings(self.settings.data)
        weights = math.fsum(one.weight for one in found.values())
        streams = []
        for name, one in found.items():
            one = dataclasses.replace(one, rows=rows or one.rows)
            shape = max(possible_shapes(name, one, self.config.vae), key=_extent)
            streams.append(
                Stream(name=name, share=one.weight / weights, shape=shape, heads=one.heads)
            )
        return streams

    def with_model(self, **changes: Any) -> Experiment:
        """The same with other fields of the model's configuration."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def with_mesh(self, **sizes: int) -> Experiment:
        """The same on another mesh; the axes that are not named keep their size."""
        mesh = dataclasses.replace(self.settings.mesh, **sizes)
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, mesh=mesh))


def read(name: str, values: Mapping[str, Any]) -> Experiment:
    """An experiment from what its file's `get_config()` gave.

    Raises:
      ValueError: it is of a kind that is not planned, or a key or value of it is wrong.
    """
    kind = values.get("kind")
    if kind != "multitask":
        raise ValueError(
            f"{name} has kind {kind!r}; plan knows experiments of kind 'multitask', which train on files, such as "
            "experiments/tuna/tuna_1p5b_stage1.py"
        )
    settings = parse(MultitaskExperiment, values)
    return Experiment(name=name, settings=settings, config=from_dict(settings.model))


def _extent(shape: BatchShape) -> tuple[int, int, int]:
    return shape.length, shape.slots, shape.size.height * shape.size.width
