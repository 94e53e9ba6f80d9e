"""Key maps: which keys of a data set's rows are which keys of the manifests' formats, and presets for public data.

    {"image": "path", "caption": "prompt"}      the row's `path` is the image, its `prompt` the caption

Keys that the map does not name keep their names. A value may lie deeper: `image.bytes`, `texts.0`. An empty value drops
a key: `{"caption": ""}`. `question` and `answer` make a conversation of two turns. `width`, `height` (pixels of the
first image or video, of an edit's target) and `tokens` (of the caption or instruction, by the run's tokenizer) spare
the scan a look at the files; they are used only if the map names them.

Presets (`PRESETS`) are the keys of public code:

    tuna-2      the released code: image and caption, conversations, raw_image, out_image and instruction, video
    llava       LLaVA: image (one or several) and conversations, as JSON arrays or as Hugging Face data sets
    sharegpt    ShareGPT: conversations from human and gpt; other names of assistants; a first turn of the assistant's,
                whose question was lost, is left out
    bagel       BAGEL: image and captions (a JSON text of several), image_list and instruction_list, or image and
                conversations. Of n captions example i has number i mod n; of an edit in n steps it has step i mod n
    show-o2     Show-o2: path and prompt, or image and conversations
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import Size
from tuna_jax.data.sources.base import Example

MEDIA = ("image", "video", "raw_image", "out_image")
KEYS = (
    *MEDIA,
    *("caption", "instruction", "conversations", "system", "question", "answer"),
    *("images", "videos", "messages"),
)
"""The keys of the formats, and their other names."""
DECLARED = ("width", "height", "tokens")
"""What a key map may name so that the scan need not open files."""

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a row says of itself, for the scan; None where it says nothing."""

    width: int | None = None
    height: int | None = None
    tokens: int | None = None


class FieldMap:
    """A key map with its preset.

    Args:
        fields: format key -> key of the row, '' for none.
        preset: a name of `PRESETS`, or '' for none; `fields` is applied to what the preset makes of a row.

    Raises:
        ValueError: an unknown key or preset; the message lists the known ones.
    """

    def __init__(self, fields: Mapping[str, str] | None = None, preset: str = ""):
        self.fields, self.preset = dict(fields or {}), preset
        known = (*KEYS, *DECLARED)
        for key, path in self.fields.items():
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(
                    f"fields maps {key!r}, which is no key of an example{hint} The keys are {', '.join(known)}"
                )
            if not isinstance(path, str):
                raise ValueError(f"fields maps {key!r} to {path!r}; give the name of a key")
        if preset and preset not in PRESETS:
            raise ValueError(
                f"format is {preset!r}; the formats are {', '.join(PRESETS)}; or map keys with fields"
            )

    @property
    def declares(self) -> tuple[str, ...]:
        """Which of `width`, `height` and `tokens` the rows have."""
        return tuple(key for key in DECLARED if self.fields.get(key))

    @property
    def identity(self) -> str:
        """Changes when the map does; '' of the empty one."""
        return json.dumps([self.preset, self.fields], sort_keys=True) if self else ""

    def __bool__(self) -> bool:
        return bool(self.fields or self.preset)

    def columns(self, known: Iterable[str]) -> list[str]:
        """Those of a table's columns that examples are made of, in the table's order.

        Raises:
            ValueError: the map names a column that does not exist, or no column has a meaning.
        """
        known = list(known)
        used = {path.split(".")[0]: key for key, path in self.fields.items() if path}
        for name, key in used.items():
            if name not in known and not self.preset:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(
                    f"fields maps {key!r} to the column {name!r}, which does not exist{hint} "
                    f"The columns are {', '.join(known)}"
                )
        own = {key for key in KEYS if key not in self.fields}
        meant = own | set(used) | set(_PRESET_COLUMNS.get(self.preset, ()))
        columns = [name for name in known if name in meant]
        if not columns:
            raise ValueError(
                f"none of the columns {', '.join(known)} has a meaning: map them, for example "
                "fields={'image': 'COLUMN', 'caption': 'COLUMN'}, or name a format"
            )
        return columns

    def __call__(self, row: Row, number: int) -> dict[str, Any]:
        """A row with the keys of the formats.

        Args:
            row: the row.
            number: of the example, which chooses among several texts.

        Raises:
            Fault: a mapped key is not in the row, or a preset's value is not what it should be.
        """
        if self.preset:
            row = PRESETS[self.preset](row, number)
        paths = [path for path in self.fields.values() if path]
        taken = {path if path in row else path.split(".")[0] for path in paths}
        entry = {k: v for k, v in row.items() if k not in self.fields and k not in taken}
        for key, path in self.fields.items():
            if path and key not in DECLARED:
                value = _follow(row, path)
                if isinstance(value, (list, tuple)) and key in ("caption", "instruction") and value:
                    value = value[number % len(value)]
                entry[key] = value
        if "question" in entry or "answer" in entry:
            entry["conversations"] = [
                {"from": "human", "value": entry.pop("question", None)},
                {"from": "gpt", "value": entry.pop("answer", None)},
            ]
        return entry

    def declared(self, row: Row) -> Declared:
        """What the row says of its size and tokens, where it says so with whole numbers of at least 1."""
        values = {}
        for key in self.declares:
            try:
                value = _follow(row, self.fields[key])
            except Fault:
                continue
            if (
                isinstance(value, float) and value.is_integer()
            ):  # As pandas writes columns with gaps.
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
                values[key] = value
        return Declared(**values)


