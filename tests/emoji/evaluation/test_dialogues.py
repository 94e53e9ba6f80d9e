"""Dialogues: exact turns, after the model's own earlier answers."""

from tuna_jax.emoji.evaluation import dialogues
from tuna_jax.emoji.evaluation.images import test_scenes as scenes_of
from tuna_jax.emoji.world.dialogues import exchanges
from tuna_jax.emoji.world.rendering import render


def exact_answers():
    """(image, previous question of a follow-up, question) -> answer."""
    answers = {}
    for split in ("test_single", "test_pairs", "test_counts"):
        for scene in scenes_of(split, 10):
            picture = render(scene).tobytes()
            for exchange in exchanges(scene):
                before = ""
                for item in exchange:
                    previous = before if item.kind == "follow" else ""
                    answers[picture, previous, item.question] = item.answer
                    before = item.question
    return answers


def test_one_wrong_turn_makes_a_conversation_wrong():
    expected, calls = exact_answers(), []

    def converse(images, questions, histories):
        calls.append([len(history) for history in histories])
        return [
            expected[
                image.tobytes(), history[-1][0] if question.startswith("and ") else "", question
            ]
            for image, question, history in zip(images, questions, histories, strict=True)
        ]

    scores, answered = dialogues.converse_scores(converse, 30)
    assert {score.value for score in scores.values()} == {1.0}
    assert scores["dialogue_accuracy"].count == 30
    assert scores["dialogue_turn_accuracy"].count == len(answered) >= 60
    assert scores["dialogue_follow_accuracy"].count > 3
    assert scores["dialogue_accuracy"].chance < scores["dialogue_turn_accuracy"].chance < 0.7
    assert calls[1] == [1] * 30 and set(calls[2]) == {2} and len(calls[2]) < 30

    def one_wrong_turn(images, questions, histories):
        answers = converse(images, questions, histories)
        return [a if len(h) != 1 else "no" for a, h in zip(answers, histories, strict=True)]

    scores, answered = dialogues.converse_scores(one_wrong_turn, 30)
    assert scores["dialogue_accuracy"].value == 0.0
    assert scores["dialogue_turn_accuracy"].value == 1 - 30 / len(answered)


def test_a_question_follows_the_models_own_answers():
    seen = []

    def converse(images, questions, histories):
        seen.extend(histories[0])
        return [f"word {len(history)}" for history in histories]

    dialogues.converse_scores(converse, 6)
    assert {answer for _, answer in seen} >= {"word 0"}
