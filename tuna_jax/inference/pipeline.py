"""What a TUNA can do, with its VAE and its tokenizer around it: draw, edit, make video, answer, chat.

Everything runs in batches through few compiled programs (`rows.py`). Row i depends on (seed, i) and on its own request
alone.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference import batching
from tuna_jax.inference.conversation import Conversation, ask
from tuna_jax.inference.exported_sampler import Programs
from tuna_jax.inference.generation import flow_sampler, text_decoder
from tuna_jax.inference.generation.prefix_cache import Prefix, prepared
from tuna_jax.inference.generation_config import (
    DecodingOptions,
    SamplingOptions,
    SamplingSettings,
    check,
)
from tuna_jax.inference.media_inputs import MediaInput, as_clip, as_list
from tuna_jax.models.logical_sharding import LogicalSharding
from tuna_jax.models.vae_tiles import TILE_ABOVE
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.sequence import Grid, TokenSequence, drawing_prompt, editing_prompt
from tuna_jax.utils import old_names

Pictures = UInt8[np.ndarray, "n height width 3"]
Clips = UInt8[np.ndarray, "n frames height width 3"]


@dataclasses.dataclass(frozen=True)
class Tuna:
    """A model with its VAE, its tokenizer and its defaults: generates, edits, answers and chats.

    Example:
        tuna = Tuna.load("runs/demo")
        images = tuna.generate_image(["a red apple on a blue background"], seed=3)
        print(tuna.answer(images[0], "what is this?"))

    Attributes:
      config: the model, with the VAE's config in it.
      params: the network.
      vae_params: the frozen VAE.
      tokenizer: text to ids.
      size: (height, width) of a picture in pixels, where a call names none.
      samples: how to draw, where a call names nothing else.
      template: how a question is put: 'plain' if the model was trained so, else 'chat'; see `conversations.ask`.
      sharding: how rows lie over the devices, `Activations(mesh, generation=True)` where the parameters lie on a mesh
        of several; None: nobody says.
      tile_above: pixels of a frame above which the VAE takes it in overlapping tiles, to save memory.
      programs: exported ones, which are called instead of tracing where one fits.
    """

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
    ) -> Tuna:
        """Reads a training run or a converted model; arguments and errors are those of `inference.loading.load`."""
        from tuna_jax.inference.loading import load  # It imports this module.

        return load(path, vae=vae, tokenizer=tokenizer, dtype=dtype, programs=programs, mesh=mesh)

    @functools.cached_property
    def _prepared(self) -> Any:
        """The network as text and pictures take it. On a mesh it stays as it was laid out."""
        return prepared(self.config, self.params) if self.sharding is None else self.params

    def generate_image(
        self, prompts: str | Sequence[str], **options: Unpack[SamplingOptions]
    ) -> Pictures:
        """A picture of each prompt, uint8 [n, height, width, 3].

        Args:
          prompts: one or several.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: a size that is not divisible by 16, an unknown solver, fewer than one step, a guidance interval
            that is none, no prompt, another number of negatives or seeds than prompts.
        """
        listed = _listed(prompts)
        return self._draw(self._drawing, listed, None, 1, options)[:, 0]

    def generate_video(
        self, prompts: str | Sequence[str], *, frames: int = 17, **options: Unpack[SamplingOptions]
    ) -> Clips:
        """A clip of each prompt, uint8 [n, frames, height, width, 3].

        Args:
          prompts: one or several.
          frames: 1 + 4k.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: as `generate_image`, and another number of frames.
        """
        return self._draw(self._drawing, _listed(prompts), None, frames, options)

    def edit_image(
        self,
        pictures: MediaInput | Sequence[MediaInput],
        instructions: str | Sequence[str],
        **options: Unpack[SamplingOptions],
    ) -> Pictures:
        """Each picture changed as its instruction says, uint8 [n, height, width, 3].

        The picture stands clean in both branches of guidance (model.md section 9).

        Args:
          pictures: the sources, one for all or one for each instruction: files, Pillow pictures, or arrays uint8
            [height, width, 3]. They are scaled and cropped to the size of the result.
          instructions: what to change, one or several.
          **options: see `SamplingOptions`.

        Raises:
          ValueError: as `generate_image`, and another number of pictures than instructions.
          FileNotFoundError: no such file.
        """
        listed, size = _listed(instructions), options.get("size") or self.size
        self.config.vae.latent_shape(1, *size)  # A wrong size is told before a file is read.
        sources = [as_clip(item, size) for item in as_list(pictures)]
        if any(len(clip) != 1 for clip in sources):
            raise ValueError("a clip cannot be edited; give pictures, [height, width, 3] each")
        if len(sources) == 1:
            sources = sources * len(listed)
        if len(sources) != len(listed):
            raise ValueError(
                f"{len(sources)} pictures and {len(listed)} instructions; give one picture, or one for each"
            )
        return self._draw(self._editing, listed, np.stack(sources), 1, options)[:, 0]

    def answer(
        self,
        shown: MediaInput | Sequence[MediaInput] | None,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> str:
        """The answer to a question about pictures or a video, or about nothing that is shown.

        Args:
          shown: a picture, several, a clip (a video file, or uint8 [frames, height, width, 3]), or None.
          question: what is asked.
          history: (question, answer) of earlier turns; what is shown stands before the first question.
          frames: at most so many frames of a video file, evenly spaced; 1 + 4k.
          **options: see `DecodingOptions`.

        Raises:
          ValueError: a file that cannot be read, pictures beside a clip, a template that does not fit.
          FileNotFoundError: no such file.
        """
        seen = self.see(as_list(shown), frames)
        return self.reply([Conversation.of(seen, question, history)], **options)[0]

    def stream_answer(
        self,
        shown: MediaInput | Sequence[MediaInput] | None,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """What `answer` returns, in parts, as they are decoded; arguments and errors as there.

        Example:
            for part in tuna.stream_answer("a.png", "what is this?"):
                print(part, end="", flush=True)
        """
        seen = self.see(as_list(shown), frames)
        return self.stream(Conversation.of(seen, question, history), **options)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        shown: MediaInput | Sequence[MediaInput] | None = None,
        *,
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> str:
        """The assistant's next message.

        Args:
          messages: dicts with `role` ('system', 'user' or 'assistant') and `content`; the last is the user's. A picture
            or clip goes where a user's content has `<image>`.
          shown: what goes there, in order.
          frames: at most so many frames of a video file.
          **options: see `DecodingOptions`.

        Raises:
          ValueError: as `answer`, and another number of `<image>` than of what is shown.
        """
        seen = self.see(as_list(shown), frames)
        return self.reply([Conversation(tuple(messages), tuple(seen))], **options)[0]

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        shown: MediaInput | Sequence[MediaInput] | None = None,
        *,
        frames: int = 17,
        **options: Unpack[DecodingOptions],
    ) -> Iterator[str]:
        """What `chat` returns, in parts, as they are decoded; arguments and errors as there."""
        seen = self.see(as_list(shown), frames)
        return self.stream(Conversation(tuple(messages), tuple(seen)), **options)

    def reply(
        self, conversations: Sequence[Conversation], **options: Unpack[DecodingOptions]
    ) -> list[str]:
        """The assistant's next message in each conversation; what `answer` and `chat` are made of.

        Conversations that show equally much run together.

        Raises:
          ValueError: as `answer`, and a temperature, `top_k` or `top_p` out of its range.
        """
        chosen = _decoding(options)
        most, template = chosen.pop("batch_size"), chosen.pop("template")
        keys = batching.keys(chosen.pop("seed"), len(conversations))
        replies = [""] * len(conversations)
        for group in _alike(conversations):
            asked = [self.ask(conversations[i], template) for i in group]
            shown = [conversations[i].media for i in group]
            words = self._continue(asked, shown, keys[np.asarray(group)], most, chosen)
            for place, row in zip(group, words, strict=True):
                replies[place] = self.tokenizer.decode(self._said(row))
        return replies

    def stream(
        self, conversation: Conversation, **options: Unpack[DecodingOptions]
    ) -> Iterator[str]:
        """The assistant's next message in parts, as they are decoded; together they are what `reply` returns.

        Each part is text that stays as it is: a character of several tokens comes when it is whole. Two programs are
        compiled, other than those of `reply`: one for the prompt, one for every `text.CHUNK` tokens.

        Raises:
          ValueError: as `reply`; by the call itself, not when the first part is asked for.
        """
        chosen = _decoding(options)
        asked = self.ask(conversation, chosen.pop("template"))
        keys = batching.keys(chosen.pop("seed"), 1)
        chosen.pop("batch_size")
        parts = text_decoder.stream(
            self.config,
            self._prepared,
            self.prefix([asked], [conversation.media]),
            keys if chosen.get("temperature") else keys[0],
            eos=self.tokenizer.special.eos,
            sharding=self.sharding,
            **chosen,
        )
        return self.tokenizer.decode_parts(self._said(part[0]) for part in parts)

    def _continue(
        self,
        asked: Sequence[TokenSequence],
        shown: Sequence[Sequence[np.ndarray]],
        keys: Array,
        most: int | None,
        decoding: Mapping[str, Any],
    ) -> Int[np.ndarray, "n new"]:
        """Ids that follow sequences which show equally much."""
        width, tokens = batching.width_of(asked), int(asked[0].spans[:, 1].sum())
        greedy = not decoding.get("temperature")

        def some(part: Int[np.ndarray, " rows"]) -> np.ndarray:
            prefix = self.prefix([asked[i] for i in part], [shown[i] for i in part], width)
            decoded = text_decoder.generate(
                self.config,
                self._prepared,
                prefix,
                keys[0] if greedy else keys[part],  # Greedy decoding draws nothing.
                eos=self.tokenizer.special.eos,
                sharding=self.sharding,
                **decoding,
            )
            return np.asarray(decoded.tokens)

        return batching.in_chunks(
            some, np.arange(len(asked)), most or batching.rows_a_chunk(tokens)
        )

    def ask(self, conversation: Conversation, template: str | None = None) -> TokenSequence:
        """The tokens that the answer follows; see `conversations.ask`."""
        grids = [
            Grid(*self.config.vae.latent_shape(*clip.shape[:3])[:3]) for clip in conversation.media
        ]
        return ask(self.tokenizer, conversation, grids, self.template, template)

    def prefix(
        self,
        asked: Sequence[TokenSequence],
        shown: Sequence[Sequence[np.ndarray]],
        width: int | None = None,
    ) -> Prefix:
        """Sequences with the latents of what they show, equally many clips of one shape a row."""
        latents = None
        if shown and shown[0]:
            clips = np.stack([clip for row in shown for clip in row])
            mean = self._encode(clips)
            latents = mean.reshape(len(shown), -1, *mean.shape[1:])
        return batching.prefix_of(asked, self.tokenizer.special, latents, width)

    def see(self, shown: Sequence[MediaInput], frames: int = 17) -> list[np.ndarray]:
        """What is shown as clips of the model's size, for a `Conversation`; errors as `answer`."""
        return [as_clip(item, self.size, frames, self.config.vae.temporal_factor) for item in shown]

    def _drawing(self, prompt: str, grid: Grid) -> TokenSequence:
        del grid
        return drawing_prompt(self.tokenizer.special, self.tokenizer.encode(prompt))

    def _editing(self, instruction: str, grid: Grid) -> TokenSequence:
        return editing_prompt(self.tokenizer.special, self.tokenizer.encode(instruction), grid)

    def _draw(
        self,
        layout: Any,
        prompts: list[str],
        sources: Clips | None,
        frames: int,
        options: SamplingOptions,
    ) -> Clips:
        """Clips of prompts, laid out by `layout`, beside clean sources if there are any."""
        fields = {field.name for field in dataclasses.fields(self.samples)}
        given_options = old_names.sampling_options(options)
        changes: dict[str, Any] = {
            name: value
            for name, value in given_options.items()
            if name in fields and value is not None
        }
        chosen = dataclasses.replace(self.samples, **changes)
        shape = self.config.vae.latent_shape(frames, *(options.get("size") or self.size))
        grid = Grid(*shape[:3])
        given = options.get("negative") or ""
        if any(given) and chosen.guidance in (0.0, 1.0):
            raise ValueError(
                f"a negative prompt has no effect at guidance {chosen.guidance:g}; raise the guidance"
            )
        if options.get("guidance_interval") and chosen.guidance in (0.0, 1.0):
            raise ValueError(
                f"a guidance interval has no effect at guidance {chosen.guidance:g}; raise the guidance"
            )
        against = [given] * len(prompts) if isinstance(given, str) else list(given)
        if len(against) != len(prompts):
            raise ValueError(
                f"{len(against)} negative prompts for {len(prompts)} prompts; give one, or one for each"
            )
        positive = [layout(prompt, grid) for prompt in prompts]
        negative = [layout(prompt, grid) for prompt in against]
        width = batching.width_of([*positive, *negative])
        noise = batching.noise(options.get("seed") or 0, len(prompts), shape)

        def some(part: np.ndarray) -> np.ndarray:
            special = self.tokenizer.special
            if sources is None and self.programs is not None and self.sharding is None:
                sides = [[side[i] for i in part] for side in (positive, negative)]
                held = (self.params, self.vae_params)
                made = self.programs.draw(*held, sides, special, noise[part], frames, chosen)
                if made is not None:
                    return made
            latents = None
            if sources is not None:
                latents = self._encode(sources[part])[:, None]
            drawn = flow_sampler.sample(
                self.config,
                self._prepared,
                batching.prefix_of([positive[i] for i in part], special, latents, width),
                jnp.asarray(noise[part]),
                negative=batching.prefix_of([negative[i] for i in part], special, latents, width),
                guidance=chosen.guidance,
                guidance_interval=chosen.guidance_interval,
                steps=chosen.steps,
                shift=chosen.shift,
                solver=chosen.solver,
                sharding=self.sharding,
            )
            made = batching.decode(
                self.config, self.vae_params, drawn, self.sharding, self.tile_above
            )
            return np.asarray(made)

        tokens = grid.tokens * (1 if sources is None else 2)
        most = options.get("batch_size") or batching.rows_a_chunk(tokens)
        return batching.in_chunks(some, np.arange(len(prompts)), most)

    def _encode(self, clips: Clips) -> Array:
        """The normalised latents of clips."""
        return batching.encode(self.config, self.vae_params, clips, self.sharding, self.tile_above)[
            0
        ]

    def _said(self, row: Int[np.ndarray, " n"]) -> list[int]:
        """The ids before the end that can be read."""
        ids, eos = row.tolist(), self.tokenizer.special.eos
        said = ids[: ids.index(eos)] if eos in ids else ids
        # The table may have rows beyond the tokenizer's ids; an untrained model can choose one.
        return [i for i in said if i < self.tokenizer.size]


def _listed(prompts: str | Sequence[str]) -> list[str]:
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ValueError("no prompt is given")
    return listed


def _decoding(options: DecodingOptions) -> dict[str, Any]:
    """Options with their defaults, checked; what only the decoder knows is left to it."""
    chosen: dict[str, Any] = {"max_new_tokens": 128, "seed": 0}
    chosen |= {name: value for name, value in options.items() if value is not None}
    check(chosen)
    return {"batch_size": None, "template": None} | chosen


def _alike(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indices of conversations that show equally many clips of one shape: they can share a batch."""
    groups: dict[Any, list[int]] = {}
    for index, conversation in enumerate(conversations):
        shapes = tuple(clip.shape for clip in conversation.media)
        groups.setdefault(shapes, []).append(index)
    return list(groups.values())


def on_mesh(model: Tuna, mesh: Mesh) -> Tuna:
    """A model whose parameters lie on `mesh` already, with its VAE on every device and its rows split over them."""
    vae_params = jax.device_put(model.vae_params, param_sharding.replicated(mesh))
    return dataclasses.replace(
        model, vae_params=vae_params, sharding=Activations(mesh, generation=True)
    )
