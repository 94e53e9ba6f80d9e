"""Weighted streams of examples as an endless sequence of batches, each of one shape.

    source --scan--> metadata --assign--> buckets --schedule--> batch n is of one bucket of one stream
                                                    its examples --tokenize_example, decode--> Batch

Batch n depends only on (seed, n) and the history of weights: not on threads, hosts or restarts. It holds examples k*B
to k*B + B - 1 of its bucket sampler, where k is the number of earlier batches of that sampler; every epoch has a new
order. Each host has a contiguous block of the batch's rows. An invalid example is replaced by the next valid one of its
bucket, in the source's order, and a bucket without any by the stream's next bucket. A Batch is a dict of NumPy arrays
(B rows, S tokens, N slots, videos of F x H x W pixels):

    tokens     int32 [B, S]             padded with the pad token
    labels     int32 [B, S]             -100 where there is no text loss
    spans      int32 [B, N, 2]          (offset of the time token, 1 + T*h*w); unused (-1, -1)
    is_target  bool  [B, N]             True: noised, flow loss; False: clean
    pixels     uint8 [B, N, F, H, W, 3] content of each slot; zeros where it is unused
    stream     int32 [B]                index into the mixture's streams

A stream of precomputed latents (`LatentExamples`) has, in place of pixels,

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
from tuna_jax.data.invalid_examples import (
    InvalidExample,
    InvalidExamples,
    TooManyInvalidExamples,
)
from tuna_jax.data.loader import Batch, Batches
from tuna_jax.data.mixture.assignment import assignment
from tuna_jax.data.mixture.bucket_sampler import BucketSampler, seed_words
from tuna_jax.data.mixture.load_example import load_example
from tuna_jax.data.mixture.metadata import ExampleMetadata
from tuna_jax.data.mixture.notices import stream_notices
from tuna_jax.data.mixture.scan import scan
from tuna_jax.data.mixture.schedule import Schedule
from tuna_jax.data.mixture.stream import (
    BatchShape,
    ExampleStream,
    check_latents,
    check_names,
    check_rows,
    stream_grids,
)
from tuna_jax.data.mixture.tokenize_example import is_cut
from tuna_jax.data.sources.precomputed_latents import LatentExamples
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid, TokenSequence, stack
from tuna_jax.utils.atomic_io import cache_directory

ENDLESS = 10**12


class Prepared(NamedTuple):
    """A batch on its way to the main process, which keeps the list of invalid examples.

    A tuple, because Grain passes arrays inside tuples through shared memory and pickles anything else.

    Attributes:
        batch: the batch; empty after a failure.
        valid: the number of examples in it.
        invalid: the invalid examples that it skipped.
        failure: why there is no batch; None if there is one.
    """

    batch: Batch
    valid: int
    invalid: tuple[InvalidExample, ...] = ()
    failure: str | None = None


class Mixture:
    """Batches by number; `batches` makes a Grain data set of it.

    Args:
        streams: their names are distinct, and their order defines `batch['stream']`.
        tokenizer: text to ids.
        seed: determines the batches.
        invalid_examples: the list of invalid examples; those that the scan of a stream finds are added at once.
        history: (first batch, weights by stream name) in ascending order, the first at 0; None uses the streams' own
            weights throughout. To change weights at a resume from batch n, append (n, new weights): each stream
            continues in its data where it stopped.
        spatial_factor, temporal_factor: pixels and frames per latent position (see `config.VAEConfig`).
        process_index, process_count: this host, and the number of hosts, which must divide every stream's rows.
        vae_fingerprint: of the model's VAE (`precomputed_latents.vae_fingerprint`), which precomputed latents must
            match. None does not check.
        directory: the cache folder, see `cache_directory`. Of a source of millions of examples it has the buckets and
            the orders of epochs, 4 bytes per example each, and should be on a disk of this host.
        index: where the indexes of scans are kept, see `stored_index.index_folder`.
        threads: files that a scan reads at the same time.
        scans: of a run that resumes, its `scans` by stream name (one that is not there is ""), so that its batches stay
            the same; None for a new run, which looks again at files that an earlier scan found missing or unreadable.
        parts: of a run that resumes, its `parts`, with which it continues unless a stream's `part_rows` says otherwise.

    Attributes:
        scans: the version of the metadata of each stream whose files were looked at again with another result.
        parts: the number of examples of each stream that is trained on a part of its source.
        cut: by stream whose task truncates text, the number of examples whose text is longer than the longest length.
        notices: what is to be known about the examples at the start of a run, a line each.

    Raises:
        ValueError: an invalid setting; the message names the stream and a valid value.
        TooManyInvalidExamples: the scan of a stream found more than the list's limit.
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
        scans: Mapping[str, str] | None = None,
        index: str = "",
        parts: Mapping[str, int] | None = None,
    ):
        self.scans: dict[str, str] = {}
        self.parts: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.notices: list[str] = []
        self.streams = tuple(streams)
        self.invalid_examples = invalid_examples or InvalidExamples()
        check_names(self.streams)
        self._tokenizer, self._seed = tokenizer, seed
        self._process, self._processes = process_index, process_count
        self._encode = functools.lru_cache(maxsize=1 << 14)(tokenizer.encode)
        self._samplers: list[BucketSampler] = []
        for number, stream in enumerate(self.streams):
            check_rows(stream, process_count)
            grids = stream_grids(stream, spatial_factor, temporal_factor)
            check_latents(stream, grids, vae_fingerprint)
            version = None if scans is None else scans.get(stream.name, "")
            rows = stream.part_rows or (parts or {}).get(stream.name, -1)
            metadata = scan(
                stream.source,
                stream.task,
                self._tokenizer,
                smallest=stream.smallest,
                directory=directory,
                index=index,
                threads=threads,
                version=version,
                rows=None if rows < 0 else rows,
            )
            self._add_samplers(
                number, stream, grids, metadata, cache_directory(directory) / "orders"
            )
        history = history or [(0, {stream.name: stream.weight for stream in self.streams})]
        self._schedule = Schedule([(at, self._weights(weights)) for at, weights in history], seed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encode = functools.lru_cache(maxsize=1 << 14)(self._tokenizer.encode)

    def _add_samplers(
        self,
        number: int,
        stream: ExampleStream,
        grids: list[Grid],
        metadata: ExampleMetadata,
        folder: Path,
    ) -> None:
        """Sorts a stream's examples into buckets."""
        made = assignment(metadata, stream, grids, folder)
        if metadata.version:
            self.scans[stream.name] = metadata.version
        if len(metadata) < len(stream.source):
            self.parts[stream.name] = len(metadata)
        if is_cut(stream.task):
            self.cut[stream.name] = made.cut
        self.notices += stream_notices(stream, metadata, made.invalid, made.cut)
        self.invalid_examples.add_scanned(stream.source.name, len(metadata), made.invalid)
        if not made.buckets:
            raise TooManyInvalidExamples(
                f"stream {stream.name!r}: none of the {len(metadata)} examples of "
                f"{stream.source.name} can be used. The first: {made.invalid[0]}"
            )
        for bucket, members in zip(made.buckets, made.members, strict=True):
            key = (self._seed, *seed_words(f"{stream.name}: {bucket}"))
            grid = grids[stream.picture_sizes.index(bucket.size)]
            self._samplers.append(BucketSampler(number, bucket, grid, members, key, folder))

    def _weights(self, named: Mapping[str, float]) -> list[float]:
        """Weights of the samplers: a stream's weight, divided among its buckets by their numbers of examples."""
        unknown = sorted(set(named) - {stream.name for stream in self.streams})
        if unknown:
            raise ValueError(
                f"weights name {unknown}; the streams are {', '.join(s.name for s in self.streams)}"
            )
        total = np.zeros(len(self.streams))
        for sampler in self._samplers:
            total[sampler.stream] += len(sampler.members)
        return [
            named.get(self.streams[sampler.stream].name, 0.0)
            * len(sampler.members)
            / total[sampler.stream]
            for sampler in self._samplers
        ]

    def _shape(self, sampler: BucketSampler) -> BatchShape:
        stream, bucket = self.streams[sampler.stream], sampler.bucket
        latents = ()
        if isinstance(stream.source, LatentExamples):
            latents = (*dataclasses.astuple(sampler.grid), stream.source.channels)
        return BatchShape(
            stream.rows, bucket.slots, stream.frames, bucket.size, bucket.length, latents
        )

    def shapes(self) -> list[BatchShape]:
        """Every shape that a batch of this mixture can have, each once, in order."""
        return sorted({self._shape(sampler) for sampler in self._samplers})

    def kinds(self) -> list[tuple[str, BatchShape]]:
        """The stream and the shape of every kind of batch, each once."""
        kinds = (
            (self.streams[sampler.stream].name, self._shape(sampler)) for sampler in self._samplers
        )
        return list(dict.fromkeys(kinds))

    def shape_of(self, n: int) -> BatchShape:
        """The shape of batch n, without preparing it."""
        return self._shape(self._samplers[self._schedule(n)[0]])

    def stream_of(self, n: int) -> str:
        """The name of the stream of batch n."""
        return self.streams[self._samplers[self._schedule(n)[0]].stream].name

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the batches except hosts and weights: examples, buckets, options and seed.

        All hosts must have the same, and so must a resumed run.
        """
        digest = hashlib.sha256()
        for sampler in self._samplers:
            stream = self.streams[sampler.stream]
            settings = (stream.name, stream.task, stream.source.identity)
            settings = (*settings, stream.rows, stream.frames)
            options = (stream.fps, stream.text_dropout, stream.source_dropout)
            options = (*options, stream.smallest, stream.draws)
            # Off as before they were there.
            options += ("reduced_decode",) if stream.reduced_decode else ()
            options += () if stream.both_dropout is None else (stream.both_dropout,)
            digest.update(repr((sampler.key, sampler.bucket, settings, options)).encode())
            sampler.hash_members(digest)
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """The buckets and the number of distinct shapes, as text for the start of a run."""
        lines = [
            f"{self.streams[sampler.stream].name}: {self._shape(sampler)} <- {len(sampler.members)} examples"
            for sampler in self._samplers
        ]
        return "\n".join([*lines, f"{len(self.shapes())} distinct batch shapes"])

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        """This host's rows of batch `index`."""
        return self.receive(self.prepare(index))

    def receive(self, prepared: Prepared) -> Batch:
        """The batch; the invalid examples that it skipped are listed, and the valid ones counted.

        Raises:
            TooManyInvalidExamples: the share of invalid examples exceeds the limit, or there is no valid one.
        """
        self.invalid_examples.count_valid(prepared.valid)
        for example in prepared.invalid:
            self.invalid_examples.add(example)
        if prepared.failure:
            raise TooManyInvalidExamples(prepared.failure)
        return prepared.batch

    def prepare(self, index: int) -> Prepared:
        """This host's rows of batch `index`. Nothing is listed or counted, so that any process may do it."""
        number, before = self._schedule(index)
        stream = self._samplers[number].stream
        invalid: list[InvalidExample] = []
        # If no example of the bucket can be used, as of a rare shape, another bucket of the stream gives the batch.
        for sampler in [*self._samplers[number:], *self._samplers[:number]]:
            if sampler.stream == stream:
                prepared = self._prepare(sampler, before, invalid)
                if prepared is not None:
                    return prepared
        buckets = ", ".join(f"bucket {s.bucket}" for s in self._samplers if s.stream == stream)
        total = sum(len(s.members) for s in self._samplers if s.stream == stream)
        name = self.streams[stream].name
        failure = f"stream {name!r}: none of the {total} examples of {buckets} can be used"
        return Prepared({}, 0, tuple(invalid), failure)

    def _prepare(
        self, sampler: BucketSampler, before: int, invalid: list[InvalidExample]
    ) -> Prepared | None:
        """This host's rows of a bucket's batch number `before`; None if none of its examples can be used."""
        shape = self._shape(sampler)
        # A contiguous block: the hosts' parts, concatenated, are the batch in its order, for any number of hosts.
        share = shape.rows // self._processes
        local = range(self._process * share, (self._process + 1) * share)
        sequences: list[TokenSequence] = []
        arrays = shape.arrays(self._processes)
        visual = shared_memory.zeros(*arrays[shape.visual])
        for row, place in enumerate(local):
            position = before * shape.rows + place
            result = self._load(sampler, position, row, invalid, visual[row])
            if result is None:
                return None
            if isinstance(result, str):
                return Prepared({}, row, tuple(invalid), result)
            sequences.append(result)
        batch = stack(sequences, shape.length, shape.slots, self._tokenizer.special)
        del batch["lengths"]
        stream = np.full(len(sequences), sampler.stream, np.int32)
        batch = {**batch, shape.visual: visual, "stream": stream}
        return Prepared(batch, len(sequences), tuple(invalid))

    def _load(
        self,
        sampler: BucketSampler,
        position: int,
        valid: int,
        invalid: list[InvalidExample],
        slots: Shaped[np.ndarray, "n ..."],
    ) -> TokenSequence | str | None:
        """The example at a position of a sampler, or the next valid one after it.

        None if no example of the bucket can be used; a text if too many cannot, which ends the run.

        Args:
            sampler: of the bucket.
            position: in its sequence.
            valid: the number of examples that the batch has already.
            invalid: gets the examples that cannot be used.
            slots: the example's visual slots, filled in place.
        """
        stream, count = self.streams[sampler.stream], len(sampler.members)
        first = sampler.member(position)
        for further in range(count):
            index = int(sampler.members[(first + further) % count])
            random = np.random.default_rng((*sampler.key, 1, position))
            try:
                return load_example(
                    stream, sampler, index, random, self._tokenizer, slots, encode=self._encode
                )
            except InvalidExample as example:
                invalid.append(example)
                slots[:] = 0
            # Do not try a whole bucket whose files are gone: that may take hours.
            tried = len(invalid) + valid
            if self.invalid_examples.too_many(len(invalid), tried):
                return (
                    f"stream {stream.name!r}: {len(invalid)} of {tried} examples read for one batch cannot be used. "
                    f"The last: {invalid[-1]}"
                )
        return None


class _PreparedBatches:
    """A mixture's prepared batches by number, as a source for Grain."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, index: int) -> Prepared:
        return self._mixture.prepare(index)


def batches(mixture: Mixture) -> Batches:
    """The mixture for `loader.iterate`: any process prepares batches, the main one lists invalid examples."""
    return Batches(grain.MapDataset.source(_PreparedBatches(mixture)), mixture.receive)
