"""Batches of the emoji world: groups of one shape each, endless and with random access."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tuna_jax.config import TunaConfig
from tuna_jax.emoji import image_streams, latent_pool, task_streams
from tuna_jax.emoji.config import EmojiData
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.emoji.world import worlds
from tuna_jax.emoji.world.clips import ClipSource, render_clip
from tuna_jax.emoji.world.combine import CombinationSource
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.scenes import VOCABULARY
from tuna_jax.parallel.distributed import WHOLE, BatchPart
from tuna_jax.training.step import Heads


def batches(bundle: ModelBundle, data: EmojiData, progress: bool = True) -> Any:
    """The endless data set of all batches; see `groups`."""
    return task_streams.alternate(groups(bundle, data, progress), data.stream_seed)


def groups(
    bundle: ModelBundle,
    data: EmojiData,
    progress: bool = True,
    part: BatchPart = WHOLE,
) -> list[task_streams.Group]:
    """Batches of one shape each, as endless data sets of a part of every batch.

    The first call encodes scenes, edits and clips, and keeps the latents on disk.
    """
    check_design(bundle.config, data)
    world = worlds.world(data.world, data.partial, data.difficulty)
    if world.name != "scenes" and not data.images_only:
        raise ValueError(
            f"config.data.world is {world.name!r}, which only has images; set the rows of config.data.edits, "
            "config.data.clips, config.data.dialogues, config.data.combinations and config.data.continuations to 0"
        )
    key = bundle.latents_key
    hosts = {"process_index": part.index, "process_count": part.count}
    tokenizer = bundle.tokenizer
    result: list[task_streams.Group] = []

    def with_pixels(
        pool: latent_pool.LatentPool[Any], pictures: Callable[[Any], Any]
    ) -> latent_pool.LatentPool[Any]:
        return dataclasses.replace(pool, pictures=pictures if bundle.config.sees_pixels else None)

    def add_group(
        streams: list[image_streams.Stream], share: float, length: int, slots: int = 1
    ) -> None:
        streams = [stream for stream in streams if stream.rows]
        if streams:
            dataset = image_streams.batches(streams, tokenizer, length=length, slots=slots, **hosts)
            result.append(task_streams.Group(dataset, share))

    if data.generation_rows or data.understanding_rows or data.dialogues.rows:
        pool = with_pixels(scene_pool(bundle, data, progress), world.render)
        image_tasks = [
            image_streams.text_to_image_stream(
                pool,
                tokenizer,
                rows=data.generation_rows,
                seed=2 * data.stream_seed,
                caption_dropout=data.caption_dropout,
                spread=data.generation_spread,
                world=world,
            ),
            image_streams.understanding_stream(
                pool,
                tokenizer,
                rows=data.understanding_rows,
                seed=2 * data.stream_seed + 1,
                question_weights=dict(data.questions) or None,
                world=world,
            ),
        ]
        add_group(image_tasks, data.share, data.length)
        dialogues = task_streams.dialogue_stream(
            pool,
            tokenizer,
            rows=data.dialogues.rows,
            length=data.dialogues.length,
            seed=2 * data.stream_seed + 2,
        )
        add_group([dialogues], data.dialogues.share, data.dialogues.length)
    if data.edits.rows:
        edits = EditSource(
            "train", data.seed, data.size, length=data.edits.count, weights=data.edits.kinds or None
        )
        edit_pool = latent_pool.encode_pool(
            edits,
            data.edits.count,
            bundle.encode_frames,
            key,
            pictures=task_streams.render_edit,
            progress=progress,
        )
        edit_pool = with_pixels(edit_pool, task_streams.render_edit)
        editing = task_streams.editing_stream(
            edit_pool,
            tokenizer,
            rows=data.edits.rows,
            seed=2 * data.stream_seed + 3,
            instruction_dropout=data.caption_dropout,
            spread=data.generation_spread,
            source_spread=data.edits.source_spread,
        )
        add_group([editing], data.edits.share, data.edits.length, slots=2)
    if data.has_clips:
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
            bundle.encode_frames,
            key,
            pictures=render_clip,
            progress=progress,
        )
        clip_tasks = [
            task_streams.clip_stream(
                clip_pool,
                tokenizer,
                rows=data.clips.generation_rows,
                seed=2 * data.stream_seed + 4,
                caption_dropout=data.caption_dropout,
                spread=data.generation_spread,
            ),
            task_streams.clip_questions_stream(
                clip_pool,
                tokenizer,
                rows=data.clips.understanding_rows,
                seed=2 * data.stream_seed + 5,
            ),
        ]
        add_group(clip_tasks, data.clips.share, data.clips.length)
        continuing = task_streams.continuation_stream(
            clip_pool,
            tokenizer,
            rows=data.continuations.rows,
            seed=2 * data.stream_seed + 6,
            caption_dropout=data.caption_dropout,
            spread=data.generation_spread,
            source_spread=data.continuations.source_spread,
        )
        add_group([continuing], data.continuations.share, data.continuations.length, slots=2)
    if data.combinations.rows:
        combinations = CombinationSource(
            "train", data.seed, data.size, length=data.combinations.count
        )
        combination_pool = latent_pool.encode_pool(
            combinations,
            data.combinations.count,
            bundle.encode_frames,
            key,
            pictures=task_streams.render_combination,
            progress=progress,
        )
        combining = task_streams.combining_stream(
            with_pixels(combination_pool, task_streams.render_combination),
            tokenizer,
            rows=data.combinations.rows,
            seed=2 * data.stream_seed + 7,
            instruction_dropout=data.caption_dropout,
            spread=data.generation_spread,
            source_spread=data.combinations.source_spread,
        )
        add_group([combining], data.combinations.share, data.combinations.length, slots=3)
    return result


def check_design(config: TunaConfig, data: EmojiData) -> None:
    """Raises ValueError if the model's design cannot be trained on a task that has rows; the message names the key."""
    design = f"config.model.design is {config.design!r}"
    if config.design == "semantic_only":
        rows = {
            "generation_rows": data.generation_rows,
            "edits.rows": data.edits.rows,
            "clips.generation_rows": data.clips.generation_rows,
            "combinations.rows": data.combinations.rows,
            "continuations.rows": data.continuations.rows,
        }
        for key, number in rows.items():
            if number:
                raise ValueError(
                    f"{design}, which only understands, and config.data.{key} is {number}; set config.data.{key}=0, "
                    f"or take another design"
                )
    if config.sees_pixels and data.has_clips:
        raise ValueError(
            f"{design}, which sees the pixels of images; set config.data.clips.generation_rows, "
            f"config.data.clips.understanding_rows and config.data.continuations.rows to 0, or take another design"
        )