def declare(example: Example, declared: Declared) -> Example:
    """The example with what its row says of its size and tokens."""
    size = None
    if example.media and declared.width and declared.height:
        size = Size(declared.height, declared.width)
    return dataclasses.replace(example, size=size, tokens=declared.tokens)


def _follow(row: Row, path: str) -> Any:
    """The value at a path of keys and numbers; a key that has dots itself is found first."""
    if path in row:
        return row[path]
    value: Any = row
    try:
        for step in path.split("."):
            value = value[int(step) if step.isdigit() and isinstance(value, list) else step]
    except (KeyError, IndexError, TypeError) as error:
        raise Fault("unknown_format", f"the example has no {path}") from error
    return value


def _same(row: Row, number: int) -> Row:
    del number
    return row


def _sharegpt(row: Row, number: int) -> Row:
    """Other assistants are the assistant; a first turn of its own is left out."""
    del number
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return row
    other = ("chatgpt", "bard", "bing", "bot", "model")
    named = [{**turn, "from": "gpt"} if turn.get("from") in other else turn for turn in turns]
    begin = next((i for i, turn in enumerate(named) if turn.get("from") != "gpt"), 0)
    return {**row, "conversations": named[begin:]}


def _bagel(row: Row, number: int) -> Row:
    """One caption of several, or one step of an edit."""
    row = dict(row)
    if row.get("image_list") is not None:
        images, texts = row.pop("image_list"), row.pop("instruction_list", None)
        if not isinstance(images, list) or len(images) < 2:
            raise Fault("wrong_image_count", "image_list has fewer than the two images of an edit")
        if not isinstance(texts, list) or not texts:
            raise Fault("empty_text", "instruction_list is missing or empty")
        step = number % min(len(images) - 1, len(texts))
        row["raw_image"], row["out_image"] = images[step], images[step + 1]
        row["instruction"] = _one_of(texts[step], number, "instruction_list")
    elif row.get("captions") is not None:
        captions = row.pop("captions")
        if isinstance(captions, str) and captions.lstrip().startswith(("{", "[")):
            try:
                captions = json.loads(captions)
            except ValueError as error:
                raise Fault("malformed_json", f"captions is not JSON: {error}") from error
        row["caption"] = _one_of(captions, number, "captions")
    return row


def _one_of(texts: Any, number: int, key: str) -> Any:
    if isinstance(texts, Mapping):
        texts = list(texts.values())
    if isinstance(texts, list):
        if not texts:
            raise Fault("empty_text", f"{key} is empty")
        return texts[number % len(texts)]
    return texts


def _show_o2(row: Row, number: int) -> Row:
    del number
    return {{"path": "image", "prompt": "caption"}.get(key, key): v for key, v in row.items()}


PRESETS: dict[str, Callable[[Row, int], Row]] = {
    "tuna-2": _same,
    "llava": _same,
    "sharegpt": _sharegpt,
    "bagel": _bagel,
    "show-o2": _show_o2,
}
_PRESET_COLUMNS = {
    "bagel": ("captions", "image_list", "instruction_list"),
    "show-o2": ("path", "prompt"),
}
