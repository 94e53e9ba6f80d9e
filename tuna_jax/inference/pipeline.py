"""`tuna_jax.Tuna`: a model with its VAE and tokenizer that generates and edits images, makes videos, and answers.

Requests run in batches through few compiled programs (`batching.py`). Row i of a batch depends only on (seed, i) and on
its own request.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
from jax.sharding import Mesh

from tuna_jax.config import TunaConfig
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference import batching, images, option_checks, text, trained_shapes
from tuna_jax.inference.conversation import Conversation, media_of, prompt_tokens
from tuna_jax.inference.exported_sampler import Programs
from tuna_jax.inference.generation.prefix_cache import Prefix, prepared
from tuna_jax.inference.generation_config import (
    DecodingOptions,
    SamplingOptions,
    SamplingSettings,
)
from tuna_jax.inference.images import Clips, Images
from tuna_jax.inference.media_inputs import MediaInput, as_clip, as_list
from tuna_jax.inference.trained_shapes import Shapes
from tuna_jax.models.logical_sharding import LogicalSharding
from tuna_jax.models.vae_tiles import TILE_ABOVE
from tuna_jax.parallel import distributed, leader, param_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.leader import Shared
from tuna_jax.sequence import Grid, TokenSequence


@dataclasses.dataclass(frozen=True)
class Tuna:
    """A model with its VAE, its tokenizer and its defaults: generates, edits, answers and chats.

    Example:
        tuna = Tuna.load("runs/demo")
        images = tuna.generate_image(["a red apple on a blue background"], seed=3)
        print(tuna.answer(images[0], "what is this?"))

    Attributes:
      config: configuration of the model, with that of the VAE.
      params: parameters of the network.
      vae_params: parameters of the frozen VAE.
      tokenizer: maps text to ids.
      size: (height, width) of an image in pixels, where a call names none.
      samples: defaults of sampling.
      template: the template of questions that the model was trained with, 'plain' or 'chat'; see
        `conversation.prompt_tokens`.
      sharding: how activations are sharded: `Activations(mesh, generation=True)` if the parameters are sharded over a
        mesh of several devices; None leaves it to the compiler.
      tile_above: pixels of a frame above which the VAE runs in overlapping tiles, to save memory.
      programs: exported samplers, which run instead of tracing where one fits.
      shapes: by task, the (height, width) that the model was trained on: an image in a question or an edit takes
        the nearest; see `trained_shapes`. A task that has none takes `size`.
      shared: its number, if the processes of a run compute with it together; see `parallel/leader.py`.
    """

    shared_fields: ClassVar[tuple[str, ...]] = (
        "size",
        "samples",
        "template",
        "tile_above",
        "shapes",
    )

    config: TunaConfig
    params: Any = dataclasses.field(repr=False)
    vae_params: Any = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    size: tuple[int, int]
    samples: SamplingSettings = SamplingSettings(steps=49, guidance=3.0)
    template: str = "chat"
    sharding: LogicalSharding | None = None
    tile_above: int = TILE_ABOVE
    programs: Programs | None = dataclasses.field(default=None, repr=False)
    shapes: Shapes = dataclasses.field(default_factory=dict)
    shared: Shared | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        vae: str | os.PathLike[str] | None = None,
        tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
        dtype: str = "",
        programs: str | os.PathLike[str] | None = None,
        mesh: Mesh | None = None,
        check_weights: bool = True,
        adapter: str | os.PathLike[str] | None = None,
    ) -> Tuna:
        """Reads a training run or a converted model; arguments and errors are those of `inference.loading.load`."""
        from tuna_jax.inference.loading import load  # It imports this module.

        return load(
            path,
            vae=vae,
            tokenizer=tokenizer,
            dtype=dtype,
            programs=programs,
            mesh=mesh,
            check_weights=check_weights,
            adapter=adapter,
        )

    @property
    def batch_parts(self) -> int:
        """The number of parts that a batch is split into over the mesh; 1 without a mesh."""
        mesh = getattr(self.sharding, "mesh", None)
        return 1 if mesh is None else param_sharding.batch_parts(mesh)

    @functools.cached_property
    def generation_params(self) -> Any:
        """The parameters as the loops over solver steps and tokens take them, see `prefix_cache.prepared`.

        Sharded parameters stay as they are.
        """
        return prepared(self.config, self.params) if self.sharding is None else self.params

    def generate_image(
        self, prompts: str | Sequence[str], **options: Unpack[SamplingOptions]
    ) -> Images:
        """Generates an image per prompt, uint8 [n, height, width, 3].

        Args:
          prompts: one prompt or several.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: there is no prompt, the size is not divisible by 16, the solver, the number of steps or the
            guidance interval is invalid, or the number of negative prompts or of seeds differs from that of prompts.
        """
        return images.generate(self, images.prompt_list(prompts), options=options)[:, 0]

    def generate_video(
        self,
        prompts: str | Sequence[str],
        *,
        image: MediaInput | Sequence[MediaInput] | None = None,
        frames: int = 17,
        **options: Unpack[SamplingOptions],
    ) -> Clips:
        """Generates a clip per prompt, uint8 [n, frames, height, width, 3].

        Args:
          prompts: one prompt or several; with `image`, what happens then.
          image: the first frame, one for all prompts or one per prompt, as `edit_image` takes images; None: the clips
            are generated from the prompts only. The first frame of the result is close to it, not equal to the bit.
          frames: number of frames, 1 + 4k; with `image` more than 1.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: `frames` is not 1 + 4k, the number of images differs from that of prompts, or the errors of
            `generate_image`.
          FileNotFoundError: there is no such file.
        """
        prompts = images.prompt_list(prompts)
        first = None
        if image is not None:
            first = images.load_first_frames(self, image, len(prompts), frames, options)
        return images.generate(self, prompts, first, frames=frames, options=options)

    def edit_image(
        self,
        sources: images.Sources,
        instructions: str | Sequence[str],
        **options: Unpack[SamplingOptions],
    ) -> Images:
        """Edits each image as its instruction says, uint8 [n, height, width, 3].

        The source images are clean inputs of both branches of guidance (model.md section 9).

        Example:
            tuna.edit_image("dog.png", "make the background blue")
            tuna.edit_image(["dog.png", "cat.png"], "put the dog to the left of the cat")

        Args:
          sources: of one instruction all its images; of several one image for all, or an item for each: an image, or a
            list of equally many. Images are files, Pillow images, or arrays uint8 [height, width, 3]. They are scaled
            and cropped to the size of the result: by default the shape that edits were trained on nearest to the first
            image of each edit, which must be one for all edits of a call.
          instructions: what to change, one or several.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: the number of images differs from the number of instructions, and the errors of `generate_image`.
          FileNotFoundError: there is no such file.
        """
        instructions = images.prompt_list(instructions)
        size = options.get("size")
        size = images.edit_size(self, sources, len(instructions)) if size is None else size
        options["size"] = size
        pictures = images.load_sources(self, sources, len(instructions), size)
        return images.generate(self, instructions, pictures, options=options)[:, 0]

    def answer(
        self,
        media: MediaInput | Sequence[MediaInput] | None,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> str:
        """Answers a question about images or a video, or a question without either.

        Args:
          media: an image, several, a clip (a video file, or uint8 [frames, height, width, 3]), or None.
          question: the question; `\\<image>` in it is the text `<image>`.
          history: (question, answer) of earlier turns; the media precede the first question.
          frames: the largest number of frames taken of a video file, evenly spaced; 1 + 4k.
          **options: see `DecodingOptions`.

        Raises:
          NotFiniteError: the model computed NaN or infinity.
          ValueError: a file cannot be read, images and clips are mixed, an option is unknown or invalid, or the
            template does not fit.
          FileNotFoundError: there is no such file.
        """
        clips = self.load_media(as_list(media), frames)
        return self.reply([Conversation.of(clips, question, history)], **options)[0]

    def stream_answer(
        self,
        media: MediaInput | Sequence[MediaInput] | None,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """Yields the result of `answer` in parts as they are decoded; the arguments and errors are the same.

        Example:
            for part in tuna.stream_answer("a.png", "what is this?"):
                print(part, end="", flush=True)
        """
        clips = self.load_media(as_list(media), frames)
        return self.stream(Conversation.of(clips, question, history), **options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        media: MediaInput | Sequence[MediaInput] | None = None,
        *,
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> str:
        r"""The assistant's next message.

        Args:
          messages: dicts with `role` ('system', 'user' or 'assistant') and `content`; the last one is the user's.
            Content is a string, where `<image>` in the user's marks the position of an image or clip and `\<image>` is
            the text `<image>`; or a list of parts, where nothing needs escaping: `{"type": "text", "text": ...}` and
            `{"type": "image", "image": ...}` or `{"type": "video", "video": ...}` with the image or clip itself.
          media: the images or clips that parts do not name, in the order of their positions.
          frames: the largest number of frames taken of a video file; 1 + 4k.
          **options: see `DecodingOptions`.

        Raises:
          ValueError: the number of `<image>` tags differs from that of media, and the errors of `answer`.
        """
        clips = self.load_media(media_of(messages, media), frames)
        return self.reply([Conversation(tuple(messages), tuple(clips))], **options)[0]

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        media: MediaInput | Sequence[MediaInput] | None = None,
        *,
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """Yields the result of `chat` in parts as they are decoded; the arguments and errors are the same."""
        clips = self.load_media(media_of(messages, media), frames)
        return self.stream(Conversation(tuple(messages), tuple(clips)), **options)

    def reply(
        self, conversations: Sequence[Conversation], **options: Unpack[DecodingOptions]
    ) -> list[str]:
        """The assistant's next message in each conversation; `answer` and `chat` call it.

        Conversations with equally many media of one shape run in one batch.

        Raises:
          ValueError: `temperature`, `top_k` or `top_p` is out of range, and the errors of `answer`.
        """
        return text.reply(self, conversations, options)

    def stream(
        self, conversation: Conversation, **options: Unpack[DecodingOptions]
    ) -> Iterator[str]:
        """Yields the assistant's next message in parts as they are decoded; together they are the result of `reply`.

        A part never changes later: a character of several tokens is yielded when it is complete. Two programs are
        compiled in addition to those of `reply`: one for the prompt, and one for each `text_decoder.CHUNK` tokens.

        Raises:
          ValueError: as `reply`; raised by the call, not by the first iteration.
        """
        return text.stream(self, conversation, options)

    def prompt_tokens(
        self, conversation: Conversation, template: str | None = None
    ) -> TokenSequence:
        """The token sequence that the answer follows; see `conversation.prompt_tokens`."""
        grids = [
            Grid(*self.config.space.latent_shape(*clip.shape[:3])[:3])
            for clip in conversation.media
        ]
        return prompt_tokens(self.tokenizer, conversation, grids, self.template, template)

    def prefix(
        self,
        prompts: Sequence[TokenSequence],
        media: Sequence[Sequence[np.ndarray]],
        width: int | None = None,
    ) -> Prefix:
        """What generation starts from: token sequences with the latents of their media.

        Args:
          prompts: token sequences.
          media: the clips of each sequence, equally many of one shape, uint8 [frames, height, width, 3].
          width: tokens that the sequences are padded to; None: see `batching.prefix_of`.
        """
        latents = patches = None
        if media and media[0]:
            clips = np.stack([clip for row in media for clip in row])
            mean = images.encode(self, clips)
            latents = mean.reshape(len(media), -1, *mean.shape[1:])
            patches = batching.clean_patches(self.config, clips)
        if patches is not None:
            patches = patches.reshape(len(media), -1, *patches.shape[1:])
        return batching.prefix_of(prompts, self.tokenizer.special, latents, width, patches)

    def load_media(self, media: Sequence[MediaInput], frames: int = 17) -> list[np.ndarray]:
        """Images and videos as clips of one shape, for a `Conversation`; the errors are those of `answer`.

        The shape is the nearest to the first of them that the model was trained on (`shapes`), or the model's size.
        """
        step = self.config.space.temporal_factor
        frames = option_checks.frames(frames, step)
        size = trained_shapes.of_media(self.shapes, self.size, media)
        return [as_clip(item, size, frames, step) for item in media]


def on_mesh(model: Tuna, mesh: Mesh) -> Tuna:
    """A model whose parameters are sharded over `mesh`, with its VAE replicated and its batches sharded over it."""
    vae_params = distributed.replicate(model.vae_params, mesh)
    return dataclasses.replace(
        model, vae_params=vae_params, sharding=Activations(mesh, generation=True)
    )


def in_training(model: Tuna, mesh: Mesh) -> Tuna:
    """A model of a run's parameters, as its contact sheets are generated: over the mesh of the run.

    All processes of the run must call it; see `leader.adopt`.
    """
    return leader.adopt(model if mesh.size == 1 else on_mesh(model, mesh))
