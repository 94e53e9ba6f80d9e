"""A TFDS data set that is built here, as examples: every kind, encoded and as pixels, and invalid ones."""

import importlib
import pickle
import sys

import numpy as np
import pytest

from tuna_jax.data.invalid_examples import InvalidExample, InvalidExamples
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.text.tokenizer import Tokenizer

COUNT = 12
BUILDER = '''
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

ROOT = Path({root!r})


class Builder(tfds.core.GeneratorBasedBuilder):
    """Images of the test."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = tfds.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict({{
                "photo": features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "pixels": features.Tensor(shape=(40, 40, 3), dtype=np.uint8),
                "text": features.Text(),
                "label": features.ClassLabel(names=["cat", "dog"]),
                "film": features.Text(),
                "frames": features.Tensor(shape=(5, 32, 32, 3), dtype=np.uint8),
                "dialogue": features.Sequence({{"from": features.Text(), "value": features.Text()}}),
                "number": features.Scalar(np.float32),
            }})
        )

    def _split_generators(self, manager):
        return {{"train": self._generate_examples()}}

    def _generate_examples(self):
        for i in range({count}):
            photo = (ROOT / f"{{i}}.jpg").read_bytes()
            yield i, {{
                "photo": io.BytesIO(photo[:200] if i == 4 else photo),
                "pixels": np.full((40, 40, 3), 5 * i, np.uint8),
                "text": "" if i == 7 else f"number {{i}}",
                "label": i % 2,
                "film": (ROOT / "0.mp4").read_bytes(),
                "frames": np.full((5, 32, 32, 3), 5 * i, np.uint8),
                "dialogue": [{{"from": "human", "value": "What?"}}, {{"from": "gpt", "value": f"A {{i}}."}}],
                "number": 1.0,
            }}
'''


@pytest.fixture(scope="module")
def prepared(module_files):
    """The folder of a prepared data set whose images also exist as files."""
    files, root = module_files, module_files.root
    for i in range(COUNT):
        files.image(f"{i}.jpg", 40, 40 + 20 * (i % 2), shade=10 * i, quality=95)
    files.video("0.mp4", frames=20)
    (root / "tiny_world").mkdir()
    (root / "tiny_world" / "__init__.py").touch()
    text = BUILDER.format(root=str(root), count=COUNT)
    (root / "tiny_world" / "tiny_world_dataset_builder.py").write_text(text)
    sys.path.insert(0, str(root))
    try:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        module = importlib.import_module("tiny_world.tiny_world_dataset_builder")
        builder = module.Builder(data_dir=root / "prepared", file_format="array_record")
        builder.download_and_prepare()
    finally:
        sys.path.remove(str(root))
    return builder.data_path


def fails(rows, i):
    try:
        rows[i]
    except InvalidExample:
        return True
    return False


def test_a_batch_is_that_of_the_same_files(module_files, prepared) -> None:
    rows = TfdsExamples(prepared, "train", {"image": "photo", "caption": "text"})
    assert len(rows) == COUNT
    # TFDS shuffles as it writes.
    order = {int(rows[i].text.split()[-1]): i for i in range(COUNT) if not fails(rows, i)}
    assert sorted(order) == [i for i in range(COUNT) if i != 7]
    assert all(isinstance(rows[i].media[0], bytes) for i in order.values()), "not decoded yet"
    names = ["7.jpg"] * COUNT
    for number, at in order.items():
        names[at] = f"{number}.jpg"
    (module_files.root / "cut.jpg").write_bytes((module_files.root / "4.jpg").read_bytes()[:200])
    listed = [
        {"image": name.replace("4.jpg", "cut.jpg"), "caption": "" if name == "7.jpg" else f"number {name[:-4]}"}
        for name in names
    ]  # fmt: skip
    files = Manifest(module_files.manifest("same.jsonl", listed))

    def mixture(source, log):
        stream = ExampleStream(name="s", task="t2i", source=source, weight=1.0, rows=4, lengths=(32,),
                           sizes=(Size(32, 32), Size(32, 48)))  # fmt: skip
        return Mixture(
            [stream], Tokenizer(), invalid_examples=log, directory=module_files.root / "cache"
        )

    logs = InvalidExamples(limit=1.0), InvalidExamples(limit=1.0)
    mixed = mixture(rows, logs[0]), mixture(files, logs[1])
    for n in range(6):
        from_tfds, from_files = (mixture[n] for mixture in mixed)
        for key in from_tfds:
            np.testing.assert_array_equal(from_tfds[key], from_files[key])
    assert logs[0].counts() == logs[1].counts() == {"empty_text": 1, "corrupt_image": 1}
    again = pickle.loads(pickle.dumps(rows))
    assert again[3].text == rows[3].text


