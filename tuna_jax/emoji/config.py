"""Configuration of the emoji experiments."""

from __future__ import annotations

import dataclasses

from tuna_jax.emoji.world.hard.held_out import LAYOUTS, Difficulty, available_splits
from tuna_jax.emoji.world.scenes import VOCABULARY
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.training import loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditData:
    """Edits of scenes.

    Attributes:
      count: number of edits that are encoded before training.
      rows: rows per batch; 0 turns edits off.
      length: tokens per row.
      share: share of the batches, relative to the other groups' shares.
      source_spread: how far the source's latents spread around the posterior mean, in posterior standard deviations.
        Editing at inference encodes the source to the mean, so 0 matches inference.
      kinds: relative frequency of each kind of edit; empty takes the defaults of `EditSource`.
    """

    count: int = 16_000
    rows: int = 0
    length: int = 52
    share: float = 1.0
    source_spread: float = 1.0
    kinds: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipData:
    """Clips.

    Attributes:
      count: number of clips that are encoded before training.
      frames: frames per clip.
      generation_rows, understanding_rows: rows per batch with each task; both 0 turn clips off.
      length: tokens per row.
      share: share of the batches, relative to the other groups' shares.
      motions: relative frequency of each motion; empty takes the defaults of `ClipSource`.
    """

    count: int = 12_000
    frames: int = 4
    generation_rows: int = 0
    understanding_rows: int = 0
    length: int = 84
    share: float = 1.0
    motions: dict = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows per batch of both tasks together."""
        return self.generation_rows + self.understanding_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueData:
    """Dialogues about the scenes.

    Attributes:
      rows: rows per batch; 0 turns dialogues off.
      length: tokens per row.
      share: share of the batches, relative to the other groups' shares.
    """

    rows: int = 0
    length: int = 132
    share: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinationData:
    """Edits of two pictures: their objects in one picture.

    Attributes:
      count: number of items that are encoded before training.
      rows: rows per batch; 0 turns them off.
      length: tokens per row.
      share: share of the batches, relative to the other groups' shares.
      source_spread: as for edits.
    """

    count: int = 16_000
    rows: int = 0
    length: int = 80
    share: float = 1.0
    source_spread: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuationData:
    """Clips whose first frame is given: those of `clips`, with its `count`, `frames` and `motions`.

    Attributes:
      rows: rows per batch; 0 turns them off.
      length: tokens per row.
      share: share of the batches, relative to the other groups' shares.
      source_spread: of the first frame, as for the source of edits.
    """

    rows: int = 0
    length: int = 100
    share: float = 1.0
    source_spread: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiData:
    """The mixture of generation and understanding.

    Attributes:
      world: 'scenes', or 'hard': up to five objects with sizes and colours, in captions that leave things open (see
        docs/hard_world.md). It has none of the other groups.
      names: the nouns of images and dialogues: 'demo', the 64 of all models; 'new', 16 that no model of the package
        has seen; or 'all'. Other groups always have those of 'demo', and the hard world has its own.
      partial: in the hard world, share of the captions that leave things open.
      nouns, colours: in the hard world, how many nouns of each of its two kinds, and how many colours; 0 nouns: all.
      scenes: number of training scenes that are encoded before training.
      size: side of an image in pixels; at least 96 in the hard world.
      seed: seed of the scenes, of their order, and of captions and questions.
      order_seed: seed of only the order, captions and questions, so that runs can differ in these and share the
        encoded scenes; -1 takes `seed`.
      length: tokens per row; a longer row is an error that names its length.
      generation_rows, understanding_rows: rows per batch with each task; 0 turns it off. Without rows of generation
        there are no contact sheets.
      caption_dropout: share of generation rows without a caption, for classifier-free guidance.
      generation_spread: how far target latents spread around the posterior mean, in posterior standard deviations:
        1 samples the posterior, 0 takes the mean. Input images of understanding rows always sample the posterior.
      layouts: relative frequency of each layout of scenes; empty takes the defaults of the world's source.
      questions: relative frequency of each kind of question; empty takes the defaults of the stream.
      vocabulary: name of a compact vocabulary of the package, or a JSON file with one.
      threads: host threads that make batches.
      share: share of the batches that hold images, relative to the other groups' shares.
      edits, clips, dialogues, combinations, continuations: the other groups; a group with 0 rows is off.
    """

    world: str = "scenes"
    names: str = "demo"
    partial: float = 0.5
    nouns: int = 0
    colours: int = 6
    scenes: int = 40_000
    size: int = 64
    seed: int = 0
    order_seed: int = -1
    length: int = 44
    generation_rows: int = 16
    understanding_rows: int = 8
    caption_dropout: float = 0.1
    generation_spread: float = 1.0
    layouts: dict = dataclasses.field(default_factory=dict)
    questions: dict = dataclasses.field(default_factory=dict)
    vocabulary: str = "emoji"
    threads: int = 1
    share: float = 1.0
    edits: EditData = EditData()
    clips: ClipData = ClipData()
    dialogues: DialogueData = DialogueData()
    combinations: CombinationData = CombinationData()
    continuations: ContinuationData = ContinuationData()

    @property
    def has_clips(self) -> bool:
        """Whether any group has clips."""
        return bool(self.clips.rows or self.continuations.rows)

    def __post_init__(self) -> None:
        if self.names not in VOCABULARY:
            raise ValueError(
                f"config.data.names is {self.names!r}; choose one of {', '.join(VOCABULARY)}"
            )
        if self.names != "demo" and self.world == "hard":
            raise ValueError(
                f"config.data.names is {self.names!r}, and config.data.world 'hard' has nouns of its own; set "
                f"config.data.names='demo'"
            )

    @property
    def stream_seed(self) -> int:
        """The seed of order, captions and questions."""
        return self.seed if self.order_seed < 0 else self.order_seed

    @property
    def difficulty(self) -> Difficulty:
        """`nouns` and `colours` for the hard world."""
        return Difficulty(self.nouns, self.colours)

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The test splits of the hard world whose layouts are trained."""
        trained = [name for name, weight in self.layouts.items() if weight > 0]
        return available_splits(self.difficulty, trained or LAYOUTS)

    @property
    def images_only(self) -> bool:
        """Whether all groups but that of images are off."""
        return not (
            self.edits.rows or self.has_clips or self.dialogues.rows or self.combinations.rows
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiExperiment(loop.LoopSettings):
    """An experiment file of kind 'emoji': the settings of the training loop, and these.

    Attributes:
      model: a preset and overrides of its fields; see `tuna_jax.config.from_dict`.
      vae: safetensors file of the image VAE; empty takes the emoji VAE of the package.
      init_from: initial parameters of a new run: another run's workdir, a folder written by `convert from_torch`, or
        'emoji', the model in the package; empty initialises them randomly. With `lora`, the frozen model, which every
        start reads.
      init_encoder: initial parameters of only the representation encoder: a file that an experiment of
        experiments/ablations/encoders/ exported; the other parameters are initialised randomly.
      data: the mixture.
      samples: sampling settings, and the number of images of the contact sheets.
    """

    kind: str = "emoji"
    model: dict
    vae: str = ""
    init_from: str = ""
    init_encoder: str = ""
    data: EmojiData = EmojiData()
    samples: SamplingSettings = SamplingSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from and self.init_encoder:
            raise ValueError(
                f"config.init_from ({self.init_from}) has an encoder of its own; leave it or config.init_encoder empty"
            )
