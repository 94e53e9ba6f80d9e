"""Encodes the pictures and clips of a manifest in advance, so that training need not run the VAE.

Examples:
  python -m tuna_jax.encode_latents --manifest data/captions.jsonl --output data/captions_latents --sizes 512
  python -m tuna_jax.encode_latents --manifest clips.jsonl --output latents --sizes 384x672 --frames 17 --fps 8

The same command goes on where a killed one stopped. On several hosts that see one folder, give each the same command
with --process_index 0, 1, ... and --process_count; each writes shards of its own.

A stream of training takes the folder in place of the manifest: data.latent_records.LatentExamples(folder).
"""

from __future__ import annotations

# A command, which is why it knows rooms that sit above data/: the VAE is the model's, and its files are training's.
import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from tuna_jax.config import VAEConfig, preset
from tuna_jax.conversion.image_vae_file import shipped_image_vae
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media.image import SMALLEST_SIDE, Size
from tuna_jax.data.mixture.bucketing import SIZES_512, named_sizes
from tuna_jax.data.precompute_latents import EncodeClips, Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import vae_fingerprint
from tuna_jax.inference.components import open_vae
from tuna_jax.models import vae


def encoder(config: VAEConfig, params: Any) -> EncodeClips:
    """The VAE as a function of clips, uint8 [n, F, H, W, 3]; one program is compiled for each shape."""
    params = jax.tree.map(jnp.asarray, params)

    run = jax.jit(functools.partial(vae.posterior, config))

    def encode(clips: UInt8[np.ndarray, "n f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        mean, std = run(params, clips)
        return np.asarray(mean), np.asarray(std)

    return encode


def read_sizes(text: str) -> tuple[Size, ...]:
    """'512,384x672' -> the sizes; see `buckets.named_sizes`."""
    try:
        return tuple(size for part in text.split(",") for size in named_sizes(part))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.encode_latents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True, help="the JSONL file, in any of the formats")
    add("--output", type=Path, required=True, help="the folder of the latents, made if absent")
    add("--image_root", type=Path, help="where relative paths begin; else the manifest's folder")
    add("--vae", type=Path, default=shipped_image_vae(),
        help="Wan 2.2's, a converted model, or a file of experiments/emoji/vae.py; else the emoji VAE")  # fmt: skip
    add("--sizes", type=read_sizes, default=SIZES_512, metavar="SIZES",
        help="512 (default) or 1024 for TUNA's five, or HEIGHTxWIDTH, with commas; rows take the nearest")  # fmt: skip
    add("--frames", type=int, default=1, help="frames of a clip, 1 + 4k (default 1)")
    add("--fps", type=float, help="frames a second of a clip; else spread over the whole of it")
    add("--smallest", type=int, default=SMALLEST_SIDE, help="pixels that a side must have (16)")
    add("--batch_size", type=int, default=8, help="pictures or clips a call of the VAE (8)")
    add("--shard_rows", type=int, default=256, help="rows a shard (256)")
    add(
        "--max_invalid_fraction",
        type=float,
        default=0.05,
        help="stop when more rows are unusable (0.05)",
    )
    add("--threads", type=int, default=8, help="files that are decoded at once (8)")
    add("--process_index", type=int, default=0, help="this host's number, from 0")
    add("--process_count", type=int, default=1, help="how many hosts encode this manifest")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = _arguments().parse_args(arguments)
    try:
        config, params = open_vae(given.vae, preset("tuna_1p5b"))
        for size in given.sizes:
            config.latent_shape(given.frames, size.height, size.width)
        encoding = Encoding(
            vae_fingerprint=vae_fingerprint(config, params),
            sizes=given.sizes,
            frames=given.frames,
            fps=given.fps,
            smallest=given.smallest,
            batch_size=given.batch_size,
            shard_rows=given.shard_rows,
        )
        counts = encode_manifest(
            Manifest(given.manifest, given.image_root),
            given.output,
            encoder(config, params),
            encoding,
            process_index=given.process_index,
            process_count=given.process_count,
            threads=given.threads,
            invalid_examples=InvalidExamples(limit=given.max_invalid_fraction),
        )
    except (FileNotFoundError, ValueError, TooManyInvalidExamples) as error:
        print(f"encode_latents: {error}", file=sys.stderr)
        return 1
    rows = counts.pop("rows")
    bad = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    print(f"{given.output}: {rows} rows encoded now; bad rows: {bad} ('bad' in each shard's .json)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
