"""Training on files: every format is learned, shapes are compiled in advance, resumed runs have the same batches."""

import json
import wave

import jax
import numpy as np
import pytest
from PIL import Image

from tuna_jax import Tuna, encode_latents
from tuna_jax.data import loader
from tuna_jax.data.invalid_examples import TooManyInvalidExamples
from tuna_jax.data.media.video import write_video
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.emoji.world.nouns import NOUNS
from tuna_jax.emoji.world.rendering import default_art, paste
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.trainers import multitask
from tuna_jax.trainers.build_mixture import open_mixture, weights_history
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.training import state
from tuna_jax.training.checkpoints import Checkpoints, open_arrays
from tuna_jax.training.metrics import read
from tuna_jax.training.train_program import Program
from tuna_jax.training.weights_file import load_model
from tuna_jax.utils.config_parsing import parse

# These files contain words outside the compact vocabulary, which are encoded as bytes.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")

SMALL = {
    "preset": "emoji",
    "representation": {"layers": 1},
    "language": {"layers": 1},
    "flow_head": {"layers": 1},
}


# A batch is a whole epoch, so its loss varies little, and 12 steps are enough to see it fall.
ROWS = 4
STEPS = 12


def picture(index: int, ground: str, left: int = 12, side: int = 64) -> np.ndarray:
    pixels = np.full((side, side, 3), GROUNDS[ground], np.uint8)
    paste(pixels, default_art(), NOUNS[index].singular, left, 12, 40)
    return pixels


