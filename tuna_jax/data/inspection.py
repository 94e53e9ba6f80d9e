"""What is in a source of examples: counts, sizes, texts, languages, what would be invalid, and some of its pictures."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tuna_jax.data.invalid_examples import InvalidExample, report_as_invalid
from tuna_jax.data.media.image import Encoded, Medium, Size, read_image
from tuna_jax.data.media.video import read_video
from tuna_jax.data.mixture.bucketing import SIZES_512, nearest
from tuna_jax.data.mixture.scan import picture_size
from tuna_jax.data.mixture.tokenize_example import ACCEPTS, Task, check_task
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.utils.regular_files import with_retries

_LISTED = 5  # Invalid examples of a kind that are named.
_BINS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SIDES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_THUMBNAIL = Size(128, 128)
# Frequent words that tell languages of the Latin script apart.
_WORDS: dict[str, frozenset[str]] = {
    "English": frozenset(
        ["the", "of", "and", "is", "with", "in", "on", "this", "that", "are", "it", "what", "to"]
    ),
    "German": frozenset(
        [
            "der",
            "die",
            "das",
            "und",
            "ist",
            "mit",
            "ein",
            "eine",
            "auf",
            "den",
            "von",
            "nicht",
            "zu",
        ]
    ),
    "French": frozenset(
        ["le", "la", "les", "et", "est", "avec", "une", "un", "des", "du", "dans", "sur", "que"]
    ),
    "Spanish": frozenset(
        ["el", "la", "los", "y", "es", "con", "una", "un", "las", "del", "en", "por", "que"]
    ),
    "Portuguese": frozenset(
        ["o", "os", "e", "é", "com", "uma", "um", "das", "do", "em", "por", "não", "que"]
    ),
    "Italian": frozenset(
        ["il", "lo", "gli", "e", "è", "con", "una", "un", "della", "di", "che", "per", "non"]
    ),
    "Dutch": frozenset(
        ["de", "het", "een", "en", "is", "met", "van", "op", "niet", "dat", "zijn", "te"]
    ),
}
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = {
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic script",
    "ARABIC": "Arabic script",
    "DEVANAGARI": "Devanagari script",
    "GREEK": "Greek",
    "HEBREW": "Hebrew",
    "THAI": "Thai",
}


@dataclasses.dataclass(frozen=True)
class Bar:
    """A row of a histogram: its label, count, and share of the largest count."""

    label: str
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        source: its name.
        kind: of the source, such as 'ParquetExamples'.
        examples: how many it has.
        looked_at: how many of them were read.
        kinds: number of examples by format.
        tasks: by task, how many examples it accepts.
        invalid: kind -> (count, [(line, reason)]).
        ignored: keys without a meaning and their counts.
        widths, heights: histograms, in pixels of the shorter and the longer side.
        shapes: examples by the nearest of TUNA's five sizes at 512 pixels.
        small: how many images have fewer pixels than 512x512.
        tokens: histogram of text lengths.
        longest: the most tokens of a text.
        languages: examples by language or script, a guess.
        repeated: texts that occur more than once, and how often.
        notices: sentences on the source itself.
        sheet: (label, uint8 [h, w, 3]) of some examples.
    """

    source: str
    kind: str
    examples: int
    looked_at: int
    kinds: list[Bar]
    tasks: dict[str, int]
    invalid: dict[str, tuple[int, list[tuple[int, str]]]]
    ignored: dict[str, int]
    widths: list[Bar]
    heights: list[Bar]
    shapes: list[Bar]
    small: int
    tokens: list[Bar]
    longest: int
    languages: list[Bar]
    repeated: list[tuple[str, int]]
    notices: list[str]
    sheet: list[tuple[str, UInt8[np.ndarray, "h w 3"]]]

    @property
    def unusable(self) -> int:
        """The number of invalid examples among those that were looked at."""
        return sum(count for count, _ in self.invalid.values())

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        values = dataclasses.asdict(dataclasses.replace(self, sheet=[]))
        del values["sheet"]
        return values