def scene_pool(
    bundle: ModelBundle, data: EmojiData, progress: bool = True
) -> latent_pool.LatentPool[Any]:
    """Latents of the training scenes; the first call encodes them, and keeps them on disk."""
    world = worlds.world(data.world, data.partial, data.difficulty)
    weights = dict(data.layouts) or None
    names = {} if data.names == "demo" else {"names": VOCABULARY[data.names]}
    source = world.source(
        "train", data.seed, data.size, length=data.scenes, weights=weights, **names
    )
    return latent_pool.encode_pool(
        source,
        data.scenes,
        bundle.encode,
        bundle.latents_key,
        pictures=world.render,
        progress=progress,
    )


def heads(data: EmojiData, batch: Mapping[str, Any]) -> Heads:
    """Number of rows of a batch, over all hosts, with a flow target and with a text target.

    All batches of a group have the same numbers, and the stream of any one row determines the group; so a host that
    holds rows of only one of the group's tasks gets the numbers of the whole batch.
    """
    images = Heads(data.generation_rows, data.understanding_rows)
    clips = Heads(data.clips.generation_rows, data.clips.understanding_rows)
    by_task = {
        "t2i": images,
        "understand": images,
        "edit": Heads(data.edits.rows, 0),
        "t2v": clips,
        "video_understand": clips,
        "dialogue": Heads(0, data.dialogues.rows),
        "combine": Heads(data.combinations.rows, 0),
        "i2v": Heads(data.continuations.rows, 0),
    }
    return by_task[task_streams.TASKS[int(batch["stream"][0])]]
