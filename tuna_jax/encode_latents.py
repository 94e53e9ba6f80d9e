"""Precomputes the VAE's latents of a manifest's images and clips, so that training need not run the VAE.

Examples:

    tuna-jax encode-latents --manifest=data/captions.jsonl --output=data/captions_latents --sizes=512
    tuna-jax encode-latents --manifest=clips.jsonl --output=latents --sizes=384x672 --frames=17 --fps=8

The same command resumes after an interruption. On several hosts that see one folder, run it on each with
--process_index=0, 1, ... and --process_count; each host writes its own shards. In an experiment, the stream's key
`latents` names the folder, in place of `manifest`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from tuna_jax.cli import parsing
from tuna_jax.config import VAEConfig, preset
from tuna_jax.conversion.image_vae_file import shipped_image_vae
from tuna_jax.data.invalid_examples import InvalidExamples
from tuna_jax.data.media.color import HDR_CHOICES
from tuna_jax.data.media.image import SMALLEST_SIDE, Size
from tuna_jax.data.mixture.bucketing import SIZES_512, named_sizes
from tuna_jax.data.precompute_latents import EncodeClips, Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import vae_fingerprint
from tuna_jax.inference.components import open_vae
from tuna_jax.models import vae
from tuna_jax.parallel import distributed


def encoder(config: VAEConfig, params: Any) -> EncodeClips:
    """The VAE as a function of clips, uint8 [n, F, H, W, 3]; one program is compiled for each shape."""
    params = jax.tree.map(jnp.asarray, params)

    run = jax.jit(functools.partial(vae.posterior, config))

    def encode(clips: UInt8[np.ndarray, "n f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        mean, std = run(params, clips)
        return np.asarray(mean), np.asarray(std)

    return encode


def read_sizes(text: str) -> tuple[Size, ...]:
    """'512,384x672' -> the sizes; see `data.mixture.bucketing.named_sizes`."""
    try:
        return tuple(size for part in text.split(",") for size in named_sizes(part))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("encode-latents", __doc__)
    add = parser.add_argument
    add("--manifest", required=True, metavar="FILE", help="JSONL manifest, or gs://BUCKET/FILE")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the latents")
    add(
        "--image_root",
        metavar="DIR",
        help="where relative paths begin (default: the manifest's folder)",
    )
    add(
        "--vae",
        type=Path,
        default=shipped_image_vae(),
        metavar="PATH",
        help="Wan 2.2's VAE, a converted model, or a file of experiments/emoji/vae.py "
        "(default: the emoji VAE that ships)",
    )
    add(
        "--sizes",
        type=read_sizes,
        default=SIZES_512,
        metavar="SIZES",
        help="512 or 1024 for TUNA's five sizes, or HEIGHTxWIDTH, separated by commas; each example takes the nearest "
        "(default 512)",
    )
    add(
        "--frames",
        type=parsing.positive_int,
        default=1,
        metavar="N",
        help="frames of a clip, 1 + 4k (default 1)",
    )
    add(
        "--fps",
        type=float,
        help="frames per second of a clip (default: frames are spread over the whole clip)",
    )
    add(
        "--smallest",
        type=parsing.positive_int,
        default=SMALLEST_SIDE,
        metavar="PIXELS",
        help=f"shortest side that an image may have (default {SMALLEST_SIDE})",
    )
    add(
        "--hdr",
        choices=HDR_CHOICES,
        default="tone_map",
        help="what to do with images and clips in high dynamic range, PQ or HLG (default tone_map)",
    )
    add(
        "--batch_size",
        type=parsing.positive_int,
        default=8,
        metavar="N",
        help="images or clips per call of the VAE (default 8)",
    )
    add(
        "--shard_rows",
        type=parsing.positive_int,
        default=256,
        metavar="N",
        help="examples per shard (default 256)",
    )
    add(
        "--max_invalid_fraction",
        type=float,
        default=0.05,
        metavar="FRACTION",
        help="stop if a larger fraction of the examples is invalid (default 0.05)",
    )
    add(
        "--threads",
        type=parsing.positive_int,
        default=8,
        metavar="N",
        help="files that are decoded at a time (default 8)",
    )
    add(
        "--process_index",
        type=int,
        metavar="I",
        help="index of this host (default: the launcher's, otherwise 0)",
    )
    add(
        "--process_count",
        type=parsing.positive_int,
        metavar="N",
        help="number of hosts that encode this manifest (default: the launcher's, otherwise 1)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(parsing.current_arguments("encode_latents", arguments))
    return parsing.run(lambda: _encode(options), options.verbosity)


def _encode(options: argparse.Namespace) -> int:
    distributed.initialize()
    index, count = options.process_index or 0, options.process_count or 1
    if options.process_index is None and options.process_count is None:
        index, count = jax.process_index(), jax.process_count()
    config, params = open_vae(options.vae, preset("tuna_1p5b"))
    for size in options.sizes:
        config.latent_shape(options.frames, size.height, size.width)
    encoding = Encoding(
        vae_fingerprint=vae_fingerprint(config, params),
        sizes=options.sizes,
        frames=options.frames,
        fps=options.fps,
        smallest=options.smallest,
        hdr=options.hdr,
        batch_size=options.batch_size,
        shard_rows=options.shard_rows,
    )
    counts = encode_manifest(
        Manifest(options.manifest, options.image_root),
        options.output,
        encoder(config, params),
        encoding,
        process_index=index,
        process_count=count,
        threads=options.threads,
        invalid_examples=InvalidExamples(limit=options.max_invalid_fraction),
    )
    rows = counts.pop("rows")
    invalid = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    print(
        f"{options.output}: {rows} examples encoded; invalid examples: {invalid} ('bad' in each shard's .json)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
