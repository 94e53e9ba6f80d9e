"""Batches of the emoji world: groups of one shape each, endless and determined by their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from tuna_jax.emoji import image_streams, latent_pool, task_streams
from tuna_jax.emoji.config import EmojiData
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.emoji.world.clips import ClipSource, render_clip
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.training.step import Heads
from tuna_jax.utils import fingerprint


def batches(world: ModelBundle, data: EmojiData, progress: bool = True) -> Any:
    """The endless data set of this process's part of every batch; see `groups`."""
    return task_streams.alternate(groups(world, data, progress), data.seed)


def groups(world: ModelBundle, data: EmojiData, progress: bool = True) -> list[task_streams.Group]:
    """Batches of one shape each, as endless data sets of this process's part of every batch.

    The first call encodes scenes, edits and clips, and keeps the latents on disk.
    """
    config = dataclasses.asdict(world.config.vae)
    del config["by_frame"]  # A frame is encoded as a picture either way.
    key = fingerprint.fingerprint({"weights": world.vae_params, "config": config})
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    words = world.tokenizer
    made: list[task_streams.Group] = []

    def batched(
        streams: list[image_streams.Stream], share: float, length: int, slots: int = 1
    ) -> None:
        streams = [stream for stream in streams if stream.rows]
        if streams:
            rows = image_streams.batches(streams, words, length=length, slots=slots, **hosts)
            made.append(task_streams.Group(rows, share))

    if data.draw_rows or data.understand_rows or data.dialogues.rows:
        source = SceneSource(
            "train", data.seed, data.size, length=data.scenes, weights=dict(data.layouts) or None
        )
        pool = latent_pool.encode_pool(source, data.scenes, world.encode, key, progress=progress)
        pictures = [
            image_streams.text_to_image_stream(
                pool,
                words,
                rows=data.draw_rows,
                seed=2 * data.seed,
                caption_dropout=data.caption_dropout,
                spread=data.draw_spread,
            ),
            image_streams.understanding_stream(
                pool,
                words,
                rows=data.understand_rows,
                seed=2 * data.seed + 1,
                question_weights=dict(data.questions) or None,
            ),
        ]
        batched(pictures, data.share, data.length)
        talk = task_streams.dialogue_stream(
            pool,
            words,
            rows=data.dialogues.rows,
            length=data.dialogues.length,
            seed=2 * data.seed + 2,
        )
        batched([talk], data.dialogues.share, data.dialogues.length)
    if data.edits.rows:
        edits = EditSource(
            "train", data.seed, data.size, length=data.edits.count, weights=data.edits.kinds or None
        )
        edit_pool = latent_pool.encode_pool(
            edits,
            data.edits.count,
            world.encode_frames,
            key,
            pictures=task_streams.edit_pictures,
            progress=progress,
        )
        change = task_streams.editing_stream(
            edit_pool,
            words,
            rows=data.edits.rows,
            seed=2 * data.seed + 3,
            instruction_dropout=data.caption_dropout,
            spread=data.draw_spread,
            source_spread=data.edits.source_spread,
        )
        batched([change], data.edits.share, data.edits.length, slots=2)
    if data.clips.rows:
        clips = ClipSource(
            "train",
            data.seed,
            data.size,
            frames=data.clips.frames,
            length=data.clips.count,
            weights=data.clips.motions or None,
        )
        clip_pool = latent_pool.encode_pool(
            clips,
            data.clips.count,
            world.encode_frames,
            key,
            pictures=render_clip,
            progress=progress,
        )
        shown = [
            task_streams.clip_stream(
                clip_pool,
                words,
                rows=data.clips.draw_rows,
                seed=2 * data.seed + 4,
                caption_dropout=data.caption_dropout,
                spread=data.draw_spread,
            ),
            task_streams.clip_questions_stream(
                clip_pool, words, rows=data.clips.understand_rows, seed=2 * data.seed + 5
            ),
        ]
        batched(shown, data.clips.share, data.clips.length)
    return made


def heads(data: EmojiData, batch: Mapping[str, Any]) -> Heads:
    """Rows of a batch, over all hosts, with something to draw and with text to learn: a group has always the same.

    Any row tells the group; this host may hold rows of one of its tasks alone.
    """
    pictures = Heads(data.draw_rows, data.understand_rows)
    clips = Heads(data.clips.draw_rows, data.clips.understand_rows)
    by_task = {
        "t2i": pictures,
        "understand": pictures,
        "edit": Heads(data.edits.rows, 0),
        "t2v": clips,
        "video_understand": clips,
        "dialogue": Heads(0, data.dialogues.rows),
    }
    return by_task[task_streams.TASKS[int(batch["stream"][0])]]