def conversation(*texts: str) -> list:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images (JPEG and PNG) and MP4s of emoji, and a manifest in each of the five formats."""
    root = tmp_path_factory.mktemp("files")
    rows: dict[str, list] = {name: [] for name in ("captions", "chats", "text", "edits", "clips")}
    grounds = list(GROUNDS)
    for i in range(ROWS):
        name, ground, other = NOUNS[i].singular, grounds[i], grounds[(i + 3) % 8]
        suffix = (".jpg", ".png")[i % 2]
        before, after = f"{i}{suffix}", f"{i}_after{suffix}"
        Image.fromarray(picture(i, ground)).save(root / before)
        Image.fromarray(picture(i, other)).save(root / after)
        moving = np.stack([picture(i, ground, left=4 + 3 * frame) for frame in range(7)])
        write_video(root / f"{i}.mp4", moving)
        turns = conversation(
            "<image>\nwhat is this?", name, "what colour is the background?", ground
        )
        rows["captions"].append({"image": before, "caption": f"a {name} on {ground}"})
        rows["chats"].append({"image": before, "conversations": turns})
        rows["text"].append({"conversations": conversation(f"name number {i}", name)})
        rows["edits"].append(
            {"raw_image": before, "out_image": after, "instruction": f"make it {other}"}
        )
        rows["clips"].append({"video": f"{i}.mp4", "caption": f"a {name} moves to the right"})
    for name, examples in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    return root


def experiment(folder, streams, **changes):
    """The config of an experiment; `streams` is name -> (task, manifest, further keys)."""
    stream_configs = {
        name: {
            "task": task,
            "manifest": str(folder / f"{manifest}.jsonl"),
            "sizes": ("32x32",),
            "lengths": (96,),
            "rows": ROWS,
            "text_dropout": 0.0,
            **more,
        }
        for name, (task, manifest, more) in streams.items()
    }
    data = {
        "streams": stream_configs,
        "vocabulary": "emoji",
        "cache": str(folder / "cache"),
        "threads": 2,
    }
    return {
        "kind": "multitask",
        "steps": STEPS,
        "model": SMALL,
        "data": data | changes.pop("data", {}),
        "optimizer": {"learning_rate": 4e-3, "warmup": 2, "b2": 0.98, "ema": 0.9},
        # A narrow distribution of times, so that the loss of few rows varies little.
        "time": {"std": 0.1, "shift": False},
        "log_every": 1,
        "checkpoint_every": STEPS,
        **changes,
    }


def run(values, workdir):
    """Runs an experiment; returns its log lines."""
    multitask.train(values, parse(MultitaskExperiment, values), workdir)
    return read(workdir / "metrics.jsonl")


FORMATS = {
    "image generation": ("t2i", "captions", {}, "flow_loss"),
    "captioning": ("understand", "captions", {}, "text_loss"),
    "conversations about images": ("understand", "chats", {}, "text_loss"),
    "conversations": ("chat", "text", {}, "text_loss"),
    "edits": ("edit", "edits", {}, "flow_loss"),
    "clip generation": ("t2v", "clips", {"frames": 5}, "flow_loss"),
    "clip captioning": ("video_understand", "clips", {"frames": 5}, "text_loss"),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_is_learned(folder, tmp_path, name):
    task, manifest, more, loss = FORMATS[name]
    log = run(experiment(folder, {"one": (task, manifest, more)}), tmp_path)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    values = [line[f"{loss}/one"] for line in log]
    assert np.isfinite([line["loss"] for line in log]).all()
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:3])
    other = {"flow_loss": "text_loss", "text_loss": "flow_loss"}[loss]
    assert not any(other in line for line in log), "the other head has no targets"


# Four streams. Images are square or wide: one stream has a bucket for each, and the others have one.
SQUARE = {"lengths": (64,)}
SHAPED = {"sizes": ("32x32", "32x48"), "lengths": (64,)}
STREAMS = {
    "draw": ("t2i", "shaped_captions", {**SHAPED, "weight": 4.0}),
    "look": ("understand", "shaped_chats", {**SQUARE, "lengths": (96,), "weight": 3.0}),
    "edit": ("edit", "shaped_edits", {**SQUARE, "weight": 2.0, "source_dropout": 0.2}),
    "talk": ("chat", "text", {"lengths": (80,), "weight": 1.0}),
}


@pytest.fixture(scope="module")
def shaped(folder):
    """Manifests of images of two shapes, in the same folder."""
    rows: dict[str, list] = {name: [] for name in ("captions", "chats", "edits")}
    for i in range(18):
        shape = [(64, 64), (64, 96)][i % 2]
        for suffix, ground in (("", "blue"), ("_after", "pink")):
            whole = picture(i, ground, side=96)[: shape[0], : shape[1]]
            Image.fromarray(whole).save(folder / f"shaped{i}{suffix}.png")
        before, after, name = f"shaped{i}.png", f"shaped{i}_after.png", NOUNS[i].singular
        rows["captions"].append({"image": before, "caption": f"a {name}"})
        turns = conversation("<image>\nwhat is this?", name)
        rows["chats"].append({"image": before, "conversations": turns})
        rows["edits"].append(
            {"raw_image": before, "out_image": after, "instruction": "make it pink"}
        )
    for name, examples in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in examples)
        (folder / f"shaped_{name}.jsonl").write_text(text)
    return folder


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_are_compiled_once_and_a_resumed_run_has_the_same_batches(shaped, tmp_path, capsys):
    """4 streams with 5 buckets compile 5 programs; the batches do not depend on workers and hosts."""
    data = {"workers": 2, "threads": 1, "ahead": 4}
    random = np.random.default_rng()
    stop = int(random.integers(8, 14))
    values = experiment(shaped, STREAMS, data=data, steps=stop, checkpoint_every=stop)
    log = run(values, tmp_path)
    output = capsys.readouterr()
    assert "5 distinct batch shapes" in output.out
    assert output.err.count("compiling for batch shape") == 5
    assert "unexpected batch shape" not in output.err
    # The first steps compile small programs for arrays of a batch.
    assert [line["compilations"] for line in log[3:]] == [0.0] * (stop - 3)

    # Resume with another number of workers.
    settings = parse(MultitaskExperiment, values)
    config, _, tokenizer = multitask.load_components(settings)
    mixture = open_mixture(settings.data, config, tokenizer)
    following = [mixture[n] for n in range(stop, stop + 50)]
    assert {int(batch["stream"][0]) for batch in following} == {0, 1, 2, 3}
    saved = Checkpoints(tmp_path / "checkpoints")
    program = Program(settings, config, tuple(STREAMS), make_mesh())
    template = state.abstract(program.shapes, program.shardings)
    iterator = loader.iterate(batches(mixture), workers=1, threads=2, ahead=3)
    assert saved.restore(template, iterator=iterator).step == stop
    for expected in following:
        same(next(iterator), expected)
    iterator.close()
    saved.close()
    # Two hosts: each takes half of the same batches.
    hosts = [
        Mixture(
            mixture.streams,
            tokenizer,
            seed=0,
            directory=shaped / "cache",
            process_index=i,
            process_count=2,
        )
        for i in range(2)
    ]
    iterators = [loader.iterate(batches(host), threads=1, ahead=2) for host in hosts]
    for iterator in iterators:
        iterator.set_state({"next_index": stop})
    for expected in following:
        halves = [next(iterator) for iterator in iterators]
        joined = {name: np.concatenate([half[name] for half in halves]) for name in expected}
        same(joined, expected)
    for iterator in iterators:
        iterator.close()


def write_rows(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )


@pytest.fixture(scope="module")
def damaged(folder):
    """50 captions with two examples of each kind of invalid example, and 16 clips with one."""
    good = [
        {"image": f"{i % ROWS}{('.jpg', '.png')[i % ROWS % 2]}", "caption": f"picture {i}"}
        for i in range(50)
    ]
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "five.png")
    invalid = [
        ("missing_file", {"image": "nowhere.jpg", "caption": "nothing"}),
        ("corrupt_image", {"image": "cut.jpg", "caption": "half"}),
        ("malformed_json", '{"image": "0.jpg", "caption": '),
        ("empty_text", {"image": "0.jpg", "caption": "  "}),
        ("tiny_image", {"image": "five.png", "caption": "five pixels"}),
    ]
    rows, kinds = list(good), {}
    for i, (kind, row) in enumerate(invalid * 2):
        index = 3 + 5 * i
        rows.insert(index, row)
        kinds[index + 1] = kind  # Lines count from 1, and each insertion is after the previous one.
    write_rows(folder / "damaged.jsonl", rows)
    # A media file without frames.
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    clips = [{"video": f"{i % ROWS}.mp4", "caption": f"clip {i}"} for i in range(16)]
    clips.insert(10, {"video": "sound.wav", "caption": "nothing moves"})
    write_rows(folder / "damaged_clips.jsonl", clips)
    return folder, {("damaged.jsonl", line): kind for line, kind in kinds.items()}


def test_invalid_examples_are_skipped_counted_and_listed(damaged, tmp_path):
    """The run finishes; its log counts them by kind, and invalid_examples.jsonl has each with source and line."""
    folder, expected = damaged
    streams = {
        "draw": ("t2i", "damaged", {"rows": 8}),
        "film": ("t2v", "damaged_clips", {"frames": 5}),
    }
    expected = expected | {("damaged_clips.jsonl", 11): "no_frames"}
    log = run(experiment(folder, streams, steps=18, data={"max_invalid_fraction": 0.2}), tmp_path)
    assert log[-1]["step"] == 18
    listed = [
        json.loads(line) for line in (tmp_path / "invalid_examples.jsonl").read_text().splitlines()
    ]
    kinds_by_line = {
        (entry["source"].rsplit("/", 1)[-1], entry["line"]): entry["kind"] for entry in listed
    }
    assert kinds_by_line == expected
    assert len(listed) == len(expected), "each is listed once"
    kinds = set(expected.values())
    assert {kind: log[-1][f"invalid_examples/{kind}"] for kind in kinds} == {
        kind: float(list(expected.values()).count(kind)) for kind in kinds
    }
    assert log[-1]["invalid_examples"] == len(expected)


def test_too_many_invalid_examples_stop_the_run(damaged, tmp_path):
    folder, _ = damaged
    streams = {"draw": ("t2i", "damaged", {})}
    values = experiment(
        folder, streams, data={"max_invalid_fraction": 0.02, "min_examples_to_judge": 30}
    )
    with pytest.raises(TooManyInvalidExamples, match=r"invalid_examples\.jsonl"):
        run(values, tmp_path)


def test_a_stage_starts_from_the_previous_one_and_keeps_frozen_parameters(folder, tmp_path):
    first = {"one": ("t2i", "captions", {})}
    run(experiment(folder, first, steps=3, checkpoint_every=3), tmp_path / "first")
    before = load_model(tmp_path / "first")[0]
    values = experiment(
        folder, first, steps=2, checkpoint_every=2, init_from=str(tmp_path / "first")
    )
    values["optimizer"] |= {"frozen": ("language",), "learning_rate": 1e-3, "warmup": 0, "ema": 0.0}
    run(values, tmp_path / "second")
    after = load_model(tmp_path / "second")[0]
    frozen = jax.tree.map(np.array_equal, before["language"], after["language"])
    assert all(jax.tree.leaves(frozen))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before["flow_head"], after["flow_head"])
    assert 0 < max(jax.tree.leaves(moved)) < 4e-3, "two updates after the end of the first stage"
    # The trained model generates images.
    tuna = Tuna.load(tmp_path / "second")
    images = tuna.generate_image("a red apple", steps=2, size=(32, 32))
    assert images.shape == (1, 32, 32, 3)


def test_precomputed_latents_train_without_the_vae_in_the_step(folder, tmp_path):
    """Latents of another VAE are an error."""
    arguments = ["--manifest", str(folder / "captions.jsonl"), "--output", str(tmp_path / "ready")]
    assert encode_latents.main([*arguments, "--sizes", "32x32"]) == 0
    streams = {"one": ("t2i", "captions", {"manifest": "", "latents": str(tmp_path / "ready")})}
    log = run(experiment(folder, streams, steps=4, checkpoint_every=4), tmp_path / "run")
    values = [line["flow_loss/one"] for line in log]
    assert np.isfinite(values).all() and values[-1] < values[0]
    settings = tmp_path / "ready" / "latents.json"
    settings.write_text(
        settings.read_text().replace('"vae_fingerprint": "', '"vae_fingerprint": "0')
    )
    with pytest.raises(ValueError, match="latents"):
        run(experiment(folder, streams), tmp_path / "other")


def test_a_run_too_short_for_its_schedule_is_an_error_before_its_data(folder, tmp_path):
    values = experiment(folder, {"one": ("t2i", "nowhere", {})}, optimizer={"warmup": 60})
    with pytest.raises(ValueError, match=r"config\.optimizer\.warmup"):
        run(values, tmp_path)


def test_missing_initial_parameters_are_an_error(folder, tmp_path):
    values = experiment(folder, {"one": ("t2i", "captions", {})}, init_from="nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(values, tmp_path)


def test_a_run_goes_on_with_the_part_it_began_with_until_it_is_told(folder, tmp_path):
    for step, (part_rows, part) in enumerate([(3, {"one": 3}), (0, {"one": 3}), (-1, {})], 1):
        streams = {"one": ("chat", "text", {"part_rows": part_rows})}
        values = experiment(folder, streams, steps=step, checkpoint_every=1)
        run(values | {"optimizer": {"learning_rate": 1e-3, "warmup": 1}}, tmp_path)
        saved = open_arrays(tmp_path)
        assert saved is not None and int(saved.folder.name) == step
        assert saved.config["mixture"]["parts"] == part


def test_weights_may_change_when_a_run_resumes(folder, tmp_path):
    """Streams continue from their positions, and earlier batches are unchanged."""
    both = {"one": ("t2i", "captions", {}), "two": ("chat", "text", {"lengths": (96,)})}
    run(experiment(folder, both, steps=4, checkpoint_every=4), tmp_path)
    values = experiment(folder, both, steps=8, checkpoint_every=4)
    values["data"]["streams"]["one"]["weight"] = 0.0
    log = run(values, tmp_path)
    assert any("flow_loss/one" in line for line in log[:4])
    assert all("text_loss/two" in line for line in log[4:])
    history = Checkpoints(tmp_path / "checkpoints")
    assert history.steps()[-1] == 8
    assert weights_history(tmp_path, {"one": 0.0, "two": 1.0}) == [
        (0, {"one": 1.0, "two": 1.0}),
        (4, {"one": 0.0, "two": 1.0}),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"manifest": "nowhere.jsonl"},
            r"nowhere\.jsonl.*config\.data\.streams\.one\.manifest",
        ),
        ({"sizes": ("64",)}, r"config\.data\.streams\.one\.sizes.*'64'"),
        ({"sizes": ("40x64",)}, "40x64"),
        ({"task": "paint"}, "'paint'.*t2i"),
        ({"lenghts": (96,)}, "lenghts.*lengths"),
        ({"latents": "there"}, "manifest and latents"),
        (
            {"manifest": "", "tfds": "nothing_here", "fields": {"image": "x"}},
            r"nothing_here.*config\.data\.streams\.one\.tfds",
        ),
    ],
)
def test_an_invalid_stream_is_an_error_that_names_its_key(folder, tmp_path, change, message):
    values = experiment(folder, {"one": ("t2i", "captions", change)})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(values, tmp_path)


def test_a_conversation_that_ends_in_an_image_requires_draws(folder, tmp_path):
    rows = [
        json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines() for _ in "ab"
    ]
    ending = {"image": "0.jpg", "conversations": conversation("draw a dog", "here: <image>")}
    write_rows(folder / "ending.jsonl", [*rows[:3], ending, *rows[3:]])
    text_only = {"one": ("understand", "ending", {})}
    limits = {"max_invalid_fraction": 0.5}
    log = run(experiment(folder, text_only, steps=6, data=limits), tmp_path / "text_only")
    assert log[-1]["invalid_examples/assistant_image"] == log[-1]["invalid_examples"] > 0
    (line,) = map(
        json.loads, (tmp_path / "text_only" / "invalid_examples.jsonl").read_text().splitlines()
    )
    assert line["line"] == 4 and "draws=True" in line["reason"]
    both = {"one": ("understand", "ending", {"draws": True})}
    log = run(experiment(folder, both, steps=6, data=limits), tmp_path / "both")
    assert log[-1]["invalid_examples"] == 0
    assert any("flow_loss/one" in line for line in log)


def test_precomputed_latents_of_a_converted_vae(folder, tiny_model, tmp_path):
    ready = tmp_path / "ready"
    arguments = ["--manifest", str(folder / "captions.jsonl"), "--output", str(ready)]
    assert (
        encode_latents.main([*arguments, "--sizes", "32x32", "--vae", str(tiny_model.parent)]) == 1
    )
    assert encode_latents.main([*arguments, "--sizes", "32x32", "--vae", str(tiny_model)]) == 0
    more = {"manifest": "", "latents": str(ready)}
    streams = {"one": ("t2i", "captions", more)}
    model = {"preset": "tiny", "language": {"vocabulary": 640}}
    values = experiment(folder, streams, steps=2, model=model, vae=str(tiny_model))
    assert np.isfinite(run(values, tmp_path / "run")[-1]["flow_loss/one"])
