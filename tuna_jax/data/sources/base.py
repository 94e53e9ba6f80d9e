"""What every source of examples provides: the protocol, and the example."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

from tuna_jax.data.media.image import Medium

Kind = Literal["image_caption", "image_chat", "chat", "edit", "video_caption", "video_chat"]


VIDEO_KINDS: tuple[Kind, ...] = ("video_caption", "video_chat")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What somebody says: `role` is 'system', 'user' or 'assistant'; `<image>` marks where a picture or clip goes."""

    role: str
    text: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A row of a manifest.

    Attributes:
        kind: which format it came in.
        media: its pictures (an edit's are source, then target) or of its one clip.
        source: the manifest.
        line: its line there, counted from 1.
        text: the caption or the instruction; empty for conversations.
        turns: the conversation; empty for the others.
    """

    kind: Kind
    media: tuple[Medium, ...]
    source: str
    line: int
    text: str = ""
    turns: tuple[Turn, ...] = ()


@runtime_checkable
class ExampleSource(Protocol):
    """A source of rows: a `Manifest`, or anything that reads like one."""

    @property
    def name(self) -> str:
        """How lists of bad rows call it."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the rows do."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def line(self, index: int) -> int:
        """The line, counted from 1, of a row."""
        ...
