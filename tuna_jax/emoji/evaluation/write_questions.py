"""Writes questions about held-out scenes and clips of the emoji world to files, for evaluations that read files.

Examples:

    # Writes runs/questions/pictures.jsonl, runs/questions/clips.jsonl and runs/questions/media/:
    python -m tuna_jax.emoji.evaluation.write_questions --output=runs/questions --count=64

A line is {"image" or "video": a relative path, "question": ..., "answer": ..., "choices": [four texts], "kind": ...}.
The same seed writes the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tuna_jax.data.media.video import write_video
from tuna_jax.emoji.evaluation.clips import test_clips
from tuna_jax.emoji.evaluation.images import SEED, test_scenes
from tuna_jax.emoji.world.captions import Question, questions
from tuna_jax.emoji.world.clips import MOTIONS, VERBS, clip_questions, render_clip
from tuna_jax.emoji.world.nouns import noun
from tuna_jax.emoji.world.rendering import default_art, render
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES

CHOICES = 4
_PICTURE_KINDS, _CLIP_KINDS = ("name", "ground"), ("motion", "name")


def write(folder: str | Path, count: int, frames: int = 4, seed: int = SEED) -> tuple[Path, Path]:
    """Writes `count` questions about images and `count` about clips; returns the paths of both JSONL files.

    Args:
      folder: created if absent; files of the same name are replaced.
      count: number of questions of each.
      frames: frames per clip.
      seed: of scenes, clips and wrong choices.
    """
    folder = Path(folder)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pictures, clips = [], []
    for i, scene in enumerate(test_scenes("test_single", count, seed, 64)):
        path = f"media/picture_{i:04d}.png"
        Image.fromarray(render(scene, default_art())).save(folder / path)
        kind = _PICTURE_KINDS[i % 2]
        chosen = next(item for item in questions(scene) if item.kind == kind)
        pictures.append({"image": path, **_row(chosen, random)})
    for i, clip in enumerate(test_clips(count, frames, seed)):
        path = f"media/clip_{i:04d}.mp4"
        write_video(folder / path, render_clip(clip))
        kind = _CLIP_KINDS[i % 2]
        chosen = next(item for item in clip_questions(clip) if item.kind == kind)
        clips.append({"video": path, **_row(chosen, random)})
    files = folder / "pictures.jsonl", folder / "clips.jsonl"
    for file, rows in zip(files, (pictures, clips), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _row(item: Question, random: np.random.Generator) -> dict[str, object]:
    """A question with its answer among wrong choices of the same kind."""
    texts = {
        "name": [noun(name).one for name in NAMES],
        "ground": list(GROUNDS),
        "motion": [f"it {VERBS[motion]}" for motion in MOTIONS],
    }[item.kind]
    others = [text for text in texts if text != item.answer]
    wrong = random.permutation(len(others))[: CHOICES - 1]
    choices = [others[int(i)] for i in wrong]
    choices.insert(int(random.integers(CHOICES)), item.answer)
    return {
        "question": item.question,
        "answer": item.answer,
        "choices": choices,
        "kind": item.kind,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.emoji.evaluation.write_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder of the files; created if absent"
    )
    parser.add_argument(
        "--count",
        type=int,
        default=64,
        help="number of questions about images and about clips (default: 64)",
    )
    chosen = parser.parse_args(arguments)
    for path in write(chosen.output, chosen.count):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
