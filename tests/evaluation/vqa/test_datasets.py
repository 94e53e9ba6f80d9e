"""Questions of a TFDS data set, built here: with its own questions, and with labels."""

import importlib
import sys

import pytest
from PIL import Image

from tuna_jax.data.media.image import Size, image_size, load_image
from tuna_jax.evaluation.vqa import datasets

BUILDER = '''
import io
from pathlib import Path

import tensorflow_datasets as tfds

ROOT = Path({root!r})


class Builder(tfds.core.GeneratorBasedBuilder):
    """Images and questions about them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict({{
                "photo": features.Image(shape=(None, None, 3), encoding_format="png"),
                "query": features.Text(),
                "reply": features.Text(),
                "label": features.ClassLabel(names=["cat", "dog"]),
            }})
        )

    def _split_generators(self, manager):
        return {{"test": self._generate_examples()}}

    def _generate_examples(self):
        for i in range(3):
            photo = io.BytesIO((ROOT / f"{{i}}.png").read_bytes())
            yield i, {{"photo": photo, "query": f"what is {{i}}?", "reply": f"a {{i}}", "label": i % 2}}
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a prepared data set."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    for i in range(3):
        Image.new("RGB", (20 + i, 10), (40 * i, 0, 0)).save(root / f"{i}.png")
    (root / "tiny_quiz").mkdir()
    (root / "tiny_quiz/__init__.py").touch()
    code = BUILDER.format(root=str(root))
    (root / "tiny_quiz/tiny_quiz_dataset_builder.py").write_text(code)
    sys.path.insert(0, str(root))
    try:
        tfds.disable_progress_bar()
        module = importlib.import_module("tiny_quiz.tiny_quiz_dataset_builder")
        builder = module.Builder(data_dir=root / "prepared", file_format="array_record")
        builder.download_and_prepare()
    finally:
        sys.path.remove(str(root))
    return builder.data_path


def test_questions_and_answers_are_the_data_sets(prepared):
    fields = {"image": "photo", "question": "query", "answer": "reply"}
    items = datasets.read_tfds(prepared, "test", fields)
    assert sorted((item.question, item.answers) for item in items) == [
        (f"what is {i}?", (f"a {i}",)) for i in range(3)
    ]
    for item in items:
        (content,) = item.media
        number = int(item.answers[0][-1])
        assert image_size(content, smallest=1) == Size(10, 20 + number)
        assert load_image(content, (10, 20 + number))[0, 0].tolist() == [40 * number, 0, 0]
    assert len(datasets.read_tfds(prepared, "test", fields, count=2)) == 2


def test_labels_answer_one_question(prepared):
    fields = {"image": "photo", "caption": "label"}
    items = datasets.read_tfds(
        prepared, "test", fields, question="what is it?", choices=["cat", "dog"]
    )
    assert sorted(item.answers for item in items) == [("cat",), ("cat",), ("dog",)]
    assert {item.question for item in items} == {"what is it?"}
    assert {item.choices for item in items} == {("cat", "dog")}
    with pytest.raises(ValueError, match="--question"):
        datasets.read_tfds(prepared, "test", fields)
