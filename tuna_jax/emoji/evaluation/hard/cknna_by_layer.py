"""How similar the layers of a trained emoji model are to a reference: CKNNA by layer, as a table and a figure.

    python -m tuna_jax.emoji.evaluation.hard.cknna_by_layer --workdir=runs/emoji_hard --out=runs/emoji_hard/cknna \\
        --reference=runs/contrastive/encoder.safetensors --reference=vae

A reference is a representation encoder that experiments/ablations/encoders/ wrote, or `vae`: the latents of the VAE.
Features are means over an image's tokens: of the unified visual representation (layer 0), and of the hidden states
after every layer of the language transformer and of the flow head. The images are scenes of the run's world that it was
not trained on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from tuna_jax.conversion.encoder_file import load_encoder
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.emoji.config import EmojiData, EmojiExperiment
from tuna_jax.emoji.encoder_trainer import encoder_features
from tuna_jax.emoji.model_bundle import ModelBundle, load_trained
from tuna_jax.emoji.world import worlds
from tuna_jax.evaluation import layer_features
from tuna_jax.evaluation.metrics.cknna import cknna, prepare
from tuna_jax.inference.batching import in_chunks
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.config_parsing import parse

VAE = "vae"
FILE = "cknna_by_layer"
_COLOURS = ("#2f5fd0", "#c47a12", "#188050", "#8a4fbf", "#c43030")


def scene_images(data: EmojiData, count: int) -> UInt8[np.ndarray, "n size size 3"]:
    """Images of `count` scenes with the layouts of training, and another seed."""
    world = worlds.world(data.world, data.partial, data.difficulty)
    source = world.source("train", data.seed + 2_000_003, data.size)
    return np.stack([world.render(source[index]) for index in range(count)])


def with_vae(bundle: ModelBundle, named: str) -> ModelBundle:
    """The bundle that encodes images for the references: with the VAE `named`, or '' for the run's.

    Raises:
      FileNotFoundError, ValueError: there is no such VAE; or none is named, and the run has none.
    """
    if named:
        vae, params = load_image_vae(named)
        config = dataclasses.replace(bundle.config, vae=vae, pixels=None)
        return dataclasses.replace(bundle, config=config, vae_params=params)
    if bundle.config.vae is None:
        raise ValueError("the run's model works on pixels; name the VAE of the references by --vae")
    return bundle


def reference_features(
    reference: str, bundle: ModelBundle, images: UInt8[np.ndarray, "n size size 3"]
) -> Float[np.ndarray, "n width"]:
    """Features of a reference: the mean over tokens of an encoder's output, or of the VAE's latents.

    Args:
      reference: file of an encoder, or 'vae'.
      bundle: with the VAE that makes the latents.
      images: what is compared.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not an encoder, or one that was trained on latents of another VAE.
    """
    encoder = None if reference == VAE else load_encoder(reference)
    if encoder is not None and encoder.latents != bundle.latents_key:
        raise ValueError(
            f"the encoder of --reference={reference} was trained on latents of another VAE; name it by --vae"
        )
    latents = in_chunks(lambda part: bundle.encode(part)[0], images)
    if encoder is None:
        return latents.mean((1, 2, 3))
    return encoder_features(encoder)(latents).mean(1)


def by_layer(
    features: Float[np.ndarray, "n layers width"],
    reference: Float[np.ndarray, "n other"],
    neighbours: int = 10,
) -> list[float]:
    """CKNNA of every layer with the reference, of features that are prepared as in the published code.

    Raises:
      ValueError: as `cknna`.
    """
    prepared = prepare(reference)
    return [
        cknna(prepare(features[:, layer]), prepared, neighbours)
        for layer in range(features.shape[1])
    ]


def table(
    layers: Sequence[tuple[str, int]],
    values: Mapping[str, Sequence[float]],
    neighbours: int,
    count: int,
) -> str:
    """The values as CSV, a row per reference and layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["reference", "part", "layer", "cknna", "neighbours", "images"])
    for reference, of_layers in values.items():
        for (part, layer), value in zip(layers, of_layers, strict=True):
            writer.writerow([reference, part, layer, f"{value:.6f}", neighbours, count])
    return text.getvalue()


