"""Answers under way: which slot has which, and what the host does between two calls of the device."""

from __future__ import annotations

import collections
import time
import weakref
from collections.abc import Collection, Container, Sequence

import numpy as np

from tuna_jax.inference import batching
from tuna_jax.inference.batching import round_up
from tuna_jax.inference.generation import text_slots
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sequence import Text, build, stack
from tuna_jax.serving import device, served
from tuna_jax.serving.metrics import Metrics
from tuna_jax.serving.rows import Answer, Delta, TextRow
from tuna_jax.serving.served import Media, Served

Shape = tuple[Media | None, int]
"""Of prompts: the kind of their media, and the tokens that they are padded to; `TextRow.group`."""
_TOGETHER = 8
"""Prompts that are prefilled by one call."""
_SHORT_ANSWER = 128
"""Tokens of answers that short slots have room for, after the shortest prompts: what a request gets by default."""


class _Active:
    """An answer under way."""

    def __init__(self, row: TextRow):
        self.row = row
        self.ids: list[int] = []
        self.sent = 0  # Characters.


def pools(model: Tuna, what: Served, metrics: Metrics) -> list[TextPool]:
    """A pool of short answers, whose slots are short, and one of all others.

    Attention costs what its cache has room for, and most answers are short.
    """
    kinds = served.text_media(model, what)
    longest = max(served.widths(what, media)[-1] for media in kinds)
    longest += what.settings.max_new_tokens
    one_medium = max(0 if media is None else media.tokens // media.count for media in kinds)
    short = round_up(what.settings.prompt_tokens[0] + one_medium + _SHORT_ANSWER)
    if short >= longest:
        return [TextPool(model, what, metrics, longest)]
    first = TextPool(model, what, metrics, short)
    return [first, TextPool(model, what, metrics, longest, rare=first.shapes)]


class TextPool:
    """The slots of answers that fit into `capacity` positions.

    `fits` may be called by any thread, the other methods by the device's.

    Args:
      model, what: what is served.
      metrics: where batches and tokens are counted.
      capacity: positions of a slot.
      rare: shapes of prompts that another pool has too, and usually takes.
    """

    def __init__(
        self,
        model: Tuna,
        what: Served,
        metrics: Metrics,
        capacity: int,
        rare: Container[Shape] = (),
    ):
        self._model, self._what, self._metrics = model, what, metrics
        self._sizes = what.rows(what.settings.text_slots, (4, 16, 64))
        self._count = self._sizes[-1]
        self._capacity = capacity
        most = min(what.settings.text_slots, _TOGETHER)
        # By shape of prompts, the numbers of rows that prefills are compiled for. Padding costs as much as prompts, so
        # that short prompts have programs of many sizes.
        self._inserts: dict[Shape, tuple[int, ...]] = {}
        for media in served.text_media(model, what):
            for width in served.widths(what, media):
                if width < capacity:
                    usual = width == served.widths(what, media)[0] and (media, width) not in rare
                    self._inserts[media, width] = what.rows(most, (1, 2, 4) if usual else (1,))
        self._eos = int(model.tokenizer.special.eos)
        self._number = device.new_number()
        weakref.finalize(self, device.forget, self._number)
        self.waiting: collections.deque[TextRow] = collections.deque()
        self._active: dict[int, _Active] = {}
        self.reset()

    @property
    def shapes(self) -> Collection[Shape]:
        """The shapes of prompts that are compiled."""
        return self._inserts.keys()

    def fits(self, row: TextRow) -> bool:
        """Whether the longest answer to a prompt has room."""
        longest = len(row.prompt.tokens) + row.most
        return row.group in self._inserts and longest <= self._capacity

    def reset(self) -> None:
        """Empty slots."""
        self._active.clear()
        device.reset_text(self._model, self._number, self._count, self._capacity)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._active or self.waiting)

    @property
    def active(self) -> int:
        """Number of occupied slots."""
        return len(self._active)

    def rows(self) -> list[TextRow]:
        """All rows that occupy a slot."""
        return [active.row for active in self._active.values()]

    def warm_up(self) -> None:
        """Compiles everything, by running it."""
        special = self._model.tokenizer.special
        options = [self._row(special.bos)]
        for (media, width), counts in self._inserts.items():
            for count in counts:
                self._insert(media, width, options, [0], count)
        for rows in self._sizes:
            self._decode(rows, {0}, text_slots.CHUNK)
        self.reset()

    def _row(self, bos: int) -> TextRow:
        prompt = build([Text((bos,))], self._model.tokenizer.special)
        return TextRow(
            key=batching.key_data(0, 0), prompt=prompt, media=None, clips=None, width=0, most=1
        )

    def step(self) -> None:
        """Inserts what fits, and decodes until an answer ends or for `CHUNK` tokens."""
        for slot in [slot for slot, active in self._active.items() if active.row.cancelled]:
            del self._active[slot]
        self._admit()
        if self._active:
            self._advance()

    def _admit(self) -> None:
        free = [slot for slot in range(self._count) if slot not in self._active]
        while free and self.waiting:
            first = self.waiting[0]
            sizes = self._inserts[first.group]
            most = min(len(free), sizes[-1])
            chosen = [row for row in self.waiting if row.group == first.group][:most]
            for row in chosen:
                self.waiting.remove(row)
                row.started = time.monotonic()
            slots, free = free[: len(chosen)], free[len(chosen) :]
            # Before the device may fail, so that `rows` has them.
            self._active |= {slot: _Active(row) for slot, row in zip(slots, chosen, strict=True)}
            count = next(size for size in sizes if size >= len(chosen))
            self._insert(first.media, first.width, chosen, slots, count)
            self._metrics.batch("prefill", len(chosen))

    def _insert(
        self, media: Media | None, width: int, rows: list[TextRow], slots: list[int], count: int
    ) -> None:
        """Runs the program that inserts `count` rows; the last of `rows` fills it up."""
        rows = rows + [rows[-1]] * (count - len(rows))
        slots = slots + [slots[-1]] * (count - len(slots))
        special = self._model.tokenizer.special
        places = 0 if media is None else media.count
        batch = stack([row.prompt for row in rows], width, places, special)
        clips = None
        if media is not None:
            shape = (count, places, media.frames, media.height, media.width, 3)
            clips = np.zeros(shape, np.uint8)
            for index, row in enumerate(rows):
                if row.clips is not None:
                    clips[index, : len(row.clips)] = row.clips
        device.insert_text(
            self._model,
            self._number,
            (batch["tokens"], batch["lengths"], batch["spans"]),
            clips,
            np.asarray(slots, np.int32),
            (
                np.stack([row.key for row in rows]),
                np.asarray([row.temperature for row in rows], np.float32),
                np.asarray([row.top_k for row in rows], np.int32),
                np.asarray([row.top_p for row in rows], np.float32),
            ),
        )

    def _decode(
        self, rows: int, occupied: set[int], most: int
    ) -> tuple[np.ndarray, int, np.ndarray]:
        is_occupied = np.asarray([slot in occupied for slot in range(rows)])
        return device.decode_text(self._model, self._number, is_occupied, most, self._eos)

    def _advance(self) -> None:
        last = max(self._active)
        left = min(active.row.most - len(active.ids) for active in self._active.values())
        most = min(left, text_slots.CHUNK)
        rows = next(rows for rows in self._sizes if rows > last)
        tokens, count, finite = self._decode(rows, set(self._active), most)
        self._metrics.batch("decode", len(self._active))
        self._metrics.tokens(count * len(self._active))
        for slot, active in list(self._active.items()):
            if not finite[slot]:
                del self._active[slot]
                active.row.fail("not_finite", "the model computed NaN or infinity for this answer")
            elif self._take(active, tokens[slot, :count].tolist()):
                del self._active[slot]

    def _take(self, active: _Active, ids: list[int]) -> bool:
        """Appends tokens to an answer; whether it has ended."""
        row, eos = active.row, self._eos
        ended = ids[-1] == eos
        active.ids += ids[:-1] if ended else ids
        full = len(active.ids) >= row.most
        if not (ended or full or row.stream or row.stop):
            return False
        tokenizer = self._model.tokenizer
        # The embedding table may have more rows than the tokenizer has ids, as in `inference/text.py`.
        text = tokenizer.decode(i for i in active.ids if i < tokenizer.size)
        cut = min((at for stop in row.stop if (at := text.find(stop)) >= 0), default=None)
        done = ended or full or cut is not None
        text = text if cut is None else text[:cut]
        if row.stream:
            ready = len(text) if done else _settled(text, row.stop)
            if ready > active.sent:
                row.emit(Delta(text[active.sent : ready]))
                active.sent = ready
        if done:
            reason = "stop" if ended or cut is not None else "length"
            row.emit(Answer(text, reason, len(active.ids)))
            self._metrics.finished("text", row)
        return done


def _settled(text: str, stop: Sequence[str]) -> int:
    """Characters at the start of a text that more tokens cannot change or make a part of a stop string."""
    ready = len(text.rstrip("\ufffd"))  # An unfinished character; see `Tokenizer.decode_parts`.
    for string in stop:
        for size in range(min(len(string) - 1, ready), 0, -1):
            if text[:ready].endswith(string[:size]):
                ready = min(ready, len(text[:ready]) - size)
                break
    return ready
