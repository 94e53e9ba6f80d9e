"""Captions of the hard world claim what their scene has, leave open what they should, and questions have one answer."""

import dataclasses
import warnings

import numpy as np
import pytest

from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.evaluation.hard.judge import is_right, seen_in, verdicts
from tuna_jax.emoji.world.captions import sentence
from tuna_jax.emoji.world.hard.captions import (
    KINDS,
    bare_caption,
    caption,
    full_caption,
    hard_questions,
    partial_caption,
    true_relations,
)
from tuna_jax.emoji.world.hard.scenes import Group, HardScene, HardSceneSource


@pytest.fixture(scope="module")
def scenes():
    train, three = HardSceneSource(), HardSceneSource("test_three")
    return [train[i] for i in range(300)] + [three[i] for i in range(60)]


def scene(*groups, layout="pair"):
    return HardScene(layout, "blue", (125, 190, 245), groups, 96)


HEART = Group("heart", "red", "small", (3,))
STAR = Group("star", "blue", "large", (5,))
DOG = Group("dog", "", "small", (4,))


def test_every_caption_is_true_of_its_scene(scenes):
    random = np.random.default_rng(0)
    for item in scenes:
        for _ in range(3):
            text, claims = caption(item, random, 0.5)
            assert is_right(claims, seen_in(item)), text


def test_a_full_caption_leaves_nothing_open(scenes):
    for item in scenes:
        _, claims = full_caption(item, np.random.default_rng(0))
        assert claims.ground == item.ground
        for mention in claims.mentions:
            group = next(g for g in item.groups if g.name == mention.name)
            assert (mention.colour, mention.size) == (group.colour, group.size)
            assert (mention.cell is not None) == (item.layout in ("single", "pair", "three"))


def test_partial_captions_leave_each_thing_open_about_half_of_the_time(scenes):
    random = np.random.default_rng(0)
    claims = [partial_caption(item, random).claims for item in scenes]
    mentions = [m for c in claims for m in c.mentions]
    assert 0.4 < np.mean([c.ground is None for c in claims]) < 0.6
    assert 0.4 < np.mean([m.size is None for m in mentions]) < 0.6
    assert 0.4 < np.mean([m.colour is None for m in mentions if m.colour != ""]) < 0.6
    possible = [bool(true_relations(item)) for item in scenes]
    related = [bool(c.relations) for c, able in zip(claims, possible, strict=True) if able]
    assert 0.4 < np.mean(related) < 0.6
    assert not any(c.relations for c, able in zip(claims, possible, strict=True) if not able)


def test_the_texts():
    pair = scene(HEART, STAR)
    assert full_caption(pair).text == (
        "a small red heart in the middle left and a large blue star in the middle right, on a blue background"
    )
    assert bare_caption(pair).text == "a heart and a star"
    three = scene(DOG, HEART, STAR, layout="three")
    only = {"relation": 1.0, "size": 0.0, "colour": 0.0, "ground": 0.0}
    texts = {partial_caption(three, np.random.default_rng(i), only).text for i in range(60)}
    assert "a dog between a heart and a star" in texts
    assert "a dog to the right of a heart and to the left of a star" in texts
    counted = scene(Group("leaf", "red", "small", (0, 4, 8)), layout="count")
    assert full_caption(counted).text == "three small red leaves on a blue background"


def test_the_claims_of_a_caption_reject_what_it_excludes():
    claims = full_caption(scene(HEART, STAR)).claims
    swapped = scene(
        dataclasses.replace(HEART, colour="blue"), dataclasses.replace(STAR, colour="red")
    )
    found = verdicts(claims, seen_in(swapped))
    assert found["colour"] is False and found["objects"] and found["size"]
    relation = next(
        c.claims
        for c in (partial_caption(scene(HEART, STAR), np.random.default_rng(i)) for i in range(99))
        if c.claims.relations and c.claims.relations[0].relation == "left"
    )
    exchanged = scene(Group("heart", "red", "small", (5,)), Group("star", "blue", "large", (3,)))
    assert verdicts(relation, seen_in(exchanged))["relation"] is False
    assert verdicts(claims, seen_in(exchanged))["place"] is False
    assert verdicts(claims, seen_in(scene(HEART)))["objects"] is False
    assert verdicts(claims, seen_in(scene(HEART, STAR, DOG)))["objects"] is False


def test_questions_have_one_answer_each(scenes):
    kinds = set()
    for item in scenes:
        asked = hard_questions(item)
        by_text = {q.question: q.answer for q in asked}
        assert all(by_text[q.question] == q.answer for q in asked)
        kinds |= {q.kind for q in asked}
        assert {"ground", "count", "describe", "size", "name"} <= {q.kind for q in asked}
    assert kinds == set(KINDS)
    three = {q.question: q.answer for q in hard_questions(scene(DOG, HEART, STAR, layout="three"))}
    assert three["what is between the heart and the star?"] == "a dog"
    assert three["what is to the left of the dog?"] == "a heart"
    # Two objects are to the left of the star.
    assert "what is to the left of the star?" not in three
    assert three["what is red?"] == "a heart" and three["what is large?"] == "a star"
    assert "what is small?" not in three
    assert three["what colour is the star?"] == "blue" and "what colour is the dog?" not in three


def test_the_vocabulary_has_every_word(scenes):
    tokenizer = Tokenizer("emoji_hard")
    assert tokenizer.size <= 640  # The embedding of the preset 'emoji'.
    random = np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for item in scenes:
            text = caption(item, random, 0.5).text
            assert tokenizer.decode(tokenizer.encode(text)) == text
            tokenizer.encode(sentence(text))
            for question in hard_questions(item):
                tokenizer.encode(question.question)
                tokenizer.encode(question.answer)
