"""Shows the hard world and how well its judge reads it: a contact sheet, and every object on every ground.

python -m tuna_jax.emoji.evaluation.hard.look --sheet=docs/generated/hard_world.png
python -m tuna_jax.emoji.evaluation.hard.look --vae=emoji_hard_vae
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tuna_jax.emoji.evaluation.hard.items import TEST_SPLITS
from tuna_jax.emoji.evaluation.hard.judge import HardJudge, Images, seen_in
from tuna_jax.emoji.world.hard.captions import caption
from tuna_jax.emoji.world.hard.nouns import variants
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import INVISIBLE, SIZES, Group, HardScene, HardSceneSource
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.utils.image_grid import contact_sheet


def sheet(count: int = 40, size: int = 96) -> Image.Image:
    """Renderings of held-out scenes with captions, every second of which leaves things open."""
    sources = [HardSceneSource(split, size=size) for split in ("train", *TEST_SPLITS)]
    scenes = [sources[i % len(sources)][i // len(sources)] for i in range(count)]
    texts = [
        caption(scene, np.random.default_rng(i), float(i // len(sources) % 2)).text
        for i, scene in enumerate(scenes)
    ]
    return contact_sheet(np.stack([render_hard(scene) for scene in scenes]), texts)


def every_object(ground: str, size: int = 96) -> list[HardScene]:
    """Scenes that together have every (name, colour, size) on one ground, five to a scene."""
    entries = [
        (name, colour, object_size)
        for object_size in SIZES
        for name, colour in variants()
        if (name, ground) not in INVISIBLE
    ]
    scenes = []
    for start in range(0, len(entries), 5):
        groups = tuple(Group(*e, (2 * i,)) for i, e in enumerate(entries[start : start + 5]))
        scenes.append(HardScene("three", ground, GROUNDS[ground], groups, size))
    return scenes


def mistakes(
    judge: HardJudge, through: Callable[[Images], Images] | None = None, size: int = 96
) -> tuple[int, Counter[tuple[str, str]]]:
    """Number of objects that were looked at, and how often which is seen as which ('' : as none that is known)."""
    looked_at, wrong = 0, Counter[tuple[str, str]]()
    for ground in GROUNDS:
        scenes = every_object(ground, size)
        images = np.stack([render_hard(scene, judge.art) for scene in scenes])
        for scene, seen in zip(scenes, judge(through(images) if through else images), strict=True):
            by_cell = {item.cell: item for item in seen.objects}
            for item in seen_in(scene).objects:
                looked_at += 1
                if by_cell.get(item.cell) != item:
                    other = by_cell.get(item.cell)
                    wrong[" ".join(item[:3]), " ".join(other[:3]).strip() if other else ""] += 1
    return looked_at, wrong


def through_vae(name: str) -> Callable[[Images], Images]:
    """A function that encodes pictures with a VAE, to the posterior's mean, and decodes them."""
    from tuna_jax.config import preset
    from tuna_jax.conversion.image_vae_file import load_image_vae
    from tuna_jax.data.text.tokenizer import Tokenizer
    from tuna_jax.emoji.model_bundle import ModelBundle

    vae, params = load_image_vae(name)
    config = dataclasses.replace(preset("emoji"), vae=vae)
    return ModelBundle(config, params, Tokenizer("emoji_hard"), 96).reconstruct


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, help="PNG file for a contact sheet")
    parser.add_argument(
        "--vae", help="read every object after this VAE: a file, or one of the package"
    )
    parser.add_argument("--size", type=int, default=96, help="side of a picture (default: 96)")
    arguments = parser.parse_args()
    if arguments.sheet:
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet(size=arguments.size).save(arguments.sheet)
        print(arguments.sheet)
    if arguments.vae or not arguments.sheet:
        through = through_vae(arguments.vae) if arguments.vae else None
        looked_at, wrong = mistakes(HardJudge(), through, arguments.size)
        print(f"{looked_at} objects, {wrong.total()} not read exactly")
        for (true, seen), number in wrong.most_common(20):
            print(f"  {number}  {true} seen as {seen or 'no known object'}")


if __name__ == "__main__":
    main()
