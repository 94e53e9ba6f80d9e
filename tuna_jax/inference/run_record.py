"""The record that a run or an exported model carries about itself: all that loading it needs to know.

A training run stores it under `RECORD_KEY` in the configuration of every checkpoint and in the metadata of its
`model.safetensors`. Loading, evaluation and serving read this record and do not depend on the trainer that made the
model. Runs of earlier versions and converted models have none; `read` derives theirs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.adapters.settings import AdapterRecord
from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.conversion import checkpoint_source
from tuna_jax.conversion.readers import StateDict
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import generation_config, trained_shapes
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.training.weights_file import RECORD_KEY as RECORD_KEY
from tuna_jax.utils import old_names
from tuna_jax.utils.config_parsing import parse

IN_MODEL = "in_model"
"""`RunRecord.vae` of a model that stores the weights of its VAE."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a trained or converted model is.

    Attributes:
      kind: of experiment: 'emoji', 'multitask', or 'converted'.
      model: the model's configuration, see `tuna_jax.config.from_dict`.
      vae: file of the frozen VAE; '' is the VAE that ships with the package, `IN_MODEL` a VAE stored with the model.
      tokenizer: name or file of a compact vocabulary, or a tokenizer's folder; '' is Qwen2.5's.
      template: template of questions, 'plain' or 'chat'; see `conversation.prompt_tokens`.
      size: (height, width) of an image in pixels.
      sampling: defaults of sampling.
      shapes: by task, the (height, width) that images had in training; see `trained_shapes`.
      adapter: the adapter that the run trained, and its model; None: the run trained all parameters.
    """

    kind: str
    model: Mapping[str, Any]
    vae: str = ""
    tokenizer: str = ""
    template: str = "chat"
    size: tuple[int, int]
    sampling: SamplingSettings = SamplingSettings(steps=49, guidance=3.0)
    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapter: AdapterRecord | None = None

    @property
    def config(self) -> TunaConfig:
        """The model's configuration. Its VAE part is replaced by the one in the VAE's own file when that is read."""
        return from_dict({"preset": "tiny", **self.model})

    def to_json(self) -> dict[str, Any]:
        """Plain values, the inverse of `from_json`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunRecord:
        """A record from its plain values.

        Raises:
          ValueError: an unknown or missing key, named.
        """
        return parse(cls, values, where=RECORD_KEY)


def read(path: Path, state: StateDict) -> RunRecord:
    """The record of a run's workdir, checkpoint or `model.safetensors`, or of a converted model.

    Args:
      path: where `state` was opened.
      state: its parameters, for their metadata.

    Raises:
      ValueError: the configuration of the model is not stored there.
    """
    stored = checkpoint_source.settings_of(path, state)
    if stored is None:
        config, _ = checkpoint_source.open_parameters(path)
        return of_converted(config)
    if RECORD_KEY in stored:
        record = RunRecord.from_json(stored[RECORD_KEY])
        if "shapes" not in stored[RECORD_KEY]:  # Of an earlier version.
            record = dataclasses.replace(record, shapes=_shapes(stored))
        return record
    return of_old_run(stored)


def _shapes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a multitask run's streams, from the settings that it stored."""
    return trained_shapes.of_streams(stored.get("data", {}).get("streams") or {})


def of_converted(config: TunaConfig) -> RunRecord:
    """The record of a model that `convert from_torch` wrote."""
    side = config.representation.grid * config.space.spatial_factor
    return RunRecord(
        kind="converted",
        model=config.to_dict(),
        vae=IN_MODEL,
        size=(side, side),
        sampling=generation_config.of_released_model(config),
        shapes=trained_shapes.of_released_model(side),
    )


def of_old_run(stored: Mapping[str, Any]) -> RunRecord:
    """The record of a run that an earlier version trained, from the settings that it stored."""
    values = old_names.experiment(stored, stored=True)
    samples = dict(values.get("samples", {}))
    data = values.get("data", {})
    if values.get("kind") == "multitask":
        height, width = _size(samples.get("size", "512x512"))
        defaults = {
            "steps": 49,
            "guidance": 3.0,
            "guidance_interval": EVERYWHERE,
            "shift": 3.0,
            "solver": "euler",
        }
        sampling = {name: samples.get(name, value) for name, value in defaults.items()}
        return RunRecord(
            kind="multitask",
            model=values["model"],
            vae=values.get("vae", ""),
            tokenizer=data.get("vocabulary", ""),
            size=(height, width),
            sampling=parse(SamplingSettings, sampling, "samples"),
            shapes=_shapes(values),
        )
    clips = data.get("clips", {})
    by_frame = bool(clips.get("generation_rows", 0) + clips.get("understanding_rows", 0))
    model = dict(values["model"])
    model["vae"] = {**model.get("vae", {}), "by_frame": by_frame}
    side = data.get("size", 64)
    return RunRecord(
        kind="emoji",
        model=model,
        vae=values.get("vae", ""),
        tokenizer=data.get("vocabulary", "emoji"),
        template="plain",
        size=(side, side),
        sampling=parse(SamplingSettings, samples, "samples"),
    )


def _size(text: str) -> tuple[int, int]:
    height, _, width = str(text).partition("x")
    return int(height), int(width or height)
