"""The tokenizer: Qwen2.5's with TUNA's four tokens, with all ids or a subset of them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

import tokenizers

from tuna_jax.data.text import qwen_bpe
from tuna_jax.data.text.messages import ESCAPED_TAG, IMAGE_TAG, parts_of, unescape
from tuna_jax.sequence import Grid, Segment, Special, Text, Visual
from tuna_jax.utils.text_files import read_json, surrogate_in

DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
VOCABULARIES = Path(__file__).parent / "vocabularies"

_STRUCTURE = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "boi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "pad": "[PAD]",
}


def read_subset(subset: str | os.PathLike[str] | Sequence[int]) -> tuple[int, ...]:
    """The full ids that a compact vocabulary keeps, in the order of their compact ids.

    Args:
        subset: the ids; or the path of a JSON file, an object whose `ids` lists them; or the name of a
            vocabulary that ships with the package ('emoji').
    """
    if isinstance(subset, (str, os.PathLike)):
        path = Path(subset)
        if not path.is_file():
            path = VOCABULARIES / f"{os.fspath(subset)}.json"
        if not path.is_file():
            shipped = sorted(item.stem for item in VOCABULARIES.glob("*.json"))
            raise FileNotFoundError(
                f"no vocabulary {os.fspath(subset)!r}: it is neither a file nor one that ships ({shipped})"
            )
        values = read_json(path)
        listed = values.get("ids") if isinstance(values, dict) else None
        if not isinstance(listed, list) or not all(isinstance(i, int) for i in listed):
            raise ValueError(f"{path} is not a compact vocabulary: its 'ids' must be a list of ids")
    else:
        listed = subset
    ids = tuple(int(i) for i in listed)
    if len(set(ids)) != len(ids):
        raise ValueError("a compact vocabulary lists some id twice; each full id may occur once")
    return ids


class Tokenizer:
    """Text to ids and back.

    With `subset`, the embedding table of a small model needs fewer than 151,669 rows: only the listed full ids are
    kept, renumbered by their position in the list. Text that would need another token is spelled in bytes, whose 256
    tokens are always kept, and a warning names each such word once.

    Args:
        subset: see `read_subset`; None keeps every id.
        base: the full tokenizer; None uses the packaged one (`qwen_bpe.packaged`).
    """

    def __init__(
        self,
        subset: str | os.PathLike[str] | Sequence[int] | None = None,
        *,
        base: tokenizers.Tokenizer | None = None,
    ):
        self._base = base or qwen_bpe.packaged()
        self._text = qwen_bpe.without_added_tokens(self._base)
        self._full: tuple[int, ...] | None = None
        self._compact: dict[int, int] = {}
        self._warned: set[str] = set()
        if subset is not None:
            self._full = read_subset(subset)
            self._compact = {full: i for i, full in enumerate(self._full)}
            self._check_subset()
        self._bytes = {character: self.id_of(character) for character in qwen_bpe.byte_characters()}
        self.special = Special(**{role: self.id_of(token) for role, token in _STRUCTURE.items()})
        names = (*qwen_bpe.QWEN_SPECIAL, *qwen_bpe.TUNA_SPECIAL)
        added = self._base.get_added_tokens_decoder()
        # Whatever a tokenizer says of its added tokens, text has none of them.
        known = (self._base.token_to_id(name) for name in names)
        self._control = {token for token in known if token is not None} | set(added)
        hidden = [*names, *(token.content for token in added.values() if token.special)]
        special = (self._find(token) for token in hidden)
        # A tokenizer may even call a byte special, without which text cannot be spelled.
        self._special_ids = {token_id for token_id in special if token_id is not None}
        self._special_ids -= set(self._bytes.values())
        self._control -= {
            token_id
            for character in qwen_bpe.byte_characters()
            if (token_id := self._base.token_to_id(character)) is not None
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_text": None}  # It shares the model with `_base`.

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._text = qwen_bpe.without_added_tokens(self._base)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        subset: str | os.PathLike[str] | Sequence[int] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a Hugging Face folder (Qwen2.5's); TUNA's four tokens are added to it."""
        return cls(subset, base=qwen_bpe.from_folder(Path(folder)))

    def _check_subset(self) -> None:
        total = self._base.get_vocab_size()
        beyond = [i for i in self._compact if not 0 <= i < total]
        if beyond:
            raise ValueError(
                f"the compact vocabulary lists ids {beyond[:5]}; the full one has {total}"
            )
        needed = [*qwen_bpe.byte_characters(), *_STRUCTURE.values()]
        missing = [token for token in needed if self._base.token_to_id(token) not in self._compact]
        if missing:
            raise ValueError(
                f"the compact vocabulary lacks {missing[:5]} and possibly more; it must keep the 256 byte "
                "tokens and the special ones (python -m tuna_jax.emoji.world.vocabulary writes one)"
            )

    def _find(self, token: str) -> int | None:
        """The id of a token by its spelling, or None."""
        full = self._base.token_to_id(token)
        return full if full is None or self._full is None else self._compact.get(full)

    @property
    def size(self) -> int:
        """The number of ids, which is the number of rows of the model's embedding table."""
        return self._base.get_vocab_size() if self._full is None else len(self._full)

    def id_of(self, token: str) -> int:
        """The id of one token by its spelling, for example '<|im_end|>'."""
        token_id = self._find(token)
        if token_id is None:
            raise KeyError(f"the vocabulary has no token {token!r}")
        return token_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text. The result never has special or added tokens, even if the text spells one.

        Raises:
            ValueError: the text has half of a surrogate pair, which is no character.
        """
        try:
            encoding = self._text.encode(text, add_special_tokens=False)
        except TypeError as error:  # Rust's strings are UTF-8.
            wrong = f"a {type(text).__name__} is not text"
            if isinstance(text, str):
                wrong = f"{text[:60]!r}: {surrogate_in(text)}"
            raise ValueError(wrong) from error
        if self._full is None and self._control.isdisjoint(encoding.ids):
            return encoding.ids
        ids: list[int] = []
        for full, token, (start, _) in zip(
            encoding.ids, encoding.tokens, encoding.offsets, strict=True
        ):
            if full in self._control:  # A word of the vocabulary that is a control token too.
                ids += [self._bytes[character] for character in token]
            elif self._full is None:
                ids.append(full)
            elif full in self._compact:
                ids.append(self._compact[full])
            else:
                self._warn(text, start)
                ids += [self._bytes[character] for character in token]
        return ids

    def _warn(self, text: str, start: int) -> None:
        """Warns about the word at or after character `start`, once per word."""
        runs = re.finditer(r"\S+", text)
        word = next((run.group() for run in runs if run.end() > start), text[start:])
        if word not in self._warned:
            self._warned.add(word)
            warnings.warn(
                f"{word!r} is not in the compact vocabulary of {self.size} tokens: it is spelled in "
                "bytes, and a model trained with that vocabulary has not seen it",
                stacklevel=3,
            )

    def decode(self, ids: Iterable[SupportsInt], *, skip_special: bool = True) -> str:
        """The text of ids; `skip_special` leaves out special tokens. Invalid UTF-8 becomes U+FFFD."""
        kept = [int(i) for i in ids if not (skip_special and int(i) in self._special_ids)]
        wrong = [i for i in kept if not 0 <= i < self.size]
        if wrong:
            raise ValueError(f"ids {wrong[:5]} are outside the vocabulary of {self.size}")
        full = kept if self._full is None else [self._full[i] for i in kept]
        return self._base.decode(full, skip_special_tokens=False)

    def decode_parts(self, parts: Iterable[Iterable[SupportsInt]]) -> Iterator[str]:
        """The text of ids that arrive in parts, one piece for every part that completes one.

        Pieces that were yielded do not change: bytes that do not form a character yet wait for the next part, or for
        the end. All pieces together are `decode` of all ids.
        """
        ids: list[SupportsInt] = []
        whole, yielded = "", 0
        for part in parts:
            ids += part
            whole = self.decode(ids)
            # An unfinished character looks like an invalid one until more bytes follow.
            ready = len(whole.rstrip("\ufffd"))
            if ready > yielded:
                yield whole[yielded:ready]
                yielded = ready
        if whole[yielded:]:
            yield whole[yielded:]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        grids: Sequence[Grid] = (),
        answer: bool = False,
        system: str = DEFAULT_SYSTEM,
        until: int | None = None,
    ) -> list[Segment]:
        """Messages in Qwen2.5's chat template, as segments for `sequence.build` (model.md 5, 10).

        Args:
            messages: dicts with `role` ('system', 'user' or 'assistant') and `content`, a string or a list of parts
                (messages.py). Where a content has an image, a clean visual slot is inserted. The last message may be
                an assistant's that ends with an image: the image to generate. An assistant's message with `learn`
                False is context: it has no text loss, and its images are clean.
            grids: the latent extents of the images, in order; as many as there are `<image>` tags.
            answer: end with the opening of an assistant's turn, for generation.
            system: the system message, unless the first message is one.
            until: the number of the assistant's image, among all images, that is generated; what follows it is left
                out. If it ends its message, so does that. None takes all messages.

        Returns:
            Segments; the assistant's turns and the token that ends each have a text loss, unless `learn` is False.

        Raises:
            ValueError: an unknown role, invalid parts, a number of images that differs from that of grids, or `until`
                is no image of the assistant's.
        """
        turns = list(messages)
        if not turns or turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
        contents: list[list[str | None]] = [
            [unescape(turn["content"])]
            if turn["role"] == "system" and isinstance(turn["content"], str)
            else parts_of(turn["content"], f"messages[{index}].content")
            for index, turn in enumerate(turns)
        ]
        tags = sum(parts.count(None) for parts in contents)
        if tags != len(grids):
            raise ValueError(
                f"the messages have {tags} {IMAGE_TAG} tags, but {len(grids)} images were given; write {ESCAPED_TAG} "
                f"for the text {IMAGE_TAG}"
            )
        pictures = iter(enumerate(grids))
        segments: list[Segment] = []
        for turn, parts in zip(turns, contents, strict=True):
            role = turn["role"]
            if role not in ("system", "user", "assistant"):
                raise ValueError(
                    f"a message has role {role!r}; it must be system, user or assistant"
                )
            if role == "assistant":
                last = turn is turns[-1] and until is None
                answer_segments, is_end = self._answer(
                    parts, turn.get("learn", True), pictures, last, until
                )
                segments += answer_segments
                if is_end:
                    return segments
                continue
            ids, before = [self.special.bos], f"{role}\n"
            for part in parts:
                if part is not None:
                    before += part
                    continue
                if role == "system":
                    raise ValueError("a system message has an image; images are the user's")
                ids += [*self.encode(before), self.special.boi]
                segments += [Text(tuple(ids)), Visual(next(pictures)[1])]
                ids, before = [self.special.eoi], ""
            ids += [*self.encode(before), self.special.eos, *self.encode("\n")]
            segments.append(Text(tuple(ids)))
        if until is not None:
            raise ValueError(f"until is {until}, which is no image of the assistant's")
        if answer:
            segments.append(Text((self.special.bos, *self.encode("assistant\n"))))
        return segments

    def _answer(
        self,
        parts: Sequence[str | None],
        learn: bool,
        pictures: Iterator[tuple[int, Grid]],
        last: bool,
        until: int | None,
    ) -> tuple[list[Segment], bool]:
        """The segments of an assistant's message, and whether the sequence ends in it; `last`: an image at its end is
        generated."""
        segments: list[Segment] = [Text((self.special.bos, *self.encode("assistant\n")))]
        ids: list[int] = []
        is_end = False
        merged = _merged(parts)
        for index, part in enumerate(merged):
            if part is not None:
                ids += self.encode(part)
                continue
            number, grid = next(pictures)
            is_end = number == until
            behind = merged[index + 1 :]
            is_target = is_end or (last and learn and not behind)
            segments.append(Text((*ids, self.special.boi), learn=learn))
            segments += [Visual(grid, target=is_target), Text((self.special.eoi,))]
            ids = []
            if is_end and behind:
                return segments, True
        segments.append(Text((*ids, self.special.eos), learn=learn))
        segments.append(Text(tuple(self.encode("\n"))))
        return segments, is_end


def _merged(parts: Sequence[str | None]) -> list[str | None]:
    """A message's texts and images (None): adjacent texts are one, and white space behind a last image is left out."""
    merged: list[str | None] = []
    for part in parts:
        before = merged[-1] if merged else None
        if part is not None and before is not None:
            merged[-1] = before + part
        else:
            merged.append(part)
    last = merged[-1] if merged else None
    if len(merged) > 1 and last is not None and not last.strip():
        merged.pop()
    return merged
