"""The nouns of the demo: 64 emoji that are easy to name at a size of 28 pixels.

They were selected by eye from a contact sheet: no two have both a similar shape and similar colours, none has thin
lines, and no two are faces that differ only in the mouth. Each has an official name (the key of the art), and a short
common noun for captions, questions and answers.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Noun:
    """A noun: the official emoji name, the singular, and the plural."""

    official: str
    singular: str
    plural: str

    @property
    def article(self) -> str:
        """'a' or 'an'; the first letter of the noun determines it for all nouns of the demo."""
        return "an" if self.singular[0] in "aeiou" else "a"

    @property
    def one(self) -> str:
        """The noun with its article: 'a red apple', 'an owl'."""
        return f"{self.article} {self.singular}"


_IRREGULAR = {
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "fish": "fish",
    "potato": "potatoes",
    "foot": "feet",
}


def _noun(official: str, singular: str | None = None) -> Noun:
    """A noun with its regular plural, unless it is listed as irregular."""
    word = singular or official
    ending = "es" if word.endswith(("s", "x", "ch", "sh")) else "s"
    return Noun(official, word, _IRREGULAR.get(word, word + ending))


NOUNS: tuple[Noun, ...] = (
    # Food.
    _noun("red apple"),
    _noun("banana"),
    _noun("watermelon"),
    _noun("strawberry"),
    _noun("pineapple"),
    _noun("lemon"),
    _noun("carrot"),
    _noun("mushroom"),
    _noun("pizza"),
    _noun("hamburger"),
    _noun("doughnut"),
    _noun("croissant"),
    _noun("avocado"),
    _noun("eggplant"),
    # Animals.
    _noun("dog face", "dog"),
    _noun("cat face", "cat"),
    _noun("pig face", "pig"),
    _noun("frog"),
    _noun("panda"),
    _noun("lion"),
    _noun("fox"),
    _noun("penguin"),
    _noun("owl"),
    _noun("octopus"),
    _noun("turtle"),
    _noun("butterfly"),
    _noun("lady beetle", "ladybug"),
    _noun("crab"),
    _noun("tropical fish", "fish"),
    _noun("whale"),
    _noun("elephant"),
    _noun("baby chick", "chick"),
    _noun("flamingo"),
    _noun("T-Rex", "dinosaur"),
    # Vehicles.
    _noun("automobile", "car"),
    _noun("bus"),
    _noun("airplane"),
    _noun("rocket"),
    _noun("sailboat"),
    _noun("helicopter"),
    _noun("tractor"),
    _noun("locomotive", "train"),
    # Objects.
    _noun("umbrella"),
    _noun("guitar"),
    _noun("drum"),
    _noun("alarm clock", "clock"),
    _noun("camera"),
    _noun("wrapped gift", "gift"),
    _noun("crown"),
    _noun("top hat"),
    _noun("bell"),
    _noun("anchor"),
    _noun("basketball"),
    _noun("soccer ball"),
    _noun("chair"),
    _noun("t-shirt", "shirt"),
    # Symbols and nature.
    _noun("star"),
    _noun("red heart", "heart"),
    _noun("rainbow"),
    _noun("cactus"),
    _noun("sunflower"),
    _noun("evergreen tree", "tree"),
    _noun("robot"),
    _noun("gem stone", "diamond"),
)

NEW_NOUNS: tuple[Noun, ...] = (
    _noun("red circle", "circle"),
    _noun("purse"),
    _noun("sponge"),
    _noun("ringed planet", "planet"),
    _noun("wind chime", "chime"),
    _noun("potato"),
    _noun("pill"),
    _noun("telephone receiver", "phone"),
    _noun("axe"),
    _noun("foot"),
    _noun("triangular ruler", "ruler"),
    _noun("running shoe", "shoe"),
    _noun("chess pawn", "pawn"),
    _noun("saxophone", "sax"),
    _noun("ear"),
    _noun("balloon"),
)
"""16 nouns that no model of the package has seen: an adapter learns them (experiments/emoji/lora.py).

The frozen VAE was trained on NOUNS; of other emoji, these are among those that the judges still name after it. The
compact vocabularies have no tokens of these words, which are therefore spelled in bytes."""

_BY_WORD = {item.singular: item for item in (*NOUNS, *NEW_NOUNS)}


def noun(word: str) -> Noun:
    """The noun with this singular, of NOUNS or NEW_NOUNS.

    Raises:
        KeyError: an unknown word; the message lists the known ones.
    """
    if word not in _BY_WORD:
        raise KeyError(f"{word!r} is not a noun of the demo; the nouns are {sorted(_BY_WORD)}")
    return _BY_WORD[word]
