"""The emoji world: scenes, edits, clips and dialogues with their texts; and the art, a TFDS data set."""

from tuna_jax.emoji.world.art import all_names, data_source, load_art
from tuna_jax.emoji.world.nouns import NOUNS, Noun, noun

__all__ = ["NOUNS", "Noun", "all_names", "data_source", "load_art", "noun"]
