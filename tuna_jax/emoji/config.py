"""Configuration of the emoji experiments."""

from __future__ import annotations

import dataclasses

from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.training import loop


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
    samples: SamplingSettings = SamplingSettings()
