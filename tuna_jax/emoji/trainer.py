"""The emoji TUNA: scenes, the frozen VAE, the tokenizer and the joint mixture, put together for
training and for drawing.

Batches come in groups of one shape each: pictures (drawn and asked about), edits, clips, dialogues. The demo has
pictures alone; the others are off until they get rows and a share of the batches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tuna_jax.config import VAEConfig, from_dict
from tuna_jax.conversion.checkpoint_source import open_parameters
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import image_streams, latent_pool, task_streams
from tuna_jax.emoji.evaluation.images import Answer, Draw
from tuna_jax.emoji.evaluation.suite_tasks import Abilities
from tuna_jax.emoji.model_bundle import World
from tuna_jax.emoji.world.captions import captions
from tuna_jax.emoji.world.clips import ClipSource, render_clip
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.inference.generation_config import SampleSettings
from tuna_jax.sweeps.online import evaluator
from tuna_jax.training import loop
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.training.optimizer import learning_rate
from tuna_jax.training.step import Heads
from tuna_jax.training.weights_file import load_model
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.param_tree import unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditData:
    """Edits: how many are encoded beforehand, rows and tokens of a batch, how many of the batches, and the relative
    frequency of each kind (empty: the source's own).

    `source_spread` is how far the latents of the source are spread around the posterior's mean, relative to its
    standard deviation. An edit that is asked for shows the mean, so 0 is what it will see."""

    count: int = 16_000
    rows: int = 0
    length: int = 52
    share: float = 1.0
    source_spread: float = 1.0
    kinds: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipData:
    """Clips of `frames` pictures: how many are encoded beforehand, rows of a batch to draw and to ask about, tokens a
    row, how many of the batches, and the relative frequency of each motion (empty: the source's own)."""

    count: int = 12_000
    frames: int = 4
    draw_rows: int = 0
    understand_rows: int = 0
    length: int = 84
    share: float = 1.0
    motions: dict = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of a batch, of either task."""
        return self.draw_rows + self.understand_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueData:
    """Dialogues about the scenes of the pictures: rows and tokens of a batch, and how many of the batches."""

    rows: int = 0
    length: int = 132
    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiData:
    """The mixture of drawing and understanding.

    Attributes:
      scenes: how many training scenes are encoded beforehand.
      size: side of a picture in pixels.
      seed: seed of the scenes, of their order, and of captions and questions.
      length: tokens a row; a longer one is an error that says how long.
      draw_rows, understand_rows: rows of every batch with each task.
      caption_dropout: share of drawing rows without a caption, for guidance.
      draw_spread: how far latents to draw are spread around the posterior's mean, relative to its standard deviation:
        1 draws from the posterior, 0 takes the mean. Pictures to understand are always drawn from it.
      layouts: relative frequency of each layout of scenes; empty takes the source's own.
      questions: relative frequency of each kind of question; empty takes the stream's own.
      vocabulary: compact vocabulary that ships, or a JSON file of one.
      threads: host threads that make batches.
      share: how many of the batches are of pictures, relative to the other groups' shares.
      edits, clips, dialogues: the other groups; one without rows is off.
    """

    scenes: int = 40_000
    size: int = 64
    seed: int = 0
    length: int = 44
    draw_rows: int = 16
    understand_rows: int = 8
    caption_dropout: float = 0.1
    draw_spread: float = 1.0
    layouts: dict = dataclasses.field(default_factory=dict)
    questions: dict = dataclasses.field(default_factory=dict)
    vocabulary: str = "emoji"
    threads: int = 1
    share: float = 1.0
    edits: EditData = EditData()
    clips: ClipData = ClipData()
    dialogues: DialogueData = DialogueData()

    @property
    def pictures_alone(self) -> bool:
        """Whether no other group is on."""
        return not (self.edits.rows or self.clips.rows or self.dialogues.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiExperiment(loop.LoopSettings):
    """An experiment file of kind 'tuna': the loop's settings, and these.

    Attributes:
      model: a preset and overrides of its fields; see `tuna_jax.config.from_dict`.
      vae: safetensors file of the image VAE; empty takes the one that ships.
      data: the mixture. samples: the contact sheet.
    """

    kind: str = "tuna"
    model: dict
    vae: str = ""
    data: EmojiData = EmojiData()
    samples: SampleSettings = SampleSettings()


def load_world(settings: EmojiExperiment) -> World:
    """Reads the VAE and the tokenizer that an experiment names, and checks that they fit its model.

    Raises:
      ValueError: the model's table of tokens, or its latents, are not those of the tokenizer or the
        VAE.
    """
    config = from_dict(settings.model)
    vae_config, vae_params = load_image_vae(settings.vae or None)
    if vae_config.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE has {vae_config.latent_channels} latent channels and the model wants "
            f"{config.vae.latent_channels}; set config.model.vae.latent_channels, or name another "
            f"file in config.vae"
        )
    tokenizer = Tokenizer(settings.data.vocabulary)
    if config.language.vocabulary < tokenizer.size:
        raise ValueError(
            f"config.model.language.vocabulary is {config.language.vocabulary}, and the vocabulary "
            f"{settings.data.vocabulary!r} has {tokenizer.size} ids; the table needs a row for each"
        )
    config = dataclasses.replace(config, vae=for_clips(vae_config, settings.data))
    return World(config, vae_params, tokenizer, settings.data.size, settings.samples)


def for_clips(config: VAEConfig, data: EmojiData) -> VAEConfig:
    """The VAE of pictures, taking the frames of a clip one by one if there are clips."""
    return dataclasses.replace(config, by_frame=True) if data.clips.rows else config


def load_trained(path: str | Path) -> tuple[World, Any, dict[str, Any]]:
    """A trained emoji TUNA, ready to draw and answer.

    Args:
      path: workdir of a run that ended or was stopped, or its `model.safetensors`.

    Returns:
      Its world, its (averaged) parameters, and the experiment's mapping.
    """
    params, values, _ = load_model(path)
    return load_world(parse(EmojiExperiment, values)), params, values


def checkpoints(workdir: str | Path) -> dict[int, Path]:
    """The checkpoints that a run has kept, by step."""
    return {int(path.name): path for path in finished_checkpoints(workdir)}


def load_checkpoint(path: Path) -> Any:
    """The (averaged) parameters of one checkpoint."""
    _, state = open_parameters(path)
    return unflatten({name: state.read(name) for name in state.entries})


def batches(world: World, data: EmojiData, progress: bool = True) -> Any:
    """The endless data set of this process's part of every batch; see `groups`."""
    return task_streams.alternate(groups(world, data, progress), data.seed)


def groups(world: World, data: EmojiData, progress: bool = True) -> list[task_streams.Group]:
    """Batches of one shape each, as endless data sets of this process's part of every batch.

    The first call encodes scenes, edits and clips, and keeps the latents on disk.
    """
    config = dataclasses.asdict(world.config.vae)
    del config["by_frame"]  # A frame is encoded as a picture either way.
    key = latent_pool.fingerprint({"weights": world.vae_params, "config": config})
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


def measured(
    world: World, params: Any, values: Mapping[str, Any]
) -> tuple[Draw | None, Answer | None, Abilities]:
    """What a trained model is measured on: the functions of those tasks that its settings gave rows."""
    data = parse(EmojiExperiment, values).data

    def given(rows: int, function: Any) -> Any:
        return function if rows else None

    answer = functools.partial(world.answer, params)
    return (
        given(data.draw_rows, functools.partial(world.draw, params)),
        given(data.understand_rows, answer),
        Abilities(
            edit=given(data.edits.rows, functools.partial(world.edit, params)),
            draw_clips=given(data.clips.draw_rows, functools.partial(world.draw_clips, params)),
            answer_clips=given(data.clips.understand_rows, answer),
            converse=given(data.dialogues.rows, functools.partial(world.converse, params)),
            frames=data.clips.frames,
        ),
    )


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
    return by_task[task_streams.TASKS[int(batch["task"][0])]]


def train(values: Mapping[str, Any], settings: EmojiExperiment, workdir: str | Path) -> bool:
    """Runs or resumes the experiment `settings`, whose mapping was `values`.

    Returns whether it reached its last step.
    """
    learning_rate(settings.optimizer, settings.steps)  # Refused before minutes go into its data.
    world = load_world(settings)
    shapes = groups(world, settings.data)
    mixture = task_streams.alternate(shapes, settings.data.seed)
    iterator = image_streams.iterate(mixture, threads=settings.data.threads)

    def draw(step: int, params: Any) -> None:
        prompts = sheet_prompts(settings.samples.count, settings.data)
        pictures = world.draw(params, prompts)
        folder = Path(workdir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, prompts).save(folder / f"{step:06d}.png")

    return loop.train(
        settings,
        world.config,
        workdir,
        iterator,
        tasks=image_streams.STREAMS if settings.data.pictures_alone else task_streams.TASKS,
        record=dict(values),
        draw=draw,
        evaluate=evaluator(settings, world.model, workdir),
        heads=functools.partial(heads, settings.data),
        ahead=[(group.first, heads(settings.data, group.first)) for group in shapes],
    )


def sheet_prompts(count: int, data: EmojiData) -> list[str]:
    """Usual captions of unseen scenes: one object and two objects, in turn."""
    sources = [SceneSource(split, data.seed, data.size) for split in ("test_single", "test_pairs")]
    return [captions(sources[index % 2][index])[0] for index in range(count)]