def language(text: str) -> str:
    """The language of a text by its script and frequent words; 'other' if they do not say."""
    scripts: collections.Counter[str] = collections.Counter()
    for character in text[:400]:
        if character.isalpha():
            scripts[unicodedata.name(character, "?").split()[0]] += 1
    if not scripts:
        return "no words"
    if scripts["HIRAGANA"] + scripts["KATAKANA"]:
        return "Japanese"
    script = scripts.most_common(1)[0][0]
    if script != "LATIN":
        return _SCRIPTS.get(script, "other")
    words = [word.lower() for word in _WORD.findall(text[:400])]
    hits = {name: sum(word in known for word in words) for name, known in _WORDS.items()}
    best = max(hits, key=lambda name: hits[name])
    if not hits[best]:
        return "Latin script, too short to say"
    return best if list(hits.values()).count(hits[best]) == 1 else "Latin script, unclear"


@dataclasses.dataclass
class _Found:
    """One example's numbers."""

    example: Example
    size: Size
    tokens: int
    text: str


def inspect(
    source: ExampleSource,
    tokenizer: Tokenizer,
    *,
    rows: int = 10_000,
    pictures: int = 32,
    threads: int = 8,
    task: Task | None = None,
) -> Inspection:
    """Looks at evenly spaced examples of a source.

    Args:
        source: the examples.
        tokenizer: counts tokens.
        rows: the most examples to look at; 0 is all.
        pictures: the most examples on the contact sheet.
        threads: files that are read at the same time.
        task: what the examples are for: others are invalid; None accepts every kind.
    """
    count = len(source)
    step = max(1, -(-count // rows)) if rows else 1
    numbers = range(0, count, step)

    def look(number: int) -> _Found | InvalidExample:
        return with_retries(lambda: _look(source, number, tokenizer, task))

    found: list[_Found] = []
    invalid: dict[str, tuple[int, list[tuple[int, str]]]] = {}
    ignored: collections.Counter[str] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(numbers), 512):
            for result in pool.map(look, numbers[begin : begin + 512]):
                if isinstance(result, InvalidExample):
                    total, listed = invalid.get(result.kind, (0, []))
                    listed = [*listed, (result.line, result.reason)][:_LISTED]
                    invalid[result.kind] = (total + 1, listed)
                    continue
                ignored.update(result.example.ignored)
                # Media that are bytes would take the memory of the whole source.
                found.append(dataclasses.replace(result, example=_light(result.example)))
    sizes = [one.size for one in found if one.size.height]
    kinds = collections.Counter(one.example.kind for one in found)
    texts = collections.Counter(one.text for one in found if one.text)
    return Inspection(
        source=source.name,
        kind=type(source).__name__,
        examples=count,
        looked_at=len(numbers),
        kinds=_bars(kinds.most_common()),
        tasks={
            name: sum(kinds[kind] for kind in accepted)
            for name, accepted in ACCEPTS.items()
            if any(kinds[kind] for kind in accepted)
        },
        invalid=dict(sorted(invalid.items(), key=lambda item: -item[1][0])),
        ignored=dict(ignored.most_common(20)),
        widths=_histogram([min(size.height, size.width) for size in sizes], _SIDES),
        heights=_histogram([max(size.height, size.width) for size in sizes], _SIDES),
        shapes=_shapes(sizes),
        small=sum(size.height * size.width < 512 * 512 for size in sizes),
        tokens=_histogram([one.tokens for one in found], _BINS),
        longest=max((one.tokens for one in found), default=0),
        languages=_bars(collections.Counter(language(one.text) for one in found).most_common()),
        repeated=[(text, times) for text, times in texts.most_common(5) if times > 1],
        notices=_notices(source),
        sheet=_sheet(source, numbers, found, pictures),
    )


def _light(example: Example) -> Example:
    return dataclasses.replace(example, media=())


def _look(
    source: ExampleSource, number: int, tokenizer: Tokenizer, task: Task | None
) -> _Found | InvalidExample:
    try:
        example = source[number]
        with report_as_invalid(source.name, source.line(number)):
            if task is not None:
                check_task(example, task)
            size = picture_size(example)
            text = example.text or "\n".join(
                turn.text for turn in example.turns if turn.role != "system"
            )
            return _Found(example, size, len(tokenizer.encode(text)), text)
    except InvalidExample as invalid:
        return invalid


def _notices(source: ExampleSource) -> list[str]:
    """What is to be known of the source's files."""
    notices = []
    shards: Sequence[Any] = getattr(source, "shards", ())
    if shards:
        broken = [shard for shard in shards if shard.broken]
        notices.append(f"{len(shards)} files, {len(broken)} of them broken")
        notices += [shard.broken for shard in broken[:_LISTED]]
    group_rows = getattr(source, "group_rows", None)
    if group_rows is not None and group_rows() > 16:
        notices.append(
            f"row groups have up to {group_rows()} rows: shuffled training reads a whole group per row; "
            "`tuna-jax data convert` makes files of single rows"
        )
    return notices


def _bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    listed = list(counts)
    most = max((count for _, count in listed), default=1) or 1
    return [Bar(label, count, count / most) for label, count in listed]


def _histogram(values: Sequence[int], edges: Sequence[int]) -> list[Bar]:
    """Counts between edges; the ends without any are left out."""
    if not values:
        return []
    at = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    labels = [
        f"below {edges[0]}",
        *(f"{a} to {b - 1}" for a, b in zip(edges, edges[1:], strict=False)),
        f"from {edges[-1]}",
    ]
    used = np.flatnonzero(at)
    return _bars([(labels[i], int(at[i])) for i in range(used[0], used[-1] + 1)])


def _shapes(sizes: Sequence[Size]) -> list[Bar]:
    if not sizes:
        return []
    heights, widths = (np.array([getattr(s, key) for s in sizes]) for key in ("height", "width"))
    at = np.bincount(nearest(heights, widths, SIZES_512), minlength=len(SIZES_512))
    return _bars([(str(size), int(count)) for size, count in zip(SIZES_512, at, strict=True)])


def _sheet(
    source: ExampleSource, numbers: range, found: Sequence[_Found], pictures: int
) -> list[tuple[str, np.ndarray]]:
    """Thumbnails of evenly spaced valid examples, of the last image of each (of an edit, its result)."""
    lines = {source.line(number): number for number in numbers}
    usable = [one for one in found if one.size.height]
    chosen = usable[:: max(1, -(-len(usable) // pictures))] if pictures else []
    sheet = []
    for one in chosen:
        try:
            example = source[lines[one.example.line]]
            with report_as_invalid(source.name, example.line):
                thumbnails = [_thumbnail(medium, example) for medium in example.media]
        except InvalidExample:
            continue  # Its header was whole, and its content is not; training will list it.
        image = np.concatenate(thumbnails[:3], axis=1)
        sheet.append((f"{one.example.line}: {one.text[:160]}", image))
    return sheet


def _thumbnail(medium: Medium, example: Example) -> np.ndarray:
    if isinstance(medium, Encoded):
        return np.full((_THUMBNAIL.height, _THUMBNAIL.width, 3), 128, np.uint8)
    if example.kind in VIDEO_KINDS:
        return read_video(medium, _THUMBNAIL, 1)[0]
    return read_image(medium, _THUMBNAIL)


def summary(found: Inspection) -> str:
    """The inspection as lines for a terminal."""

    def listed(bars: Sequence[Bar]) -> str:
        return ", ".join(f"{bar.label} {bar.count}" for bar in bars if bar.count) or "none"

    lines = [
        f"{found.source}: {found.examples} examples ({found.kind}), {found.looked_at} looked at",
        f"formats: {listed(found.kinds)}",
        f"tasks: {', '.join(f'{task} {count}' for task, count in found.tasks.items()) or 'none'}",
        f"shorter side: {listed(found.widths)}",
        f"tokens: {listed(found.tokens)}; the longest text has {found.longest}",
        f"languages (a guess): {listed(found.languages)}",
        f"invalid: {found.unusable} of {found.looked_at}",
    ]
    for kind, (count, examples) in found.invalid.items():
        line, reason = examples[0]
        lines.append(f"    {count} {kind}, such as line {line}: {reason}")
    ignored: Mapping[str, int] = found.ignored
    if ignored:
        lines.append("ignored: " + ", ".join(f"{key} ({n})" for key, n in ignored.items()))
    return "\n".join([*lines, *found.notices])
