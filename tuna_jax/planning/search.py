"""Searches for the batch, the mesh and the rematerialisation with the fastest step that fits.

Formulas order the candidates, and the compiler then runs on the best of them (`planner.run_search`). The formulas are
rough: they count only matrix products, weights gathered in bfloat16, and what a layer keeps by its widths. The reported
numbers are the compiler's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax

from tuna_jax.config import REMAT_POLICIES, TunaConfig
from tuna_jax.hardware.chips import Chip
from tuna_jax.models import tuna
from tuna_jax.planning.roofline import Work, bound
from tuna_jax.planning.stage import Experiment, Stream
from tuna_jax.training.optimizer import trainable

ROWS = (1, 2, 4, 8, 16, 32)
TENSOR = (1, 2, 4)
ROOM = 0.9  # A plan leaves a tenth of the memory free.
TILE = 16  # Rows of a bfloat16 tile; other numbers of rows are padded, and sent as if they were twice as large.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration to try.

    Attributes:
      rows: per device.
      data, fsdp, tensor: sizes of the mesh's axes.
      remat: one of `config.REMAT_POLICIES`.
    """

    rows: int
    data: int
    fsdp: int
    tensor: int
    remat: str

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment with the mesh and remat of this candidate."""
        sizes = {"data": self.data, "fsdp": self.fsdp, "context": 1, "tensor": self.tensor}
        return experiment.with_mesh(**sizes).with_model(remat=self.remat)

    def __str__(self) -> str:
        return (
            f"{self.rows} rows per device, data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}, "
            f"remat {self.remat}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimates of the formulas for a candidate.

    Attributes:
      candidate: the configuration.
      memory: bytes on a device.
      seconds: bound on the time per row of a device.
      unhidden: the time per row if nothing overlaps.
      binds: the resource that binds.
      padded: parts of the model whose weights are sent as if they were twice as large.
    """

    candidate: Candidate
    memory: float
    seconds: float
    unhidden: float
    binds: str
    padded: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Numbers of parameters of the model by part: all, and trained."""

    parts: dict[str, int]
    trained: dict[str, int]


def estimates(experiment: Experiment, stream: Stream, chip: Chip, devices: int) -> list[Estimate]:
    """Every candidate that fits by the formulas, the fastest first; ties are broken by the time without overlap."""
    all_estimates = [
        estimate(experiment, stream, chip, candidate)
        for candidate in candidates(experiment, devices)
    ]
    usable = ROOM * chip.usable / chip.devices
    fitting = [each for each in all_estimates if each.memory <= usable]
    return sorted(fitting, key=lambda each: (float(f"{each.seconds:.2g}"), each.unhidden))


def candidates(experiment: Experiment, devices: int) -> Iterator[Candidate]:
    """All candidates for this number of devices: every split axis of a parameter must divide."""
    config = experiment.config
    widths = (config.representation.width, config.language.width)
    features = [config.representation.width, config.representation.mlp]
    for part in (config.language, config.flow_head):
        features += [part.heads * part.head_dim, part.kv_heads * part.head_dim, part.mlp]
    splits = [
        (fsdp, tensor)
        for fsdp, tensor in itertools.product(_divisors(devices), TENSOR)
        if devices % (fsdp * tensor) == 0
        and all(width % fsdp == 0 for width in widths)
        and all(size % tensor == 0 for size in features)
    ]
    for (fsdp, tensor), rows, remat in itertools.product(splits, ROWS, REMAT_POLICIES):
        data = devices // (fsdp * tensor)
        yield Candidate(rows=rows, data=data, fsdp=fsdp, tensor=tensor, remat=remat)


def estimate(experiment: Experiment, stream: Stream, chip: Chip, candidate: Candidate) -> Estimate:
    """The estimates of the formulas for one candidate."""
    if experiment.settings.lora.targets:
        raise ValueError(
            "config.lora: the search's formulas know no adapters; leave out --search, or config.lora.targets"
        )
    chosen = experiment.settings.optimizer
    sizes = _sizes(experiment.config, chosen.frozen, chosen.trained)
    limits = bound(_work(experiment, stream, candidate, sizes), chip)
    return Estimate(
        candidate=candidate,
        memory=_memory(experiment, stream, candidate, sizes),
        seconds=limits.step / candidate.rows,
        unhidden=limits.unhidden / candidate.rows,
        binds=limits.binds,
        padded=tuple(part for part in sizes.parts if _padded(experiment, part, candidate)),
    )


@functools.cache
def _sizes(config: TunaConfig, frozen: tuple[str, ...], trained_only: tuple[str, ...]) -> _Sizes:
    shapes = tuna.shapes(config)
    chosen = trainable(shapes, frozen, trained_only)

    def count(tree: Any) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    trained = jax.tree.map(lambda leaf, is_trained: leaf if is_trained else None, shapes, chosen)
    return _Sizes(
        parts={name: count(part) for name, part in shapes.items()},
        trained={name: count(part) for name, part in trained.items()},
    )


def _padded(experiment: Experiment, part: str, candidate: Candidate) -> bool:
    """Whether the shards of this part's weights do not fill whole tiles."""
    sizes = experiment.config.representation if part == "representation" else experiment.config.language  # fmt: skip
    return candidate.fsdp > 1 and sizes.width // candidate.fsdp % TILE > 0


