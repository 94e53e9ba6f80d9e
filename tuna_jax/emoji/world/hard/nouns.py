"""The nouns of the hard world: 71 with the colours of their art, and 24 that have one of six colours.

The first were selected as in the easy world: no two have both a similar shape and similar colours. The second have a
shape that names them in any colour. `python -m tuna_jax.emoji.evaluation.hard.look` measures which are mistaken
for which.
"""

from __future__ import annotations

import dataclasses

from tuna_jax.emoji.world.nouns import NOUNS

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 46, 58),
    "yellow": (250, 200, 30),
    "green": (30, 140, 60),
    "blue": (40, 85, 220),
    "purple": (125, 55, 185),
    "black": (45, 45, 50),
}


@dataclasses.dataclass(frozen=True)
class HardNoun:
    """A noun: the official emoji name, the singular, the plural, and whether it has one of COLOURS."""

    official: str
    singular: str
    plural: str
    coloured: bool


_COLOURED = (
    "red heart, heart",
    "star",
    "t-shirt, shirt",
    "umbrella",
    "bell",
    "crown",
    "automobile, car",
    "key",
    "gem stone, diamond",
    "cloud",
    "droplet, drop",
    "crescent moon, moon",
    "high voltage, flash, flashes",
    "maple leaf, leaf, leaves",
    "anchor",
    "chair",
    "butterfly, butterfly, butterflies",
    "teapot",
    "dress, dress, dresses",
    "closed book, book",
    "top hat, hat",
    "gear",
    "wrapped gift, gift",
    "tropical fish, fish, fish",
)
_FURTHER = (
    "unicorn",
    "rabbit face, rabbit",
    "koala",
    "tiger face, tiger",
    "snail",
    "honeybee, bee",
    "parrot",
    "duck",
    "shark",
    "spider",
    "taco",
    "lollipop",
    "tent",
    "cupcake",
    "birthday cake, cake",
    "volcano, volcano, volcanoes",
    "bicycle",
    "castle",
    "bomb",
    "television",
    "snowman, snowman, snowmen",
)


def _noun(text: str, coloured: bool) -> HardNoun:
    official, *forms = text.split(", ")
    singular = forms[0] if forms else official
    plural = forms[1] if len(forms) > 1 else f"{singular}s"
    return HardNoun(official, singular, plural, coloured)


_TINTED = tuple(_noun(text, coloured=True) for text in _COLOURED)
_OFFICIAL = {item.official for item in _TINTED}
HARD_NOUNS: tuple[HardNoun, ...] = (
    *_TINTED,
    *(
        HardNoun(item.official, item.singular, item.plural, coloured=False)
        for item in NOUNS
        if item.official not in _OFFICIAL
    ),
    *(_noun(text, coloured=False) for text in _FURTHER),
)
NAMES = tuple(item.singular for item in HARD_NOUNS)
COLOURED_NAMES = tuple(item.singular for item in HARD_NOUNS if item.coloured)
_BY_WORD = {item.singular: item for item in HARD_NOUNS}


def hard_noun(word: str) -> HardNoun:
    """The noun with this singular.

    Raises:
        KeyError: an unknown word; the message lists the known ones.
    """
    if word not in _BY_WORD:
        raise KeyError(f"{word!r} is not a noun of the hard world; the nouns are {sorted(NAMES)}")
    return _BY_WORD[word]


def variants(names: tuple[str, ...] = NAMES) -> tuple[tuple[str, str], ...]:
    """All (name, colour) of these names; the colour is '' for a noun with the colours of its art."""
    return tuple(
        (name, colour)
        for name in names
        for colour in (COLOURS if hard_noun(name).coloured else ("",))
    )
