"""What bucketing needs to know of a source's examples: sizes, numbers of images, tokens, and what is invalid."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from tuna_jax.data.invalid_examples import InvalidExample


class ExampleNumbers(NamedTuple):
    """Height and width in pixels, number of images or videos, and text tokens of a valid example."""

    height: int
    width: int
    media: int
    text: int


Result = ExampleNumbers | InvalidExample


@dataclasses.dataclass(frozen=True)
class ExampleMetadata:
    """What bucketing needs to know of each example; the numbers of an invalid one are 0.

    The arrays are of the smallest types that hold them. Those of an index are mapped: they take memory once per host.

    Attributes:
        height, width: pixels of the first image or video, or of an edit's target; 0 without media.
        media: number of images or videos.
        text: the largest number of text tokens.
        invalid: the examples that cannot be used, by their numbers.
        ignored: keys of the examples that have no meaning: (number of examples, the first one's number) of each.
        identity: of the scan; '' of metadata that are not of an index.
        version: of the metadata, which a run that resumes passes to `scan`.
        recovered, still_invalid: examples whose files an earlier scan found missing or unreadable, and that this one
            looked at again: now valid, and not.
    """

    height: Integer[np.ndarray, " examples"]
    width: Integer[np.ndarray, " examples"]
    media: Integer[np.ndarray, " examples"]
    text: Integer[np.ndarray, " examples"]
    invalid: dict[int, InvalidExample]
    ignored: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    identity: str = ""
    version: str = ""
    recovered: int = 0
    still_invalid: int = 0

    def __len__(self) -> int:
        return len(self.height)

    def with_changes(self, changes: Mapping[int, Result], version: str) -> ExampleMetadata:
        """The metadata with other results for some examples; those after the last example are left out."""
        invalid = dict(self.invalid)
        valid: dict[int, ExampleNumbers] = {}
        for index, result in changes.items():
            if index >= len(self):
                continue
            if isinstance(result, InvalidExample):
                invalid[index] = result
            else:
                invalid.pop(index, None)
                valid[index] = result
        columns = {}
        for at, name in enumerate(ExampleNumbers._fields):
            column = getattr(self, name)
            if valid:
                most = max(numbers[at] for numbers in valid.values())
                # A copy: the array of an index is mapped, and is not written.
                column = column.astype(np.promote_types(column.dtype, np.min_scalar_type(most)))
                column[list(valid)] = [numbers[at] for numbers in valid.values()]
            columns[name] = column
        return dataclasses.replace(self, **columns, invalid=invalid, version=version)
