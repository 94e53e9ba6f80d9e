"""Clips of the emoji world: one object on a plain ground, and its motion.

    right, left, up, down      a small object moves from one side of the image to the other through the middle
    grow, shrink               in the middle, from small to large or back
    turn left, turn right      in the middle, large, by a quarter turn (left is counterclockwise)

For any number of frames a move uses three positions, growing two sizes and a turn two angles: the small VAE is accurate
for those and not in between (an earlier one reached 24 dB between two positions, and a crown could become a
hamburger).

Clip i depends only on (seed, split, i). About 15 % of the (name, ground, motion) triples never occur in the split
`train`, and `test` consists of them. No frame of `train` is a single-object scene that `scenes.py` holds out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.emoji.world.captions import Question, background
from tuna_jax.emoji.world.nouns import noun
from tuna_jax.emoji.world.rendering import Art, SceneImages, default_art, paste
from tuna_jax.emoji.world.scenes import (
    GROUNDS,
    LARGE,
    NAMES,
    SMALL,
    WHOLE,
    Cell,
    frequencies,
    hashed_share,
    is_held_out_single,
    item_generator,
    shade,
    split_number,
)

HELD_OUT = 0.15
QUARTER = 90.0
CLIP_KINDS = ("motion", "direction", "name", "ground", "describe")
SPLITS = ("train", "test")

# Motion -> verb phrase of captions and answers.
VERBS: dict[str, str] = {
    "right": "moves to the right",
    "left": "moves to the left",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "turn left": "turns to the left",
    "turn right": "turns to the right",
}
MOTIONS = tuple(VERBS)
MOVES = MOTIONS[:4]
_TOWARDS = {
    "right": "to the right",
    "left": "to the left",
    "up": "up",
    "down": "down",
    "turn left": "to the left",
    "turn right": "to the right",
}
# Cells where a move begins and ends, in the middle of a side.
_SIDES: dict[str, Cell] = {
    "left": (0, 16, 32, 32),
    "right": (32, 16, 32, 32),
    "up": (16, 0, 32, 32),
    "down": (16, 32, 32, 32),
}
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """An object and its motion.

    Attributes:
        name: the object.
        motion: one of MOTIONS.
        ground: name of the ground's colour.
        rgb: shade of the ground.
        frames: number of frames.
        size: side of a frame in pixels.
    """

    name: str
    motion: str
    ground: str
    rgb: tuple[int, int, int]
    frames: int
    size: int


def is_held_out(name: str, ground: str, motion: str) -> bool:
    """Whether this triple never occurs in training."""
    return hashed_share("motion", name, ground, motion) < HELD_OUT


def ends(motion: str) -> tuple[tuple[Cell, int] | None, tuple[Cell, int] | None]:
    """The cell of the object in the first and in the last frame, with its counterclockwise quarter turns there.

    None: the object has a size there that the judges do not support.
    """
    if motion in MOVES:
        return (_SIDES[_OPPOSITE[motion]], 0), (_SIDES[motion], 0)
    if motion == "grow":
        return None, (WHOLE, 0)
    if motion == "shrink":
        return (WHOLE, 0), None
    return (WHOLE, 0), (WHOLE, 1 if motion == "turn left" else -1)


def box(clip: Clip, frame: int) -> tuple[float, float, float, float]:
    """(x and y of the centre, side, counterclockwise angle in degrees) of the object in a frame; lengths in pixels."""
    time = frame / (clip.frames - 1)
    x = y = clip.size / 2
    side, angle = (LARGE if "turn" in clip.motion else SMALL), 0.0
    if clip.motion in MOVES:
        begin, end = _SIDES[_OPPOSITE[clip.motion]], _SIDES[clip.motion]
        x, y = (
            (a + (b - a) * round(2 * time) / 2 + 16) * clip.size / 64
            for a, b in zip(begin[:2], end[:2], strict=True)
        )
    elif clip.motion in ("grow", "shrink"):
        side = LARGE if (round(time) == 1) == (clip.motion == "grow") else SMALL
    else:
        angle = QUARTER * round(time) * (1 if clip.motion == "turn left" else -1)
    return x, y, side * clip.size / 64, angle


def render_clip(clip: Clip, art: Art | None = None) -> UInt8[np.ndarray, "frames size size 3"]:
    """The frames of a clip, uint8 RGB. A pure function of the clip."""
    art = art or default_art()
    canvas = np.empty((clip.frames, clip.size, clip.size, 3), np.uint8)
    canvas[:] = clip.rgb
    for frame, picture in enumerate(canvas):
        x, y, side, angle = box(clip, frame)
        pixels = 2 * round(side / 2)  # Even, so that the centre does not shift.
        left, top = round(x - pixels / 2), round(y - pixels / 2)
        if angle:
            colour, rest = (
                np.rot90(plane, round(angle / 90)) for plane in art.sprite(clip.name, pixels)
            )
            under = picture[top : top + pixels, left : left + pixels]
            picture[top : top + pixels, left : left + pixels] = (colour + under * rest + 127) // 255
        else:
            paste(picture, art, clip.name, left, top, pixels)
    return canvas


def clip_captions(clip: Clip) -> tuple[str, ...]:
    """All phrasings of a clip; the first is the usual one."""
    thing, back, does = noun(clip.name).one, background(clip.ground), VERBS[clip.motion]
    return (
        f"{thing} {does} on {back}",
        f"on {back}, {thing} {does}",
        f"{back} with {thing} that {does}",
    )


def continuations(clip: Clip) -> tuple[str, ...]:
    """All phrasings of what happens in a clip whose first frame is given: they do not say what that shows, but for the
    object's name in the second. Only those that begin with 'the' may be sentences, by the words of the vocabulary."""
    does = VERBS[clip.motion]
    return (f"it {does}", f"the {clip.name} {does}")


