"""Edits, clips and dialogues as rows, and alternating groups of batches."""

import numpy as np
import pytest

from tuna_jax.data import loader
from tuna_jax.data.text.tokenizer import DEFAULT_SYSTEM, Tokenizer
from tuna_jax.emoji import image_streams, task_streams
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.task_streams import TASKS, Group, alternate
from tuna_jax.emoji.world import dialogues
from tuna_jax.emoji.world.captions import questions
from tuna_jax.emoji.world.clips import ClipSource, clip_captions, continuations
from tuna_jax.emoji.world.combine import CombinationSource
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.scenes import SceneSource


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("emoji_all")


def pool(source, frames=1, count=40):
    """Latents whose values encode their item and frame."""
    mean = np.zeros((count, frames, 4, 4, 2), np.float32)
    mean += (
        np.arange(count)[:, None, None, None, None] + 100 * np.arange(frames)[:, None, None, None]
    )
    return LatentPool(source, mean, np.full_like(mean, 0.01))


def texts(row, tokenizer):
    """(text with a loss, whole text) of a row."""
    learned = tokenizer.decode([i for i in row.sequence.labels if i != -100], skip_special=False)
    return learned, tokenizer.decode(row.sequence.tokens, skip_special=False)


def test_an_edit_has_a_clean_source_and_a_noised_target(tokenizer):
    latents = pool(EditSource(), 2)
    stream = task_streams.editing_stream(
        latents, tokenizer, rows=4, instruction_dropout=0.0, spread=0.0
    )
    for i in range(30):
        row = stream.samples[i]
        assert row.sequence.is_target.tolist() == [False, True]
        assert row.latents.shape == (2, 1, 4, 4, 2)
        item = round(float(row.latents[0].mean()))
        # The target is the mean, the source a sample of the posterior.
        assert (row.latents[1] == 100 + item).all() and row.latents[0].std() > 0
        text = texts(row, tokenizer)[1].lower()
        assert any(phrasing in text for phrasing in latents.source[item].instructions)
        assert (row.sequence.labels == -100).all()
    plain = task_streams.editing_stream(latents, tokenizer, rows=4, spread=0.0, source_spread=0.0)
    assert all(plain.samples[i].latents.std((1, 2, 3, 4)).max() == 0 for i in range(8))
    empty = task_streams.editing_stream(
        latents, tokenizer, rows=4, instruction_dropout=1.0
    ).samples[0]
    assert len(empty.sequence.tokens) == 2 * 17 + 6
    with pytest.raises(ValueError, match="2 frames"):
        task_streams.editing_stream(pool(ClipSource(), 4), tokenizer, rows=4)


def test_a_combination_has_two_clean_sources_and_a_noised_target(tokenizer):
    latents = pool(CombinationSource(), 3)
    stream = task_streams.combining_stream(
        latents, tokenizer, rows=4, instruction_dropout=0.0, spread=0.0
    )
    for i in range(20):
        row = stream.samples[i]
        item = round(float(row.latents[0].mean()))
        assert row.sequence.is_target.tolist() == [False, False, True]
        assert row.latents.shape == (3, 1, 4, 4, 2)
        assert row.latents.mean((1, 2, 3, 4)).tolist() == [item, item + 100, item + 200]
        text = texts(row, tokenizer)[1].lower()
        assert any(phrasing in text for phrasing in latents.source[item].instructions)
    with pytest.raises(ValueError, match="3 frames"):
        task_streams.combining_stream(pool(EditSource(), 2), tokenizer, rows=4)


def test_a_continuation_has_its_first_frame_and_the_whole_clip(tokenizer):
    latents = pool(ClipSource(), 4)
    stream = task_streams.continuation_stream(
        latents, tokenizer, rows=4, caption_dropout=0.0, spread=1.0, source_spread=0.0
    )
    for i in range(20):
        row = stream.samples[i]
        first, clip = row.latents
        item = int(first[0, 0, 0, 0])
        assert row.sequence.is_target.tolist() == [False, True]
        assert row.sequence.spans[:, 1].tolist() == [17, 65]
        assert (first[0] == item).all() and not first[1:].any() and first.shape == (4, 4, 4, 2)
        assert np.abs(clip.mean((1, 2, 3)) - item - 100 * np.arange(4)).max() < 0.1
        assert clip.std((1, 2, 3)).min() > 0
        text = texts(row, tokenizer)[1].lower()
        assert any(phrasing in text for phrasing in continuations(latents.source[item]))


def test_clips_have_captions_or_questions(tokenizer):
    latents = pool(ClipSource(), 4)
    generation = task_streams.clip_stream(
        latents, tokenizer, rows=4, caption_dropout=0.0, spread=0.0
    )
    understanding = task_streams.clip_questions_stream(latents, tokenizer, rows=4)
    kinds = set()
    for i in range(40):
        row = generation.samples[i]
        item = int(row.latents[0, 0, 0, 0, 0])
        assert row.latents.shape == (1, 4, 4, 4, 2) and row.latents[0, 3, 0, 0, 0] == item + 300
        assert row.sequence.spans[0, 1] == 65 and row.sequence.is_target.tolist() == [True]
        text = texts(row, tokenizer)[1].lower()
        assert any(phrasing in text for phrasing in clip_captions(latents.source[item]))
        row = understanding.samples[i]
        item = round(float(row.latents[0, 0].mean()))
        learned, text = texts(row, tokenizer)
        questions = task_streams.clip_questions(latents.source[item])
        fitting = [
            q
            for q in questions
            if q.question in text.lower() and learned == q.answer + "<|im_end|>"
        ]
        assert fitting and row.sequence.is_target.tolist() == [False]
        kinds |= {q.kind for q in fitting}
    assert {"motion", "name", "describe"} <= kinds
    with pytest.raises(ValueError, match="question_weights"):
        task_streams.clip_questions_stream(
            latents, tokenizer, rows=4, question_weights={"direction": 1.0}
        )


