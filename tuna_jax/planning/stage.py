"""An experiment file as planning uses it: the shapes of its batches, without data, weights or devices."""

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
    """A stream's largest batch: the one with most tokens, and of those the one with most pixels.

    Attributes:
      name: of the stream.
      share: of all batches.
      shape: of the batch.
      heads: the rows that need each head.
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
        """Positions of the sequences of a batch, textual and visual."""
        return self.shape.rows * self.shape.length

    @property
    def pictures(self) -> int:
        """Images, or frames of clips, of a batch; 0 for text only."""
        used = self.shape.size.height > 32
        return self.shape.rows * self.shape.slots * self.shape.frames if used else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The checked settings of an experiment file.

    Attributes:
      name: of the file.
      settings: of the file.
      config: of its model.
    """

    name: str
    settings: MultitaskExperiment
    config: TunaConfig

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the streams, in order."""
        return tuple(self.settings.data.streams)

    def streams(self, rows: int | None = None) -> list[Stream]:
        """Every stream's largest batch.

        Args:
          rows: of every batch, over all devices; None: as each stream is configured.

        Raises:
          ValueError: a stream's settings are invalid.
        """
        by_name = stream_settings(self.settings.data)
        total = math.fsum(each.weight for each in by_name.values())
        streams = []
        for name, configured in by_name.items():
            sized = dataclasses.replace(configured, rows=rows or configured.rows)
            shape = max(possible_shapes(name, sized, self.config.space), key=_extent)
            streams.append(
                Stream(name=name, share=sized.weight / total, shape=shape, heads=sized.heads)
            )
        return streams

    def with_model(self, **changes: Any) -> Experiment:
        """The experiment with changes to the model's configuration."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def with_mesh(self, **changes: Any) -> Experiment:
        """The experiment with changes to the mesh; axes that are not named keep their size."""
        mesh = dataclasses.replace(self.settings.mesh, **changes)
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, mesh=mesh))


def read(name: str, values: Mapping[str, Any]) -> Experiment:
    """The experiment of a file's `get_config()`.

    Raises:
      ValueError: its kind cannot be planned, or a key or value is wrong.
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
