"""What is to be known about a stream's examples at the start of a run, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from tuna_jax.data.invalid_examples import InvalidExample, described, shortened
from tuna_jax.data.mixture.metadata import ExampleMetadata
from tuna_jax.data.mixture.stream import ExampleStream

_MOST_KEYS = 20


def stream_notices(
    stream: ExampleStream, metadata: ExampleMetadata, invalid: Sequence[InvalidExample], cut: int
) -> list[str]:
    """The notices of a stream.

    Args:
        stream: the stream.
        metadata: of its examples.
        invalid: the examples that cannot be used.
        cut: the number of texts that are truncated.
    """
    source, name, notices = stream.source, stream.name, []
    if len(metadata) < len(source):
        notices.append(
            f"{name}: trains on the first {len(metadata)} of {len(source)} examples of {source.name}; with "
            "part_rows=-1 it continues with all of them"
        )
    looked_at = metadata.recovered + metadata.still_invalid
    if looked_at:
        notices.append(
            f"{name}: {looked_at} examples whose files an earlier scan found missing or unreadable were looked at "
            f"again: {metadata.recovered} can be used now"
        )
    if invalid:
        notices.append(
            f"{name}: {len(invalid)} of {len(metadata)} examples cannot be used: {described(invalid)}"
        )
    if metadata.ignored:
        keys = [
            f"{shortened(key, 60)} ({count} examples, the first in line {source.line(first)})"
            for key, (count, first) in sorted(metadata.ignored.items())
        ]
        more = f", and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
        notices.append(f"{name}: ignored: {', '.join(keys[:_MOST_KEYS])}{more}")
    if cut:
        notices.append(
            f"{name}: {cut} of {len(metadata)} texts are longer than the longest length, {stream.lengths[-1]} tokens, "
            "and are cut"
        )
    return notices
