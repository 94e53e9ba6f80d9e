"""Edits, clips and dialogues as rows, and groups of batches that alternate."""

import numpy as np
import pytest

from tuna_jax.data import loader
from tuna_jax.data.text.tokenizer import DEFAULT_SYSTEM, Tokenizer
from tuna_jax.emoji import image_streams, task_streams
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.task_streams import TASKS, Group, alternate
from tuna_jax.emoji.world import dialogues
from tuna_jax.emoji.world.captions import questions
from tuna_jax.emoji.world.clips import ClipSource, clip_captions
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.scenes import SceneSource


@pytest.fixture(scope="module")
def words():
    return Tokenizer("emoji_all")


def pool(source, frames=1, count=40):
    """Latents whose numbers say which item and which frame they are of."""
    mean = np.zeros((count, frames, 4, 4, 2), np.float32)
    mean += (
        np.arange(count)[:, None, None, None, None] + 100 * np.arange(frames)[:, None, None, None]
    )
    return LatentPool(source, mean, np.full_like(mean, 0.01))


def texts(row, words):
    """What is learned in a row, and all that is said."""
    learned = words.decode([i for i in row.sequence.labels if i != -100], skip_special=False)
    return learned, words.decode(row.sequence.tokens, skip_special=False)


def test_an_edit_has_its_source_clean_and_its_target_to_draw(words):
    made = pool(EditSource(), 2)
    stream = task_streams.editing_stream(made, words, rows=4, instruction_dropout=0.0, spread=0.0)
    for i in range(30):
        row = stream.samples[i]
        assert row.sequence.is_target.tolist() == [False, True]
        assert row.latents.shape == (2, 1, 4, 4, 2)
        item = round(float(row.latents[0].mean()))
        # The target is the mean itself, the source a draw around it.
        assert (row.latents[1] == 100 + item).all() and row.latents[0].std() > 0
        said = texts(row, words)[1].lower()
        assert any(text in said for text in made.source[item].instructions)
        assert (row.sequence.labels == -100).all()
    plain = task_streams.editing_stream(made, words, rows=4, spread=0.0, source_spread=0.0)
    assert all(plain.samples[i].latents.std((1, 2, 3, 4)).max() == 0 for i in range(8))
    empty = task_streams.editing_stream(made, words, rows=4, instruction_dropout=1.0).samples[0]
    assert len(empty.sequence.tokens) == 2 * 17 + 6
    with pytest.raises(ValueError, match="2 frames an item"):
        task_streams.editing_stream(pool(ClipSource(), 4), words, rows=4)


def test_clips_are_drawn_from_captions_and_asked_about(words):
    made = pool(ClipSource(), 4)
    drawn = task_streams.clip_stream(made, words, rows=4, caption_dropout=0.0, spread=0.0)
    asked = task_streams.clip_questions_stream(made, words, rows=4)
    kinds = set()
    for i in range(40):
        row = drawn.samples[i]
        item = int(row.latents[0, 0, 0, 0, 0])
        assert row.latents.shape == (1, 4, 4, 4, 2) and row.latents[0, 3, 0, 0, 0] == item + 300
        assert row.sequence.spans[0, 1] == 65 and row.sequence.is_target.tolist() == [True]
        said = texts(row, words)[1].lower()
        assert any(text in said for text in clip_captions(made.source[item]))
        row = asked.samples[i]
        item = round(float(row.latents[0, 0].mean()))
        learned, said = texts(row, words)
        known = task_streams.clip_questions(made.source[item])
        fitting = [
            q for q in known if q.question in said.lower() and learned == q.answer + "<|im_end|>"
        ]
        assert fitting and row.sequence.is_target.tolist() == [False]
        kinds |= {q.kind for q in fitting}
    assert {"motion", "name", "describe"} <= kinds
    with pytest.raises(ValueError, match="beside 'direction'"):
        task_streams.clip_questions_stream(made, words, rows=4, question_weights={"direction": 1.0})


def test_dialogues_learn_every_answer_and_nothing_else(words):
    made = pool(SceneSource())
    stream = task_streams.dialogue_stream(made, words, rows=4, length=132)
    follows = 0
    for i in range(40):
        row = stream.samples[i]
        learned, said = texts(row, words)
        answers = learned.split("<|im_end|>")[:-1]
        assert 2 <= len(answers) <= 4 and said.startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}")
        scene = made.source[round(float(row.latents.mean()))]
        turns = said.split("<|im_start|>user\n")[1:]
        assert "<|vision_start|>" in turns[0] and "<|vision_start|>" not in "".join(turns[1:])
        known = {q for exchange in dialogues.exchanges(scene) for q in exchange}
        asked = []
        for turn, answer in zip(turns, answers, strict=True):
            question = turn.split("<|im_end|>")[0].split("<|vision_end|>")[-1]
            assert any(q.question == question and q.answer == answer for q in known)
            asked.append(question)
        assert len(set(asked)) == len(asked)
        follows += any(question.startswith("and ") for question in asked)
    assert 5 < follows < 35


