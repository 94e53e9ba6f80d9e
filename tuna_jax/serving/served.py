"""What a server serves: the shapes of a model that are compiled before it is ready. All others are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tuna_jax.inference.batching import round_up
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sequence import Grid
from tuna_jax.serving.settings import TASKS, Settings

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Media:
    """Input images or clips of a sequence, all of one shape; unused places of `count` are filled.

    Attributes:
      count: places.
      frames, height, width: of each.
      tokens: of all places, the time tokens included.
    """

    count: int
    frames: int
    height: int
    width: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
      settings: the server's settings.
      tasks: of TASKS.
      sizes: (height, width) of images to generate.
      edit_sizes: of edited images.
      frames: numbers of frames of clips; empty: no clips.
      image_shapes, clip_shapes: (height, width) that input images and clips are scaled to.
      parts: the number of parts that a batch is split into over the mesh.
    """

    settings: Settings
    tasks: tuple[str, ...]
    sizes: tuple[Shape, ...]
    edit_sizes: tuple[Shape, ...]
    frames: tuple[int, ...]
    image_shapes: tuple[Shape, ...]
    clip_shapes: tuple[Shape, ...]
    parts: int

    def rows(self, most: int, ladder: Sequence[int] = (1, 4, 16, 64)) -> tuple[int, ...]:
        """The numbers of rows, up to `most`, that a program is compiled for."""
        most = round_up(most, self.parts)
        sizes = {round_up(step, self.parts) for step in ladder if step < most}
        return (*sorted(size for size in sizes if size < most), most)


def of_model(model: Tuna, settings: Settings) -> Served:
    """What is served of a model.

    Raises:
      ValueError: a task, a size or a number of frames that the model cannot serve; it is named.
    """
    space, config = model.config.space, model.config
    has_clips = not config.sees_pixels and config.vae is not None
    can = [task for task in TASKS if task == "chat" or config.design != "semantic_only"]
    can = [task for task in can if task != "video" or has_clips]
    for task in settings.tasks:
        if task not in can:
            raise ValueError(f"this model cannot serve {task!r}; it can serve {', '.join(can)}")
    tasks = tuple(task for task in can if not settings.tasks or task in settings.tasks)
    usual = (4,) if space.temporal_factor == 1 else (1 + 4 * space.temporal_factor,)
    frames = (settings.frames or usual) if has_clips else ()
    edits = tuple(model.shapes.get("edit", ())) or (model.size,)
    sizes = settings.sizes or (model.size,)
    for height, width in {*sizes, *edits}:
        for count in (1, *frames):
            space.latent_shape(count, height, width)
    return Served(
        settings=settings,
        tasks=tasks,
        sizes=tuple(dict.fromkeys(sizes)),
        edit_sizes=tuple(dict.fromkeys((*edits, *sizes))),
        frames=frames,
        image_shapes=tuple(model.shapes.get("understand", ())) or (model.size,),
        clip_shapes=tuple(model.shapes.get("video_understand", ())) or (model.size,),
        parts=model.batch_parts,
    )


def media_of(model: Tuna, count: int, frames: int, height: int, width: int) -> Media:
    """A number of input images or clips of a shape."""
    grid = Grid(*model.config.space.latent_shape(frames, height, width)[:3])
    return Media(count, frames, height, width, count * (1 + grid.tokens))


def text_media(model: Tuna, served: Served) -> list[Media | None]:
    """The kinds of input media that prompts of conversations are compiled for; None: without any."""
    kinds: list[Media | None] = [None]
    for shape in served.image_shapes:
        for count in sorted({1, served.settings.max_images}):
            kinds.append(media_of(model, count, 1, *shape))
    for shape in served.clip_shapes if served.frames else ():
        kinds += [media_of(model, 1, frames, *shape) for frames in served.frames if frames > 1]
    return kinds


def widths(served: Served, media: Media | None) -> list[int]:
    """The numbers of tokens that prompts with these media are padded to."""
    visual = 0 if media is None else media.tokens
    return [round_up(visual + text) for text in served.settings.prompt_tokens]
