"""The protocol of every source of examples, and the example itself."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

from tuna_jax.data.media.image import Medium, Size

Kind = Literal["image_caption", "image_chat", "chat", "edit", "video_caption", "video_chat"]


VIDEO_KINDS: tuple[Kind, ...] = ("video_caption", "video_chat")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message: `role` is 'system', 'user' or 'assistant'; `<image>` in the text stands for an image or video.

    `learn` is False for a turn of the assistant's that is context only: the text loss does not cover it.
    """

    role: str
    text: str
    learn: bool = True


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a data set.

    Attributes:
        kind: its format.
        media: its images (of an edit: source, then target), or its one video.
        source: the name of its source, such as a manifest's path.
        line: its line there, counted from 1.
        text: the caption or the instruction; empty for conversations.
        turns: the conversation; empty for other kinds.
        ignored: the names of its keys that have a value and no meaning for this format.
        size: what its row says of the size that decides its bucket; None if nothing.
        tokens: what its row says of the number of tokens of its text; None if nothing.
    """

    kind: Kind
    media: tuple[Medium, ...]
    source: str
    line: int
    text: str = ""
    turns: tuple[Turn, ...] = ()
    ignored: tuple[str, ...] = ()
    size: Size | None = None
    tokens: int | None = None


@runtime_checkable
class ExampleSource(Protocol):
    """A source of examples: a `Manifest`, or anything with the same methods.

    It may also have `location` (a Path: the file or the folder, for indexes that are kept with the data) and
    `outline(index)` (the example for the scan, whose images and videos need not be read).
    """

    @property
    def name(self) -> str:
        """Its name in lists of invalid examples."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes when the examples change."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def line(self, index: int) -> int:
        """The line of an example, counted from 1."""
        ...
