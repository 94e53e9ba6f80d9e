"""Conversations: every turn exact, and the model's own words before the next."""

from tuna_jax.emoji.evaluation import dialogues
from tuna_jax.emoji.evaluation.images import test_scenes as scenes_of
from tuna_jax.emoji.world.dialogues import exchanges
from tuna_jax.emoji.world.rendering import render


def knowing():
    """(picture, question before, question) -> answer; a follow-up is known by what came before it."""
    known = {}
    for split in ("test_single", "test_pairs", "test_counts"):
        for scene in scenes_of(split, 10):
            picture = render(scene).tobytes()
            for exchange in exchanges(scene):
                before = ""
                for item in exchange:
                    known[picture, before if item.kind == "follow" else "", item.question] = (
                        item.answer
                    )
                    before = item.question
    return known


def test_right_answers_are_right_and_a_slip_spoils_its_conversation():
    known, calls = knowing(), []

    def converse(images, questions, histories):
        calls.append([len(history) for history in histories])
        return [
            known[image.tobytes(), history[-1][0] if question.startswith("and ") else "", question]
            for image, question, history in zip(images, questions, histories, strict=True)
        ]

    scores, said = dialogues.converse_scores(converse, 30)
    assert {score.value for score in scores.values()} == {1.0}
    assert scores["dialogue_accuracy"].count == 30
    assert scores["dialogue_turn_accuracy"].count == len(said) >= 60
    assert scores["dialogue_follow_accuracy"].count > 3
    assert scores["dialogue_accuracy"].chance < scores["dialogue_turn_accuracy"].chance < 0.7
    assert calls[1] == [1] * 30 and set(calls[2]) == {2} and len(calls[2]) < 30

    def slip(images, questions, histories):
        answers = converse(images, questions, histories)
        return [a if len(h) != 1 else "no" for a, h in zip(answers, histories, strict=True)]

    scores, said = dialogues.converse_scores(slip, 30)
    assert scores["dialogue_accuracy"].value == 0.0
    assert scores["dialogue_turn_accuracy"].value == 1 - 30 / len(said)


def test_the_models_own_words_come_before_the_next_question():
    seen = []

    def converse(images, questions, histories):
        seen.extend(histories[0])
        return [f"word {len(history)}" for history in histories]

    dialogues.converse_scores(converse, 6)
    assert {answer for _, answer in seen} >= {"word 0"}
