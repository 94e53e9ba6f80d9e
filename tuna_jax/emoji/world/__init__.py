"""Emoji art as a TFDS data set: the builder, the demo's names, and `load_art`."""

from tuna_jax.emoji.world.art import all_names, data_source, load_art
from tuna_jax.emoji.world.nouns import NOUNS, Noun, noun

__all__ = ["NOUNS", "Noun", "all_names", "data_source", "load_art", "noun"]
