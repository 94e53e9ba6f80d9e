"""Streams of manifests with weights, as endless batches of which each has one shape.

    manifest --survey--> facts --assign--> buckets --schedule--> batch n is of a cell (stream, bucket)
                                                       its rows --tokenize_example, decode--> Batch

Batch n depends on (seed, n) and the history of weights alone: not on threads, hosts or restarts. It holds rows k*B to
k*B + B - 1 of its cell, k the batches of that cell before it; a cell's rows come in a new order every epoch. Each
host has a block of its rows, one after another. A bad row is replaced by the next good one of its cell, in the
manifest's order. A Batch is a dict of NumPy arrays (B rows, S tokens, N slots, clips of F x H x W pixels):

    tokens     int32 [B, S]             padded with the pad token
    labels     int32 [B, S]             -100 where there is no text loss
    spans      int32 [B, N, 2]          (offset of the time token, 1 + T*h*w); unused (-1, -1)
    is_target  bool  [B, N]             True: noised, flow loss; False: clean
    pixels     uint8 [B, N, F, H, W, 3] what fills each slot; zeros where it is unused
    task       int32 [B]                index into the mixture's streams

A stream of latents that were computed in advance (`LatentExamples`) has, instead of pixels,

    moments    bfloat16 [B, N, 2, T, h, w, C]  the posterior's mean and standard deviation; zeros where a slot is unused
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Shaped

from tuna_jax.data import shared_memory
from tuna_jax.data.invalid_examples import InvalidExample, InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.loader import Batch, Batches
from tuna_jax.data.mixture.bucket_sampler import BucketSampler, words
from tuna_jax.data.mixture.bucketing import assign, scan
from tuna_jax.data.mixture.load_example import load_example
from tuna_jax.data.mixture.schedule import Schedule
from tuna_jax.data.mixture.stream import BatchShape, ExampleStream, check_latents, stream_grids
from tuna_jax.data.sources.precomputed_latents import LatentExamples
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid, TokenSequence, stack

ENDLESS = 10**12


class Prepared(NamedTuple):
    """A batch on its way to the main process, which keeps the list of bad rows.

    A tuple, for Grain looks into tuples and hands their arrays over in shared memory; anything else it pickles whole.

    Attributes:
        batch: the batch; empty after a failure.
        good: its rows.
        passed_over: the bad rows that came up for it.
        failure: why there is no batch, if there is none.
    """

    batch: Batch
    good: int
    passed_over: tuple[InvalidExample, ...] = ()
    failure: str | None = None


class Mixture:
    """Batches by number; `batches` makes a Grain data set of it.

    Args:
        streams: their order gives `task`; names are distinct.
        tokenizer: makes the ids.
        seed: another seed, other batches.
        invalid_examples: the list of bad rows; what a stream's survey finds is put on it at once.
        history: (batch from which they hold, weights by stream name), the first at 0; None takes the streams' own
            weights throughout. To change weights at a resume from batch n, append (n, new weights): each stream goes on
            in its data where it was.
        spatial_factor, temporal_factor: pixels and frames a latent position covers (`config.VAE` has them).
        process_index, process_count: this host, and how many; they must divide every stream's rows.
        vae_fingerprint: of the model's VAE (`latent_records.vae_fingerprint`): latents in advance must be of it.
            None takes them as they are.
        directory: for prepared facts, see `cache_directory`.
        threads: files that a survey looks at at once.

    Raises:
        ValueError: a setting that cannot be; it names the stream and what would do.
        TooManyInvalidExamples: a stream's survey found more than the list's limit.
    """

    def __init__(
        self,
        streams: Sequence[ExampleStream],
        tokenizer: Tokenizer,
        *,
        seed: int = 0,
        invalid_examples: InvalidExamples | None = None,
        history: Sequence[tuple[int, Mapping[str, float]]] | None = None,
        spatial_factor: int = 16,
        temporal_factor: int = 4,
        process_index: int = 0,
        process_count: int = 1,
        vae_fingerprint: str | None = None,
        directory: Path | None = None,
        threads: int = 8,
    ):
        self.streams = tuple(streams)
        self.invalid_examples = invalid_examples or InvalidExamples()
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"the streams are named {names}; give each a name of its own")
        self._tokenizer, self._seed = tokenizer, seed
        self._process, self._processes = process_index, process_count
        self._encode = functools.lru_cache(maxsize=1 << 14)(tokenizer.encode)
        self._cells: list[BucketSampler] = []
        for number, stream in enumerate(self.streams):
            if stream.rows <= 0 or stream.rows % process_count:
                raise ValueError(
                    f"stream {stream.name!r} has {stream.rows} rows a batch, which {process_count} hosts "
                    f"cannot share evenly; give a positive multiple of {process_count}"
                )
            grids = stream_grids(stream, spatial_factor, temporal_factor)
            check_latents(stream, grids, vae_fingerprint)
            self._add_cells(number, stream, grids, directory, threads)
        own = {stream.name: stream.weight for stream in self.streams}
        self._schedule = Schedule(
            [(begin, self._weights(weights)) for begin, weights in history or [(0, own)]], seed
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encode = functools.lru_cache(maxsize=1 << 14)(self._tokenizer.encode)

    def _add_cells(
        self,
        number: int,
        stream: ExampleStream,
        grids: list[Grid],
        directory: Path | None,
        threads: int,
    ) -> None:
        """Surveys a stream and sorts its rows."""
        facts = scan(
            stream.source,
            stream.task,
            self._tokenizer,
            smallest=stream.smallest,
            directory=directory,
            threads=threads,
        )
        buckets, members, bad = assign(
            facts,
            stream.source,
            stream.task,
            sizes=stream.picture_sizes,
            slots=stream.slot_counts,
            lengths=stream.lengths,
            grids=grids,
        )
        self.invalid_examples.scanned(stream.source.name, len(stream.source), bad)
        if not buckets:
            raise TooManyInvalidExamples(
                f"stream {stream.name!r}: none of the {len(stream.source)} rows of "
                f"{stream.source.name} can be used. The first: {bad[0]}"
            )
        for bucket, rows in zip(buckets, members, strict=True):
            key = (self._seed, *words(f"{stream.name}: {bucket}"))
            grid = grids[stream.picture_sizes.index(bucket.size)]
            self._cells.append(BucketSampler(number, bucket, grid, rows, key))

    def _weights(self, named: Mapping[str, float]) -> list[float]:
        """Weights of the cells: a stream's, shared by its buckets as its rows are."""
        unknown = sorted(set(named) - {stream.name for stream in self.streams})
        if unknown:
            raise ValueError(
                f"weights name {unknown}; the streams are {', '.join(s.name for s in self.streams)}"
            )
        total = np.zeros(len(self.streams))
        for cell in self._cells:
            total[cell.stream] += len(cell.members)
        return [
            named.get(self.streams[cell.stream].name, 0.0) * len(cell.members) / total[cell.stream]
            for cell in self._cells
        ]

    def _shape(self, cell: BucketSampler) -> BatchShape:
        stream, bucket = self.streams[cell.stream], cell.bucket
        latents = ()
        if isinstance(stream.source, LatentExamples):
            latents = (*dataclasses.astuple(cell.grid), stream.source.channels)
        return BatchShape(
            stream.rows, bucket.slots, stream.frames, bucket.size, bucket.length, latents
        )

    def shapes(self) -> list[BatchShape]:
        """Every shape that a batch of this mixture can have, each once, in order."""
        return sorted({self._shape(cell) for cell in self._cells})

    def kinds(self) -> list[tuple[str, BatchShape]]:
        """The stream and the shape of every kind of batch, each once."""
        cells = ((self.streams[cell.stream].name, self._shape(cell)) for cell in self._cells)
        return list(dict.fromkeys(cells))

    def shape_of(self, n: int) -> BatchShape:
        """The shape of batch n, without making it."""
        return self._shape(self._cells[self._schedule(n)[0]])

    def stream_of(self, n: int) -> str:
        """The name of the stream of batch n."""
        return self.streams[self._cells[self._schedule(n)[0]].stream].name

    @property
    def fingerprint(self) -> str:
        """Tells mixtures apart whose batches differ, whatever hosts and weights: rows, buckets and seed.

        Hosts must agree on it, and so should a run and its resumption.
        """
        digest = hashlib.sha256()
        for cell in self._cells:
            stream = self.streams[cell.stream]
            settings = (
                stream.name,
                stream.task,
                stream.source.identity,
                stream.rows,
                stream.frames,
            )
            draws = (
                stream.fps,
                stream.text_dropout,
                stream.source_dropout,
                stream.smallest,
                stream.draws,
            )
            digest.update(repr((cell.key, cell.bucket, settings, draws)).encode())
            digest.update(np.ascontiguousarray(cell.members, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """The cells and the number of distinct shapes, for a person at the start of a run."""
        lines = [
            f"{self.streams[cell.stream].name}: {self._shape(cell)} <- {len(cell.members)} rows"
            for cell in self._cells
        ]
        return "\n".join([*lines, f"{len(self.shapes())} distinct batch shapes"])

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        """This host's rows of batch `index`."""
        return self.receive(self.prepare(index))

    def receive(self, prepared: Prepared) -> Batch:
        """The batch; the rows that were passed over for it go on the list, and the good ones are counted.

        Raises:
            TooManyInvalidExamples: the share of bad rows passed the limit, or no good one was found.
        """
        self.invalid_examples.good(prepared.good)
        for bad in prepared.passed_over:
            self.invalid_examples.bad(bad)
        if prepared.failure:
            raise TooManyInvalidExamples(prepared.failure)
        return prepared.batch

    def prepare(self, index: int) -> Prepared:
        """This host's rows of batch `index`; nothing is listed or counted, so that any process may do it."""
        number, before = self._schedule(index)
        cell = self._cells[number]
        shape = self._shape(cell)
        # A block of rows, so that the hosts' parts one after another are the batch in its order, whatever their number.
        share = shape.rows // self._processes
        local = range(self._process * share, (self._process + 1) * share)
        sequences: list[TokenSequence] = []
        passed_over: list[InvalidExample] = []
        arrays = shape.arrays(self._processes)
        visual = shared_memory.zeros(*arrays[shape.visual])
        for row, place in enumerate(local):
            position = before * shape.rows + place
            made = self._sample(cell, position, row, passed_over, visual[row])
            if isinstance(made, str):
                return Prepared({}, row, tuple(passed_over), made)
            sequences.append(made)
        batch = stack(sequences, shape.length, shape.slots, self._tokenizer.special)
        del batch["lengths"]
        task = np.full(len(sequences), cell.stream, np.int32)
        batch = {**batch, shape.visual: visual, "stream": task}
        return Prepared(batch, len(sequences), tuple(passed_over))

    def _sample(
        self,
        cell: BucketSampler,
        position: int,
        good: int,
        passed_over: list[InvalidExample],
        space: Shaped[np.ndarray, "n ..."],
    ) -> TokenSequence | str:
        """The row at a position of a cell, or the next good one after it; or why there is none.

        `good` rows of the batch were found before it; rows that cannot be used are added to `passed_over`. The row's
        visual slots are filled in `space`.
        """
        stream, count = self.streams[cell.stream], len(cell.members)
        first = cell.member(position)
        for further in range(count):
            index = int(cell.members[(first + further) % count])
            random = np.random.default_rng((*cell.key, 1, position))
            try:
                return load_example(
                    stream, cell, index, random, self._tokenizer, space, encode=self._encode
                )
            except InvalidExample as bad:
                passed_over.append(bad)
                space[:] = 0
            # Not the whole of a cell that is gone: that may take hours.
            if self.invalid_examples.too_many(len(passed_over), len(passed_over) + good):
                return (
                    f"stream {stream.name!r}: {len(passed_over)} of {len(passed_over) + good} rows tried for one "
                    f"batch cannot be used. The last: {passed_over[-1]}"
                )
        return (
            f"stream {stream.name!r}: none of the {count} rows of bucket {cell.bucket} can be used"
        )


class _Preparing:
    """A mixture's prepared batches by number, as a source for Grain."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: int) -> Prepared:
        return self._mixture.prepare(index)


def batches(mixture: Mixture) -> Batches:
    """The mixture for `pipeline.iterate`: any process prepares batches, the main one keeps the list of bad rows."""
    return Batches(grain.MapDataset.source(_Preparing(mixture)), mixture.receive)
