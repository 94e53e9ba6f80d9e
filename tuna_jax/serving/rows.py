"""Rows: the results that a request asks for, each one a row of a batch, and the events by which they report.

The device's thread calls `Row.emit`, which hands an event to the request that waits. Cancelling a row only sets a flag:
its slot is free when the step under way has ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tuna_jax.inference.generation.flow_slots import Evaluation
from tuna_jax.sequence import TokenSequence
from tuna_jax.serving.served import Media


@dataclasses.dataclass(frozen=True)
class Delta:
    """More text of an answer; what was sent before does not change."""

    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The end of an answer.

    Attributes:
      text: all of it.
      reason: 'stop' (it ended, or reached a stop string) or 'length'.
      tokens: number of its tokens.
    """

    text: str
    reason: str
    tokens: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """Evaluations of the velocity that a row has had, of all that it takes."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class Partial:
    """What the model expects the result to be, uint8 [frames, height, width, 3]."""

    index: int
    clip: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """A result, uint8 [frames, height, width, 3]."""

    clip: np.ndarray


@dataclasses.dataclass(frozen=True)
class Failed:
    """The row has no result.

    Attributes:
      kind: 'timeout', 'not_finite', 'shutdown' or 'internal'.
      message: for the client; nothing of the request is in it.
    """

    kind: str
    message: str


Event = Delta | Answer | Progress | Partial | Picture | Failed
LAST = (Answer, Picture, Failed)
"""Each row ends with one of these."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Row:
    """One result.

    Attributes:
      key: PRNG key data.
      emit: takes its events, on the device's thread; it neither blocks nor raises.
      deadline: `time.monotonic()` at which it is given up.
      cancelled: nobody waits for it any more.
      created: when it was made, and when it came into its slot.
    """

    key: np.ndarray
    emit: Callable[[Event], None] = dataclasses.field(default=lambda event: None, repr=False)
    deadline: float = float("inf")
    cancelled: bool = False
    created: float = dataclasses.field(default_factory=time.monotonic)
    started: float | None = None

    def fail(self, kind: str, message: str) -> None:
        """Reports that there is no result."""
        self.emit(Failed(kind, message))


@dataclasses.dataclass(kw_only=True, eq=False)
class TextRow(Row):
    """An answer.

    Attributes:
      prompt: the conversation's tokens.
      media: kind of its input media, and the clips, uint8 [n, frames, height, width, 3], n at most `media.count`.
      width: tokens that the prompt is padded to.
      most: the largest number of tokens.
      temperature, top_k, top_p: see `generation_config.DecodingOptions`.
      stop: strings that end the answer, which does not have them.
      stream: whether parts are reported.
    """

    prompt: TokenSequence
    media: Media | None
    clips: np.ndarray | None
    width: int
    most: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    stream: bool = False

    @property
    def group(self) -> Any:
        """Rows of equal groups can be inserted together."""
        return self.media, self.width


@dataclasses.dataclass(kw_only=True, eq=False)
class PictureRow(Row):
    """An image or a clip.

    Attributes:
      shape: (frames, height, width).
      positive, negative: token sequences of both branches of guidance.
      source: the image to edit, uint8 [1, height, width, 3]; None: generate from the prompt.
      width: tokens that the prompts are padded to.
      plan: the evaluations of its velocity.
      guidance: guidance scale.
      partials: number of partial results that are reported.
      progress: whether every evaluation is reported.
    """

    shape: tuple[int, int, int]
    positive: TokenSequence
    negative: TokenSequence
    source: np.ndarray | None
    width: int
    plan: list[Evaluation] = dataclasses.field(repr=False)
    guidance: float
    partials: int = 0
    progress: bool = False

    @property
    def group(self) -> Any:
        """Rows of equal groups can be inserted together."""
        return self.source is not None, self.width

    @property
    def longest(self) -> int:
        """Tokens of the longer prompt."""
        return max(len(self.positive.tokens), len(self.negative.tokens))

    def partials_at(self) -> dict[int, int]:
        """By number of evaluations that are done: the index of the partial result that is due then."""
        total, count = len(self.plan), self.partials
        return {max(1, (i + 1) * total // (count + 1)): i for i in range(count)}
