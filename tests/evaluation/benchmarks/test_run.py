"""A model generates benchmarks: what a sample depends on, and what the folder's record contains."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.media.video import load_video
from tuna_jax.evaluation.benchmarks import registry, run, validate

pytestmark = pytest.mark.usefixtures("any_words")

QUICK = {"steps": 2, "sizes": [(32, 32)], "progress": False}


@pytest.fixture(scope="module")
def geneval(tmp_path_factory):
    data = tmp_path_factory.mktemp("prompts")
    lines = [
        json.dumps({"tag": "colors", "include": [], "prompt": prompt})
        for prompt in ("a dog", "a red cat on a blue background in the rain")
    ]
    (data / "evaluation_metadata.jsonl").write_text("\n".join(lines))
    return registry.read("geneval", data)


def _pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_a_sample_equals_one_generated_separately(tuna, geneval, tmp_path):
    run.run(tuna, geneval, tmp_path / "g", seed=5, guidance=4.0, batch_size=8, **QUICK)
    assert validate.check(geneval, tmp_path / "g", [(32, 32)]) == []
    samples = []
    for place, prompt in enumerate(("a dog", "a red cat on a blue background in the rain")):
        for sample in range(4):
            expected = tuna.generate_image(
                prompt, seed=[(5, place * 64 + sample)], guidance=4.0, steps=2, size=(32, 32)
            )[0]
            samples.append(_pixels(tmp_path / f"g/{place:05d}/samples/{sample:04d}.png"))
            # Other batches round differently.
            assert np.abs(samples[-1] - expected.astype(int)).max() <= 1
    differences = [np.abs(a - b).max() for i, a in enumerate(samples) for b in samples[:i]]
    assert min(differences) > 10


def test_other_batches_give_the_same_files(tuna, geneval, tmp_path):
    for batch in (1, 8):
        run.run(tuna, geneval, tmp_path / str(batch), batch_size=batch, **QUICK)
    for piece in geneval.pieces:
        first, second = (_pixels(tmp_path / name / piece.path) for name in ("1", "8"))
        assert np.abs(first - second).max() <= 1


def test_the_negative_prompt_reaches_the_sampler(tuna, geneval, tmp_path):
    for name, options in (("a", {}), ("b", {"negative": "a dog"})):
        run.run(tuna, geneval, tmp_path / name, guidance=4.0, first=1, **QUICK, **options)
    paths = [tmp_path / name / geneval.pieces[0].path for name in ("a", "b")]
    assert np.abs(_pixels(paths[0]) - _pixels(paths[1])).max() > 1
    assert json.loads((tmp_path / "b.json").read_text())["negative"] == "a dog"


def test_clips_are_generated_and_read_back(tuna, tmp_path):
    rows = [{"prompt_en": "a cat grows", "dimension": ["human_action"]}]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(rows))
    benchmark, folder = registry.read("vbench", tmp_path), tmp_path / "clips"
    run.run(tuna, benchmark, folder, frames=5, **QUICK)
    assert validate.check(benchmark, folder, [(32, 32)], frames=5) == []
    seeds = [(0, sample) for sample in range(5)]
    clips = tuna.generate_video(["a cat grows"] * 5, seed=seeds, frames=5, steps=2, size=(32, 32))
    written = load_video(folder / "a cat grows-2.mp4", (32, 32), 5)
    # H.264 halves the resolution of colours: brightness identifies the sample.
    correlations = [
        np.corrcoef(written.mean(-1).ravel(), clip.mean(-1).ravel())[0, 1] for clip in clips
    ]
    assert np.argmax(correlations) == 2
    assert correlations[2] > 0.8


def test_an_edit_uses_its_source(tuna, tmp_path):
    entry = {"7": {"id": "a.png", "prompt": "make it blue", "edit_type": "adjust"}}
    (tmp_path / "basic_edit.json").write_text(json.dumps(entry))
    source = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(source).save(tmp_path / "a.png")
    benchmark, folder = registry.read("imgedit", tmp_path), tmp_path / "edits"
    run.run(tuna, benchmark, folder, **QUICK)
    expected = tuna.edit_image(source, "make it blue", seed=[(0, 0)], steps=2, size=(32, 32))[0]
    assert np.abs(_pixels(folder / "7.png") - expected.astype(int)).max() <= 1


def test_several_sizes_are_for_edits(tuna, geneval, tmp_path):
    with pytest.raises(ValueError, match="geneval has one size"):
        run.run(tuna, geneval, tmp_path / "g", sizes=[(32, 32), (32, 48)])


def test_another_checkpoint_has_another_fingerprint(tuna):
    fingerprint = run.fingerprint(tuna.params)
    assert fingerprint == run.fingerprint(jax.tree.map(np.asarray, tuna.params))
    changed = jax.tree.map(lambda leaf: leaf, tuna.params)
    scale = changed["language"]["norm"]["scale"]
    changed["language"]["norm"]["scale"] = scale.at[0].add(1e-3)
    assert run.fingerprint(changed) != fingerprint