@pytest.mark.parametrize(
    ("fields", "kind", "captions"),
    [
        ({"image": "pixels", "caption": "label"}, "image_caption", ("cat", "dog")),
        ({"image": "photo", "question": "label", "answer": "text"}, "image_chat", None),
        ({"raw_image": "photo", "out_image": "pixels", "instruction": "text"}, "edit", None),
        ({"video": "frames", "caption": "text"}, "video_caption", None),
        ({"video": "film", "caption": "dialogue.value.1"}, "video_caption", None),
    ],
)
def test_every_kind_of_example(module_files, prepared, fields, kind, captions) -> None:
    rows = TfdsExamples(prepared, "train", fields)
    at = next(i for i in range(COUNT) if "text" not in fields.values() or not fails(rows, i))
    row = rows[at]
    assert (row.kind, row.line, row.source) == (kind, at + 1, "tiny_world/1.2.0, train")
    if captions:
        assert {rows[i].text for i in range(COUNT)} == set(captions)
    if row.turns:
        assert [turn.role for turn in row.turns] == ["user", "assistant"]
    task = {"image_caption": "t2i", "image_chat": "understand", "edit": "edit"}.get(kind, "t2v")
    frames = 5 if task == "t2v" else 1
    stream = ExampleStream(name="s", task=task, source=rows, weight=1.0, rows=3, lengths=(64,), frames=frames,
                       sizes=(Size(32, 32),))  # fmt: skip
    mixture = Mixture(
        [stream],
        Tokenizer(),
        invalid_examples=InvalidExamples(limit=1.0),
        directory=module_files.root,
    )
    batch = mixture[0]
    if "pixels" in fields.values() or "frames" in fields.values():
        shades = batch["pixels"][:, -1].reshape(3, -1)
        assert (shades == shades[:, :1]).all() and (shades % 5 == 0).all()
    else:
        assert batch["pixels"].std() > 10


def test_identity_and_splits(prepared) -> None:
    fields = {"image": "photo", "caption": "text"}
    rows = TfdsExamples(prepared, "train", fields)
    assert rows.identity.startswith("tiny_world/1.2.0, train ")
    half = TfdsExamples(prepared, "train[:50%]", fields)
    assert len(half) == COUNT // 2
    others = [
        half.identity,
        TfdsExamples(prepared, "train", {**fields, "caption": "label"}).identity,
    ]
    assert rows.identity not in others
    assert rows.identity == TfdsExamples(prepared, "train", fields).identity
    with pytest.raises(IndexError, match="example 12"):
        rows[COUNT]


def test_errors_are_named(prepared, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"fields maps \['picture'\]; the keys are image, video"):
        TfdsExamples(prepared, "train", {"picture": "photo"})
    with pytest.raises(ValueError, match="no feature 'jpg' for 'image'"):
        TfdsExamples(prepared, "train", {"image": "jpg", "caption": "text"})
    with pytest.raises(FileNotFoundError, match="mnist"):
        TfdsExamples("mnist", "train", {"image": "image", "caption": "label"}, data_dir=tmp_path)
    for fields, why in (
        ({"image": "number", "caption": "text"}, "image is float, neither encoded bytes"),
        ({"image": "photo", "caption": "dialogue.value.7"}, "the example has no dialogue.value.7"),
        ({"image": "photo", "caption": "dialogue.value"}, "caption is a list, not a string"),
    ):
        with pytest.raises(InvalidExample, match=why):
            TfdsExamples(prepared, "train", fields)[0]
