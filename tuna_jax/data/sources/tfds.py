"""Any data set of TensorFlow Datasets (`tfds.data_source`) as a source of examples, by a map of its fields.

    TfdsExamples("beans", "train", {"image": "image", "caption": "label"})           image_caption
    TfdsExamples("my_vqa", "train", {"image": "image", "question": "q", "answer": "a"})   image_chat

Keys are those of the manifests' formats (jsonl.py), and `question` with `answer` for a conversation of two turns.
TensorFlow is not needed, but the data set must have been prepared as ArrayRecord.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Medium
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.jsonl import make_example

_MEDIA = ("image", "video", "raw_image", "out_image")
_KEYS = (*_MEDIA, "caption", "instruction", "conversations", "question", "answer")


class TfdsExamples:
    """The examples of a split, in its order.

    Images stay encoded until a batch needs them, at its size. A class label becomes its name.
    Reading is safe from several threads.

    Args:
        dataset: a registered name ('beans', 'coco_captions:1.1.0'), or the folder of a prepared data set (the one with
            `dataset_info.json`).
        split: 'train', 'test[:10%]', ...
        fields: a format's key -> the data set's feature; 'objects.name.0' selects within nested ones.
        data_dir: where prepared data sets are; None uses TFDS's default.

    Raises:
        FileNotFoundError: the data set is not prepared there.
        ValueError: a key or a feature that does not exist, or a data set that cannot be read by number.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        split: str,
        fields: Mapping[str, str],
        *,
        data_dir: str | os.PathLike[str] | None = None,
    ):
        unknown = sorted(set(fields) - set(_KEYS))
        if unknown or not fields:
            raise ValueError(
                f"fields maps {unknown or 'nothing'}; the keys are {', '.join(_KEYS)}, and the values features"
            )
        self._dataset, self._split, self._fields = dataset, split, dict(fields)
        self._data_dir, self._lock = data_dir, threading.Lock()
        self._source: Any = None
        builder = self._builder()
        features = builder.info.features
        for key, path in self._fields.items():
            if path.split(".")[0] not in features:
                known = ", ".join(sorted(features))
                raise ValueError(
                    f"{builder.info.full_name} has no feature {path!r} for {key!r}; it has {known}"
                )
        self._labels = {
            path: features[path].names
            for path in self._fields.values()
            if path in features and type(features[path]).__name__ == "ClassLabel"
        }
        self.name = f"{builder.info.full_name}, {split}"
        self.location = Path(builder.data_path)
        self._length = len(self._records())
        shards = [
            (name, list(info.shard_lengths), int(info.num_bytes))
            for name, info in builder.info.splits.items()
        ]
        digest = hashlib.sha256(repr((shards, sorted(self._fields.items()))).encode())
        self._identity = f"{self.name} {digest.hexdigest()[:16]}"

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # Takes seconds.

        if Path(self._dataset, "dataset_info.json").is_file():
            return tfds.builder_from_directory(self._dataset)
        try:
            builder = tfds.builder(str(self._dataset), data_dir=self._data_dir)
        except tfds.core.DatasetNotFoundError as error:  # Its message lists all data sets of TFDS.
            names = tfds.list_builders(with_community_datasets=False)
            nearest = difflib.get_close_matches(str(self._dataset), names, n=3)
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            raise FileNotFoundError(
                f"TFDS has no data set {str(self._dataset)!r}, and no folder of that name has a dataset_info.json{hint}"
            ) from error
        if not Path(builder.data_path).is_dir():
            raise FileNotFoundError(
                f"{builder.info.full_name} is not prepared in {builder.data_path}; run "
                f"tfds.builder({str(self._dataset)!r}, file_format='array_record').download_and_prepare(), or name "
                "the folder that has it"
            )
        return builder

    def _records(self) -> Any:
        """The random-access source; each process opens its own."""
        with self._lock:
            if self._source is None:
                import tensorflow_datasets as tfds

                builder = self._builder()
                features = builder.info.features
                skipped = {  # Also images that no field names: decoding takes most of the time.
                    name: tfds.decode.SkipDecoding()
                    for name, feature in features.items()
                    if isinstance(feature, tfds.features.Image)
                }
                try:
                    self._source = builder.as_data_source(self._split, decoders=skipped or None)
                except NotImplementedError as error:
                    raise ValueError(
                        f"{builder.info.full_name} in {builder.data_path} cannot be read by number ({error}); "
                        "prepare it with file_format='array_record'"
                    ) from error
            return self._source

    @property
    def identity(self) -> str:
        """Name, version, split, and a fingerprint of the files' extents and the field map."""
        return self._identity

    def __len__(self) -> int:
        return self._length

    def line(self, index: int) -> int:
        """The example's number, counted from 1."""
        return index + 1

    def __getitem__(self, index: int) -> Example:
        """An example; raises InvalidExample if it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.name}, which has {len(self)}")
        records = self._records()
        with report_as_invalid(self.name, self.line(index)):
            record = records[index]
            entry = {key: self._value(record, key, path) for key, path in self._fields.items()}
            if "question" in entry or "answer" in entry:
                entry["conversations"] = [
                    {"from": "human", "value": entry.pop("question", None)},
                    {"from": "gpt", "value": entry.pop("answer", None)},
                ]
            return make_example(entry, _medium, self.name, self.line(index))

    def _value(self, record: Any, key: str, path: str) -> Any:
        """A feature's value, with texts and labels as strings."""
        value = record
        try:
            for step in path.split("."):
                value = value[int(step) if step.isdigit() else step]
        except (KeyError, IndexError, TypeError) as error:
            raise Fault("unknown_format", f"the example has no {path}") from error
        if key in _MEDIA:
            return value
        if path in self._labels:
            return self._labels[path][int(value)]
        return _plain(value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _plain(value: Any) -> Any:
    """Bytes as text, and arrays and mappings as lists and dicts, as JSON would hold them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Fault("unknown_format", f"a text is not UTF-8: {error}") from error
    return value


def _medium(key: str, value: Any) -> Medium:
    """Encoded bytes or pixels."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value
    if isinstance(value, (bytes, np.bytes_)):
        return bytes(value)
    kind = getattr(value, "dtype", type(value).__name__)
    raise Fault("unknown_format", f"{key} is {kind}, neither encoded bytes nor uint8 pixels")