def test_dialogues_learn_every_answer_and_nothing_else(tokenizer):
    latents = pool(SceneSource())
    stream = task_streams.dialogue_stream(latents, tokenizer, rows=4, length=132)
    follows = 0
    for i in range(40):
        row = stream.samples[i]
        learned, text = texts(row, tokenizer)
        answers = learned.split("<|im_end|>")[:-1]
        assert 2 <= len(answers) <= 4 and text.startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}")
        scene = latents.source[round(float(row.latents.mean()))]
        turns = text.split("<|im_start|>user\n")[1:]
        assert "<|vision_start|>" in turns[0] and "<|vision_start|>" not in "".join(turns[1:])
        expected = {q for exchange in dialogues.exchanges(scene) for q in exchange}
        used = []
        for turn, answer in zip(turns, answers, strict=True):
            question = turn.split("<|im_end|>")[0].split("<|vision_end|>")[-1]
            assert any(q.question == question and q.answer == answer for q in expected)
            used.append(question)
        assert len(set(used)) == len(used)
        follows += any(question.startswith("and ") for question in used)
    assert 5 < follows < 35


def test_a_follow_up_comes_after_its_question():
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


def test_a_long_dialogue_loses_its_last_turns(tokenizer):
    """One dialogue in 48,000 has 133 tokens; it must not end a run."""
    latents = pool(SceneSource())
    whole, cut = (
        task_streams.dialogue_stream(latents, tokenizer, rows=1, length=length).samples
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


def test_the_vocabulary_covers_all_streams(tokenizer, recwarn):
    scenes, edits, clips, combinations = (
        pool(SceneSource(), count=600),
        pool(EditSource(), 2, 600),
        pool(ClipSource(), 4, 600),
        pool(CombinationSource(), 3, 600),
    )
    streams = [
        (task_streams.editing_stream(edits, tokenizer, rows=1), 52),
        (task_streams.clip_stream(clips, tokenizer, rows=1), 84),
        (task_streams.clip_questions_stream(clips, tokenizer, rows=1), 84),
        (task_streams.dialogue_stream(scenes, tokenizer, rows=1, length=132), 132),
        (task_streams.combining_stream(combinations, tokenizer, rows=1, sentences=0.5), 76),
        (task_streams.continuation_stream(clips, tokenizer, rows=1, sentences=0.5), 96),
        (image_streams.text_to_image_stream(scenes, tokenizer, rows=1), 44),
        (image_streams.understanding_stream(scenes, tokenizer, rows=1), 44),
    ]
    for stream, length in streams:
        # The lengths of the groups in experiments/emoji/all_tasks.py and more_tasks.py.
        assert max(len(stream.samples[i].sequence.tokens) for i in range(600)) <= length
    assert not [w for w in recwarn if "compact vocabulary" in str(w.message)]


def groups(tokenizer):
    scenes = pool(SceneSource())
    pictures = image_streams.text_to_image_stream(scenes, tokenizer, rows=4)
    dialogue = task_streams.dialogue_stream(scenes, tokenizer, rows=2, length=132)
    return [
        Group(image_streams.batches([pictures], tokenizer, length=44), 0.75),
        Group(image_streams.batches([dialogue], tokenizer, length=132), 0.25),
    ]


def test_the_group_of_a_batch_depends_only_on_seed_and_number(tokenizer):
    mixed = alternate(groups(tokenizer), 0)
    order = [mixed[n]["tokens"].shape for n in range(128)]
    assert order.count((2, 132)) == 32, "a cycle contains every group in its share"
    assert [alternate(groups(tokenizer), 0)[n]["tokens"].shape for n in range(40)] == order[:40]
    assert [alternate(groups(tokenizer), 1)[n]["tokens"].shape for n in range(40)] != order[:40]
    # The batches of each group come in order, and none is left out.
    separate = groups(tokenizer)[1].batches
    dialogue_batches = [mixed[n]["tokens"] for n in range(20) if order[n] == (2, 132)]
    for i, tokens in enumerate(dialogue_batches):
        np.testing.assert_array_equal(tokens, separate[i]["tokens"])
    assert set(mixed[order.index((2, 132))]["stream"]) == {TASKS.index("dialogue")}


def test_an_iterator_resumes_exactly(tokenizer):
    mixed = alternate(groups(tokenizer), 0)
    first = loader.iterate(mixed, threads=1, ahead=2)
    for _ in range(5):
        next(first)
    state = first.get_state()
    second = loader.iterate(mixed, threads=1, ahead=2)
    second.set_state(state)
    for n in range(5, 9):
        for batch in (next(first), next(second)):
            np.testing.assert_array_equal(batch["tokens"], mixed[n]["tokens"])
