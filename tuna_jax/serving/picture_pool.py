"""Images or clips of one shape under way: which slot has which, and what the host does between two evaluations."""

from __future__ import annotations

import collections
import time
import weakref

import numpy as np

from tuna_jax.inference.batching import round_up
from tuna_jax.inference.generation import flow_slots
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sequence import Grid, editing_prompt, generation_prompt, stack
from tuna_jax.serving import device
from tuna_jax.serving.metrics import Metrics
from tuna_jax.serving.rows import Partial, Picture, PictureRow, Progress
from tuna_jax.serving.served import Served

_TOGETHER = 4
"""Prompts that are prefilled, and results that are decoded, by one call."""


class _Active:
    """A result under way."""

    def __init__(self, row: PictureRow):
        self.row = row
        self.done = 0  # Evaluations.
        self.partials_at = row.partials_at()


class PicturePool:
    """The slots of results of one shape. All methods but `waiting` are called by the device's thread."""

    def __init__(self, model: Tuna, what: Served, shape: tuple[int, int, int], metrics: Metrics):
        self._model, self._what, self.shape, self._metrics = model, what, shape, metrics
        slots = what.settings.image_slots if shape[0] == 1 else what.settings.clip_slots
        self._count = what.rows(slots)[-1]
        self._inserts = what.rows(min(slots, _TOGETHER), (1,))
        self.latent_shape = model.config.space.latent_shape(*shape)
        self._span = 1 + Grid(*self.latent_shape[:3]).tokens
        self.edits = "edit" in what.tasks and shape[0] == 1 and shape[1:] in what.edit_sizes
        first, last = (self.widths(edit=self.edits)[at] + self._span for at in (0, -1))
        self._capacity = last
        # What evaluations are compiled for: most prompts are short, and attention costs what it can see.
        self._evaluations = [
            (rows, first, guided)
            for guided, ladder in ((True, (1, 2, 4, 16)), (False, (1,)))
            for rows in what.rows(slots, ladder)
        ]
        if first < last:
            self._evaluations += [(rows, last, True) for rows in what.rows(slots, (1,))]
            self._evaluations.append((self._count, last, False))
        self.kind = "image" if shape[0] == 1 else "video"
        self.waiting: collections.deque[PictureRow] = collections.deque()
        self._active: dict[int, _Active] = {}
        self._number = device.new_number()
        weakref.finalize(self, device.forget, self._number)
        self.reset()

    def widths(self, *, edit: bool) -> list[int]:
        """The numbers of tokens that prompts are padded to."""
        source = self._span if edit else 0
        return [round_up(source + text) for text in self._what.settings.image_prompt_tokens]

    def reset(self) -> None:
        """Empty slots."""
        self._active.clear()
        device.reset_pictures(
            self._model, self._number, self._count, self._capacity, self.latent_shape
        )

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._active or self.waiting)

    @property
    def active(self) -> int:
        """Number of occupied slots."""
        return len(self._active)

    def rows(self) -> list[PictureRow]:
        """All rows that occupy a slot."""
        return [active.row for active in self._active.values()]

    def warm_up(self) -> None:
        """Compiles everything, by running it."""
        generates = self.shape in [
            (frames, *size) for size in self._what.sizes for frames in (1, *self._what.frames)
        ]
        for edit in [
            edit for edit, is_served in ((False, generates), (True, self.edits)) if is_served
        ]:
            for width in self.widths(edit=edit):
                for count in self._inserts:
                    self._insert([self._row(edit, width)], [0], count)
        evaluation = flow_slots.Evaluation(np.float32(0), np.float32(1), 0, True)
        for count, keys, guided in self._evaluations:
            self._evaluate([(0, evaluation, 1.0)], count, keys, guided)
        for count in self._inserts:
            self._decode("x", [0], count)
        self.reset()

    def _row(self, edit: bool, width: int) -> PictureRow:
        special = self._model.tokenizer.special
        grid = Grid(*self.latent_shape[:3])
        prompt = editing_prompt(special, [], grid) if edit else generation_prompt(special, [])
        return PictureRow(
            key=np.zeros(2, np.uint32),
            shape=self.shape,
            positive=prompt,
            negative=prompt,
            source=np.zeros((*self.shape, 3), np.uint8) if edit else None,
            width=width,
            plan=[],
            guidance=1.0,
        )

    def step(self) -> None:
        """Inserts what fits, or else evaluates all slots once and decodes what is ready."""
        for slot in [slot for slot, active in self._active.items() if active.row.cancelled]:
            del self._active[slot]
        if not self._admit() and self._active:
            self._advance()

    def _admit(self) -> bool:
        free = [slot for slot in range(self._count) if slot not in self._active]
        if not free or not self.waiting:
            return False
        first = self.waiting[0]
        most = min(len(free), self._inserts[-1])
        chosen = [row for row in self.waiting if row.group == first.group][:most]
        for row in chosen:
            self.waiting.remove(row)
            row.started = time.monotonic()
        slots = free[: len(chosen)]
        # Before the device may fail, so that `rows` has them.
        self._active |= {slot: _Active(row) for slot, row in zip(slots, chosen, strict=True)}
        self._insert(chosen, slots, next(size for size in self._inserts if size >= len(chosen)))
        return True

    def _insert(self, rows: list[PictureRow], slots: list[int], count: int) -> None:
        """Runs the program that inserts `count` rows; the last of `rows` fills it up."""
        rows = rows + [rows[-1]] * (count - len(rows))
        slots = slots + [slots[-1]] * (count - len(slots))
        special, width = self._model.tokenizer.special, rows[0].width
        edit = rows[0].source is not None
        prompts = []
        for sequences in ([row.positive for row in rows], [row.negative for row in rows]):
            batch = stack(sequences, width, int(edit), special)
            prompts.append((batch["tokens"], batch["lengths"], batch["spans"]))
        sources = None
        if edit:
            sources = np.stack([row.source for row in rows if row.source is not None])[:, None]
        device.insert_pictures(
            self._model,
            self._number,
            prompts[0],
            prompts[1],
            sources,
            np.stack([row.key for row in rows]),
            np.asarray(slots, np.int32),
        )

    def _advance(self) -> None:
        for guided in (True, False):
            chosen = [
                (slot, active.row.plan[active.done], active.row.guidance)
                for slot, active in self._active.items()
                if active.row.plan[active.done].guided is guided
            ]
            if chosen:
                longest = max(self._active[slot].row.longest for slot, _, _ in chosen)
                count, keys = min(
                    (
                        (rows, keys)
                        for rows, keys, is_guided in self._evaluations
                        if is_guided is guided
                        and rows >= len(chosen)
                        and keys >= longest + self._span
                    ),
                    key=lambda size: size[0] * size[1],
                )
                self._evaluate(chosen, count, keys, guided)
                self._metrics.batch(self.kind, len(chosen))
        ready, partial = [], []
        for slot, active in self._active.items():
            active.done += 1
            total = len(active.row.plan)
            if active.row.progress:
                active.row.emit(Progress(active.done, total))
            if active.done == total:
                ready.append(slot)
            elif active.done in active.partials_at:
                partial.append(slot)
        if partial:
            clips, finite = self._decode_slots("clean", partial)
            for slot, clip, is_finite in zip(partial, clips, finite, strict=True):
                active = self._active[slot]
                if is_finite:
                    active.row.emit(Partial(active.partials_at[active.done], clip))
        if ready:
            clips, finite = self._decode_slots("x", ready)
            for slot, clip, is_finite in zip(ready, clips, finite, strict=True):
                row = self._active.pop(slot).row
                if is_finite:
                    row.emit(Picture(clip))
                    self._metrics.finished(self.kind, row)
                else:
                    row.fail(
                        "not_finite", f"the model computed NaN or infinity for this {self.kind}"
                    )

    def _evaluate(self, chosen: list[tuple], count: int, keys: int, guided: bool) -> None:
        """Runs the program that evaluates `count` rows: (slot, evaluation, guidance) each."""
        chosen = chosen + [chosen[-1]] * (count - len(chosen))
        slots, evaluations, guidance = zip(*chosen, strict=True)
        arrays = (
            np.asarray(slots, np.int32),
            np.asarray([evaluation.t for evaluation in evaluations], np.float32),
            np.asarray([evaluation.dt for evaluation in evaluations], np.float32),
            np.asarray([evaluation.part for evaluation in evaluations], np.int32),
            np.asarray(guidance, np.float32),
        )
        device.evaluate(self._model, self._number, arrays, guided, keys)

    def _decode_slots(self, name: str, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for start in range(0, len(slots), self._inserts[-1]):
            chunk = slots[start : start + self._inserts[-1]]
            count = next(size for size in self._inserts if size >= len(chunk))
            parts.append([array[: len(chunk)] for array in self._decode(name, chunk, count)])
        clips, finite = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return clips, finite

    def _decode(self, name: str, slots: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(slots + [slots[-1]] * (count - len(slots)), np.int32)
        return device.decode_pictures(self._model, self._number, name, rows)