def plot(layers: Sequence[tuple[str, int]], values: Mapping[str, Sequence[float]]) -> bytes:
    """PNG of CKNNA over layers, a line per reference; the flow head begins at the dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.2, 3.0))
    for number, (reference, of_layers) in enumerate(values.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axis.plot(of_layers, color=colour, marker="o", markersize=3, linewidth=1.4, label=reference)
    flow = [at for at, (part, _) in enumerate(layers) if part == "flow_head"]
    if flow:
        axis.axvline(flow[0] - 0.5, color="#6a6f7a", linestyle="--", linewidth=0.8)
    short = {"visual": "z", "language": "L", "flow_head": "F"}
    labels = [short[part] + (str(layer) if layer else "") for part, layer in layers]
    axis.set_xticks(range(len(layers)), labels)
    axis.set_ylabel("CKNNA", fontsize=8, color="#30343c")
    axis.tick_params(labelsize=7, colors="#6a6f7a")
    axis.grid(True, color="#eceef2", linewidth=0.8)
    axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    pyplot.close(figure)
    return buffer.getvalue()


def label(reference: str) -> str:
    """A reference in tables and figures: 'vae', or the folder and the name of a file."""
    path = Path(reference)
    return reference if reference == VAE else f"{path.parent.name}/{path.stem}".lstrip("/")


def measure(
    workdir: str | Path,
    references: Sequence[str],
    out: str | Path,
    *,
    count: int = 256,
    neighbours: int = 10,
    vae: str = "",
) -> dict[str, list[float]]:
    """Writes `cknna_by_layer.csv` and `cknna_by_layer.png` into `out`.

    Args:
      workdir: a run of kind 'emoji', or its `model.safetensors`.
      references: see `reference_features`.
      out: folder, created if it does not exist.
      count: number of images.
      neighbours: of CKNNA.
      vae: see `with_vae`.

    Returns:
      By reference, the values in the order of `layer_features.names`.

    Raises:
      FileNotFoundError, ValueError: the run, a reference or a VAE cannot be used, or there are too few images.
    """
    bundle, params, stored = load_trained(workdir)
    latents = with_vae(bundle, vae)
    images = scene_images(parse(EmojiExperiment, stored).data, count)
    others = {label(name): reference_features(name, latents, images) for name in references}
    features = layer_features.layer_features(bundle.model(params), images)
    values = {name: by_layer(features, other, neighbours) for name, other in others.items()}
    layers = layer_features.names(bundle.config)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{FILE}.csv") as scratch:
        scratch.write_text(table(layers, values, neighbours, count), encoding="utf-8")
    with atomic_file(folder / f"{FILE}.png") as scratch:
        scratch.write_bytes(plot(layers, values))
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="run of kind 'emoji'")
    parser.add_argument(
        "--reference",
        required=True,
        action="append",
        metavar="FILE",
        help="encoder.safetensors of an encoder's run, or 'vae'; give it again for more lines",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write into")
    parser.add_argument("--count", type=int, default=256, help="number of images (default: 256)")
    parser.add_argument(
        "--neighbours", type=int, default=10, help="nearest neighbours of CKNNA (default: 10)"
    )
    parser.add_argument(
        "--vae",
        default="",
        help="VAE of the references: a file, or one of the package (default: the run's)",
    )
    chosen = parser.parse_args(arguments)
    try:
        values = measure(
            chosen.workdir,
            chosen.reference,
            chosen.out,
            count=chosen.count,
            neighbours=chosen.neighbours,
            vae=chosen.vae,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name, of_layers in values.items():
        print(f"{name:32}", *(f"{value:.3f}" for value in of_layers))
    print(Path(chosen.out) / f"{FILE}.png")


if __name__ == "__main__":
    main()