def _layers(experiment: Experiment, stream: Stream) -> list[tuple[int, int, int, int, int]]:
    """(layers, tokens per row, width, hidden width, heads) of the stacks that a batch of the stream runs."""
    config, length = experiment.config, stream.shape.length
    shape = stream.shape
    frames = 1 + (shape.frames - 1) // config.space.temporal_factor
    pixels = shape.size.height * shape.size.width
    visual = shape.slots * frames * pixels // config.space.spatial_factor**2
    stacks: list[tuple[Any, int, int]] = [(config.language, length, config.language.width)]
    if config.has_encoder:
        stacks.insert(0, (config.representation, visual, config.representation.width))
    if stream.heads.flow_rows != 0:
        stacks.append((config.flow_head, length, config.language.width))
    return [(part.layers, tokens, width, part.mlp, part.heads) for part, tokens, width in stacks]


def _work(experiment: Experiment, stream: Stream, candidate: Candidate, sizes: _Sizes) -> Work:
    tensor, rows = (
        candidate.tensor,
        candidate.rows * candidate.tensor,
    )  # rows of a tensor-parallel group
    vocabulary, width = experiment.config.language.vocabulary, experiment.config.language.width
    forward = head = shared = 0.0
    for layers, tokens, size, hidden, _ in _layers(experiment, stream):
        # Products of attention and of the MLP; scores and values of attention.
        weights = 4 * size * size + 3 * size * hidden
        forward += rows * layers * tokens * (2 * weights + 4 * tokens * size)
        # Two sums over the group in the forward pass and two in the backward pass, in bfloat16.
        shared += 4 * rows * layers * tokens * size * 2 * 2 * (tensor - 1) / tensor
    if stream.heads.text_rows != 0:
        head = 2.0 * rows * stream.shape.length * vocabulary * width
    useful = 3 * (forward + head)
    # `dots` does not recompute products, but recomputes attention.
    again = {"none": 0.0, "dots": 0.1}.get(candidate.remat, 1.0) * forward
    total, trained = sum(sizes.parts.values()), sum(sizes.trained.values())
    split = (candidate.fsdp - 1) / candidate.fsdp / tensor
    gathered = scattered = 0.0
    for part in sizes.parts:
        twice = 2 if _padded(experiment, part, candidate) else 1
        # In bfloat16: weights in the forward and the backward pass, and gradients once.
        gathered += 2 * 2 * sizes.parts[part] * split * twice
        scattered += 2 * sizes.trained[part] * split * twice
    copies = 2 * 4 * trained / (candidate.fsdp * tensor)
    copies *= (candidate.data - 1) / candidate.data
    state = 4 * (2 * total + 2 * trained) / (candidate.fsdp * tensor)
    return Work(
        flops=(useful + again) / tensor,
        model_flops=useful / tensor,
        memory=2 * state + 2 * (gathered + scattered),
        network=gathered + scattered + copies + shared,
    )


def _memory(experiment: Experiment, stream: Stream, candidate: Candidate, sizes: _Sizes) -> float:
    """Bytes on a device: parameters, their average, Adam's two moments and the gradients, all float32; what layers
    keep for the backward pass; the working memory of one layer; the text head's scores."""
    parts = candidate.fsdp * candidate.tensor
    state = 4.0 * (2 * sum(sizes.parts.values()) + 3 * sum(sizes.trained.values())) / parts
    kept = working = 0.0
    rows = candidate.rows * candidate.tensor
    for layers, tokens, size, hidden, heads in _layers(experiment, stream):
        inside = rows * tokens * (2 * size * 8 + 2 * hidden * 3) / candidate.tensor
        if experiment.config.attention_backend == "xla":
            inside += rows * heads * tokens * tokens * (4 + 2) / candidate.tensor
        dots = rows * tokens * (2 * size * 4 + 2 * hidden * 2) / candidate.tensor
        each = {"none": inside, "dots": dots}.get(candidate.remat, 0.0) + rows * tokens * size * 2
        kept += layers * each
        working = max(working, 2 * inside)
    scores = 0.0
    if stream.heads.text_rows != 0:
        scores = 2 * 4.0 * rows * stream.shape.length * experiment.config.language.vocabulary
    gathered = 2 * 2 * max(size for size in sizes.parts.values()) / 20
    return state + kept + max(working, scores) + gathered


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