def test_a_follow_up_stands_after_the_question_that_it_needs():
    source = SceneSource()
    seen = 0
    for i in range(300):
        scene = source[i]
        turns = dialogues.dialogue(scene, np.random.default_rng(i))
        assert dialogues.LEAST <= len(turns) <= dialogues.MOST
        pairs = [e for e in dialogues.exchanges(scene) if len(e) == 2]
        for before, turn in zip((None, *turns), turns, strict=False):
            if turn.kind == "follow":
                seen += 1
                assert (before, turn) in pairs
            else:
                assert turn in {q for e in dialogues.exchanges(scene) for q in e[:1]} | set(
                    questions(scene)
                )
    assert seen > 50


def test_a_long_conversation_loses_its_last_turns(words):
    """One in 48,000 has 133 tokens: it must not end a run."""
    made = pool(SceneSource())
    whole, cut = (
        task_streams.dialogue_stream(made, words, rows=1, length=length).samples
        for length in (132, 100)
    )
    lengths = []
    for i in range(40):
        full, kept = (stream[i].sequence.tokens for stream in (whole, cut))
        assert len(kept) <= 100
        np.testing.assert_array_equal(kept, full[: len(kept)])
        lengths.append((len(full), len(kept)))
    assert any(full > 100 for full, _ in lengths)
    assert all(full == kept for full, kept in lengths if full <= 100)


def test_no_text_of_any_stream_leaves_the_vocabulary(words, recwarn):
    scenes, edits, clips = (
        pool(SceneSource(), count=600),
        pool(EditSource(), 2, 600),
        pool(ClipSource(), 4, 600),
    )
    streams = [
        (task_streams.editing_stream(edits, words, rows=1), 52),
        (task_streams.clip_stream(clips, words, rows=1), 84),
        (task_streams.clip_questions_stream(clips, words, rows=1), 84),
        (task_streams.dialogue_stream(scenes, words, rows=1, length=132), 132),
        (image_streams.text_to_image_stream(scenes, words, rows=1), 44),
        (image_streams.understanding_stream(scenes, words, rows=1), 44),
    ]
    for stream, length in streams:
        # The lengths that experiments/emoji/all_tasks.py gives its groups.
        assert max(len(stream.samples[i].sequence.tokens) for i in range(600)) <= length
    assert not [w for w in recwarn if "compact vocabulary" in str(w.message)]


def groups(words):
    scenes = pool(SceneSource())
    pictures = image_streams.text_to_image_stream(scenes, words, rows=4)
    talk = task_streams.dialogue_stream(scenes, words, rows=2, length=132)
    return [
        Group(image_streams.batches([pictures], words, length=44), 0.75),
        Group(image_streams.batches([talk], words, length=132), 0.25),
    ]


def test_groups_alternate_by_seed_and_step_alone(words):
    mixed = alternate(groups(words), 0)
    order = [mixed[n]["tokens"].shape for n in range(128)]
    assert order.count((2, 132)) == 32, "a cycle has every group's share"
    assert [alternate(groups(words), 0)[n]["tokens"].shape for n in range(40)] == order[:40]
    assert [alternate(groups(words), 1)[n]["tokens"].shape for n in range(40)] != order[:40]
    # Each group goes through its own batches in order, none left out.
    alone = groups(words)[1].batches
    talks = [mixed[n]["tokens"] for n in range(20) if order[n] == (2, 132)]
    for i, tokens in enumerate(talks):
        np.testing.assert_array_equal(tokens, alone[i]["tokens"])
    assert set(mixed[order.index((2, 132))]["task"]) == {TASKS.index("dialogue")}


def test_an_iterator_goes_on_where_it_was(words):
    mixed = alternate(groups(words), 0)
    first = loader.iterate(mixed, threads=1, ahead=2)
    for _ in range(5):
        next(first)
    state = first.get_state()
    second = loader.iterate(mixed, threads=1, ahead=2)
    second.set_state(state)
    for n in range(5, 9):
        for batch in (next(first), next(second)):
            np.testing.assert_array_equal(batch["tokens"], mixed[n]["tokens"])