def beginnings(motion: str) -> tuple[str, ...]:
    """The motions that begin with the same frame as this one."""
    begin = _beginning(motion)
    return tuple(other for other in MOTIONS if _beginning(other) == begin)


def _beginning(motion: str) -> tuple[float, float, float, float]:
    return box(Clip(NAMES[0], motion, "pink", (0, 0, 0), 2, 64), 0)


def clip_questions(clip: Clip) -> list[Question]:
    """All questions about a clip, with their exact answers; the kinds are CLIP_KINDS."""
    result = [
        Question(f"what does the {clip.name} do?", f"it {VERBS[clip.motion]}", "motion"),
        Question("what happens?", f"{noun(clip.name).one} {VERBS[clip.motion]}", "motion"),
        Question("what is this?", noun(clip.name).one, "name"),
        Question("what colour is the background?", clip.ground, "ground"),
        Question("describe the clip.", clip_captions(clip)[0], "describe"),
    ]
    if clip.motion in _TOWARDS:
        verb = VERBS[clip.motion].split()[0].removesuffix("s")
        result.append(Question(f"which way does it {verb}?", _TOWARDS[clip.motion], "direction"))
    return result


class ClipSource:
    """Clips by index.

    Args:
        split: 'train' or 'test'.
        seed: of the clips.
        size: side of a frame in pixels, a multiple of 16.
        frames: frames per clip, at least 2.
        length: number of clips.
        weights: relative frequency of each motion; a motion that is not named has weight 0.
        names: the nouns of the objects.
        ground_jitter: largest deviation of each channel of the ground from the palette, in 255ths.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        *,
        frames: int = 4,
        length: int = 1_000_000,
        weights: Mapping[str, float] | None = None,
        names: Sequence[str] = NAMES,
        ground_jitter: int = 4,
    ):
        if split not in SPLITS:
            raise ValueError(
                f"unknown split of clips {split!r}; the splits are {', '.join(SPLITS)}"
            )
        if frames < 2:
            raise ValueError(f"frames is {frames}; a clip requires at least 2")
        self.split, self.seed, self.size, self.frames = split, seed, size, frames
        self.length, self.names, self.ground_jitter = length, tuple(names), ground_jitter
        self.weights = frequencies(
            "motions", MOTIONS, dict.fromkeys(MOTIONS, 1.0) if weights is None else weights
        )
        self._shares = np.array(list(self.weights.values())) / sum(self.weights.values())
        self.stream = split_number(f"clips {split}")

    def settings(self) -> dict[str, object]:
        """Everything that the clips depend on, for the key of the latent cache."""
        return {
            "clips": 3,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "frames": self.frames,
            "weights": self.weights,
            "names": list(self.names),
            "ground_jitter": self.ground_jitter,
        }

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"ClipSource({self.split!r}, seed={self.seed}, size={self.size})"

    def __getitem__(self, index: int) -> Clip:
        """Clip `index`."""
        random = item_generator(self, index)
        motion = MOTIONS[int(random.choice(len(MOTIONS), p=self._shares))]
        while True:  # Rejection keeps names and grounds uniform; the weights of the motions hold.
            name = self.names[int(random.integers(len(self.names)))]
            ground = tuple(GROUNDS)[int(random.integers(len(GROUNDS)))]
            held_out = is_held_out(name, ground, motion)
            # A frame with a large object in the middle is a scene that may be held out.
            held_out_frame = motion not in MOVES and is_held_out_single(name, ground, "middle")
            if held_out if self.split == "test" else not (held_out or held_out_frame):
                rgb = shade(random, ground, self.ground_jitter)
                return Clip(name, motion, ground, rgb, self.frames, self.size)


class ClipImages:
    """Images for training a VAE: those of another source mixed with frames of clips, half of which turn.

    Args:
        others: the other images.
        share: share of the images that are frames of clips.
        seed, size: as for `ClipSource`; the clips are of its split `train`.
    """

    def __init__(
        self,
        others: SceneImages,
        share: float,
        seed: int = 0,
        size: int = 64,
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"clips is {share}; it must be between 0 and 1")
        weights = {motion: 3.0 if "turn" in motion else 1.0 for motion in MOTIONS}
        self._clips = ClipSource("train", seed, size, length=10**12, weights=weights)
        self._others, self._share = others, share
        self.seed, self.length, self.stream = seed, 10**12, split_number("frames of clips")

    def __getitem__(self, index: int) -> Float32[np.ndarray, "size size 3"]:
        """Image `index` as float32 in [-1, 1]."""
        random = item_generator(self, index)
        if random.random() >= self._share:
            return self._others[index]
        frames = render_clip(self._clips[index])
        return frames[int(random.integers(len(frames)))].astype(np.float32) / 127.5 - 1.0
