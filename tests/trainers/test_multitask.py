"""Training on files: every format learns, shapes are compiled in advance, a resumed run gets the same batches."""

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
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.training.metrics import read
from tuna_jax.training.train_program import Program
from tuna_jax.training.weights_file import load_model
from tuna_jax.utils.config_parsing import parse

# These files say words that the emoji world does not; they are spelled in bytes.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")

SMALL = {
    "preset": "emoji",
    "representation": {"layers": 1},
    "language": {"layers": 1},
    "flow_head": {"layers": 1},
}


# A batch is a whole epoch: its loss varies little, and 20 of them show whether it falls.
ROWS = 4


def picture(index: int, ground: str, left: int = 12, side: int = 64) -> np.ndarray:
    pixels = np.full((side, side, 3), GROUNDS[ground], np.uint8)
    paste(pixels, default_art(), NOUNS[index].singular, left, 12, 40)
    return pixels


def talk(*texts: str) -> list:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures (JPEG and PNG) and MP4s of emoji, and a manifest of each of the five formats."""
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
        said = talk("<image>\nwhat is this?", name, "what colour is the background?", ground)
        rows["captions"].append({"image": before, "caption": f"a {name} on {ground}"})
        rows["chats"].append({"image": before, "conversations": said})
        rows["text"].append({"conversations": talk(f"name number {i}", name)})
        rows["edits"].append(
            {"raw_image": before, "out_image": after, "instruction": f"make it {other}"}
        )
        rows["clips"].append({"video": f"{i}.mp4", "caption": f"a {name} moves to the right"})
    for name, listed in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return root


def experiment(folder, streams, **changes):
    """An experiment's mapping, with `streams` as name -> (task, manifest, further keys)."""
    listed = {
        name: {
            "task": task,
            "manifest": str(folder / f"{manifest}.jsonl"),
            "sizes": ("64x64",),
            "lengths": (96,),
            "rows": ROWS,
            "text_dropout": 0.0,
            **more,
        }
        for name, (task, manifest, more) in streams.items()
    }
    data = {"streams": listed, "vocabulary": "emoji", "cache": str(folder / "cache"), "threads": 2}
    return {
        "kind": "mixture",
        "steps": 20,
        "model": SMALL,
        "data": data | changes.pop("data", {}),
        "optimizer": {"learning_rate": 4e-3, "warmup": 2, "b2": 0.98, "ema": 0.9},
        # Times near one another: the loss of few rows then shows whether it falls.
        "time": {"std": 0.1, "shift": False},
        "log_every": 1,
        "checkpoint_every": 20,
        **changes,
    }


def run(values, workdir):
    """Runs an experiment; returns the lines of its log."""
    multitask.train(values, parse(MultitaskExperiment, values), workdir)
    return read(workdir / "metrics.jsonl")


FORMATS = {
    "captions drawn": ("t2i", "captions", {}, "flow_loss"),
    "captions told": ("understand", "captions", {}, "text_loss"),
    "conversations about pictures": ("understand", "chats", {}, "text_loss"),
    "conversations": ("chat", "text", {}, "text_loss"),
    "edits": ("edit", "edits", {}, "flow_loss"),
    "clips drawn": ("t2v", "clips", {"frames": 5, "sizes": ("32x32",)}, "flow_loss"),
    "clips told": ("video_understand", "clips", {"frames": 5, "sizes": ("32x32",)}, "text_loss"),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_trains(folder, tmp_path, name):
    task, manifest, more, loss = FORMATS[name]
    log = run(experiment(folder, {"one": (task, manifest, more)}), tmp_path)
    assert [line["step"] for line in log] == list(range(1, 21))
    values = [line[f"{loss}/one"] for line in log]
    assert np.isfinite([line["loss"] for line in log]).all()
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:3])
    other = {"flow_loss": "text_loss", "text_loss": "flow_loss"}[loss]
    assert not any(other in line for line in log), "the other head had nothing to learn"


# Four streams; pictures are square, wide or tall, so three of the streams have three buckets each, and one has one.
SHAPED = {"sizes": ("32x32", "32x48", "48x32"), "lengths": (64,)}
STREAMS = {
    "draw": ("t2i", "shaped_captions", {**SHAPED, "weight": 4.0}),
    "look": ("understand", "shaped_chats", {**SHAPED, "lengths": (96,), "weight": 3.0}),
    "edit": ("edit", "shaped_edits", {**SHAPED, "weight": 2.0, "source_dropout": 0.2}),
    "talk": ("chat", "text", {"lengths": (80,), "weight": 1.0}),
}


@pytest.fixture(scope="module")
def shaped(folder):
    """Manifests of pictures of three shapes, in the same folder."""
    rows: dict[str, list] = {name: [] for name in ("captions", "chats", "edits")}
    for i in range(18):
        shape = [(64, 64), (64, 96), (96, 64)][i % 3]
        for suffix, ground in (("", "blue"), ("_after", "pink")):
            whole = picture(i, ground, side=96)[: shape[0], : shape[1]]
            Image.fromarray(whole).save(folder / f"shaped{i}{suffix}.png")
        before, after, name = f"shaped{i}.png", f"shaped{i}_after.png", NOUNS[i].singular
        rows["captions"].append({"image": before, "caption": f"a {name}"})
        said = talk("<image>\nwhat is this?", name)
        rows["chats"].append({"image": before, "conversations": said})
        rows["edits"].append(
            {"raw_image": before, "out_image": after, "instruction": "make it pink"}
        )
    for name, listed in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"shaped_{name}.jsonl").write_text(text)
    return folder


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_are_compiled_once_and_a_resumed_run_has_the_same_batches(shaped, tmp_path, capsys):
    """4 streams, 10 buckets, 2 workers: 10 programs and none later; other workers and hosts, the same batches."""
    data = {"workers": 2, "threads": 1, "ahead": 4}
    random = np.random.default_rng()
    stop = int(random.integers(8, 20))
    values = experiment(shaped, STREAMS, data=data, steps=stop, checkpoint_every=stop)
    log = run(values, tmp_path)
    shown = capsys.readouterr()
    assert "10 distinct batch shapes" in shown.out
    assert shown.err.count("compiling for shape") == 10
    assert "not foreseen" not in shown.err
    # The first steps make the arrays of a batch; the last one saves.
    assert [line["compilations"] for line in log[3:]] == [0.0] * (stop - 3)

    # The run goes on in another place, with another number of workers.
    settings = parse(MultitaskExperiment, values)
    config, _, tokenizer = multitask.load_components(settings)
    once = open_mixture(settings.data, config, tokenizer)
    following = [once[n] for n in range(stop, stop + 50)]
    assert {int(batch["stream"][0]) for batch in following} == {0, 1, 2, 3}
    saved = Checkpoints(tmp_path / "checkpoints")
    program = Program(settings, config, tuple(STREAMS), make_mesh())
    template = state.abstract(program.shapes, program.shardings)
    for workers in (0, 1):
        iterator = loader.iterate(batches(once), workers=workers, threads=2, ahead=3)
        assert saved.restore(template, iterator=iterator).step == stop
        for want in following:
            same(next(iterator), want)
        iterator.close()
    saved.close()
    # Two hosts: each takes half of the same batches.
    hosts = [
        Mixture(
            once.streams,
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
    for want in following:
        halves = [next(iterator) for iterator in iterators]
        joined = {name: np.concatenate([half[name] for half in halves]) for name in want}
        same(joined, want)
    for iterator in iterators:
        iterator.close()


def write_rows(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )


@pytest.fixture(scope="module")
def damaged(folder):
    """100 captions and 50 clips, and for each way to be unusable 2 % of rows more."""
    good = [
        {"image": f"{i % ROWS}{('.jpg', '.png')[i % ROWS % 2]}", "caption": f"picture {i}"}
        for i in range(100)
    ]
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "five.png")
    bad = [
        ("missing_file", {"image": "nowhere.jpg", "caption": "nothing"}),
        ("corrupt_image", {"image": "cut.jpg", "caption": "half"}),
        ("malformed_json", '{"image": "0.jpg", "caption": '),
        ("empty_text", {"image": "0.jpg", "caption": "  "}),
        ("tiny_image", {"image": "five.png", "caption": "five pixels"}),
    ]
    rows, kinds = list(good), {}
    for i, (kind, row) in enumerate(bad * 2):
        place = 7 + 11 * i
        rows.insert(place, row)
        kinds[place + 1] = kind  # lines count from 1, and each insertion is after the last
    write_rows(folder / "damaged.jsonl", rows)
    with wave.open(
        str(folder / "sound.wav"), "wb"
    ) as sound:  # a container that opens, without a picture in it
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    clips = [{"video": f"{i % ROWS}.mp4", "caption": f"clip {i}"} for i in range(50)]
    clips.insert(20, {"video": "sound.wav", "caption": "nothing moves"})
    write_rows(folder / "damaged_clips.jsonl", clips)
    return folder, {("damaged.jsonl", line): kind for line, kind in kinds.items()}


def test_bad_rows_are_skipped_counted_and_listed(damaged, tmp_path):
    """The run finishes; its log counts them by kind, and invalid_examples.jsonl has each with source and line."""
    folder, wanted = damaged
    streams = {
        "draw": ("t2i", "damaged", {"rows": 8, "sizes": ("32x32",)}),
        "film": ("t2v", "damaged_clips", {"frames": 5, "sizes": ("32x32",)}),
    }
    wanted = wanted | {("damaged_clips.jsonl", 21): "no_frames"}
    log = run(experiment(folder, streams, steps=40, data={"max_invalid_fraction": 0.2}), tmp_path)
    assert log[-1]["step"] == 40
    listed = [
        json.loads(line) for line in (tmp_path / "invalid_examples.jsonl").read_text().splitlines()
    ]
    found = {(entry["source"].rsplit("/", 1)[-1], entry["line"]): entry["kind"] for entry in listed}
    assert found == wanted
    assert len(listed) == len(wanted), "each once"
    kinds = set(wanted.values())
    assert {kind: log[-1][f"invalid_examples/{kind}"] for kind in kinds} == {
        kind: float(list(wanted.values()).count(kind)) for kind in kinds
    }
    assert log[-1]["invalid_examples"] == len(wanted)


def test_too_many_bad_rows_stop_the_run_with_a_message(damaged, tmp_path):
    folder, _ = damaged
    streams = {"draw": ("t2i", "damaged", {"sizes": ("32x32",)})}
    values = experiment(
        folder, streams, data={"max_invalid_fraction": 0.02, "min_examples_to_judge": 50}
    )
    with pytest.raises(
        TooManyInvalidExamples, match=r"more than the limit of 2\.0%.*invalid_examples.jsonl"
    ):
        run(values, tmp_path)


def test_stage_begins_at_the_last_ones_parameters_and_leaves_the_frozen_part(folder, tmp_path):
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
    assert 0 < max(jax.tree.leaves(moved)) < 4e-3, "two updates from where the first stage ended"
    # What was trained is ready to draw.
    tuna = Tuna.load(tmp_path / "second")
    drawn = tuna.generate_image("a red apple", points=3, size=(32, 32))
    assert drawn.shape == (1, 32, 32, 3)


def test_latents_in_advance_train_without_the_vae_in_the_step(folder, tmp_path):
    """As pixels do, from the same rows; another VAE's are refused."""
    sizes = {"sizes": ("32x32",), "lengths": (64,)}
    arguments = ["--manifest", str(folder / "captions.jsonl"), "--output", str(tmp_path / "ready")]
    assert encode_latents.main([*arguments, "--sizes", "32x32"]) == 0
    streams = {
        "one": ("t2i", "captions", {**sizes, "manifest": "", "latents": str(tmp_path / "ready")})
    }
    log = run(experiment(folder, streams, steps=4, checkpoint_every=4), tmp_path / "run")
    values = [line["flow_loss/one"] for line in log]
    assert np.isfinite(values).all() and values[-1] < values[0]
    settings = tmp_path / "ready" / "latents.json"
    settings.write_text(
        settings.read_text().replace('"vae_fingerprint": "', '"vae_fingerprint": "0')
    )
    with pytest.raises(ValueError, match="another VAE's"):
        run(experiment(folder, streams), tmp_path / "other")


def test_a_run_too_short_for_its_schedule_is_refused_before_its_data(folder, tmp_path):
    values = experiment(folder, {"one": ("t2i", "nowhere", {})}, optimizer={"warmup": 60})
    with pytest.raises(ValueError, match=r"60 warm-up .*config\.optimizer\.warmup.*of 20 steps"):
        run(values, tmp_path)


def test_start_from_nowhere_is_an_error(folder, tmp_path):
    values = experiment(folder, {"one": ("t2i", "captions", {})}, init_from="nowhere")
    with pytest.raises(FileNotFoundError, match="no parameters at nowhere"):
        run(values, tmp_path)


def test_weights_may_change_when_a_run_goes_on(folder, tmp_path):
    """Streams go on in their data where they were; what came before stays as it was."""
    both = {"one": ("t2i", "captions", {}), "two": ("chat", "text", {"lengths": (96,)})}
    run(experiment(folder, both, steps=6, checkpoint_every=6), tmp_path)
    values = experiment(folder, both, steps=12, checkpoint_every=6)
    values["data"]["streams"]["one"]["weight"] = 0.0
    log = run(values, tmp_path)
    assert any("flow_loss/one" in line for line in log[:6])
    assert all("text_loss/two" in line for line in log[6:])
    history = Checkpoints(tmp_path / "checkpoints")
    assert history.steps()[-1] == 12
    assert weights_history(tmp_path, {"one": 0.0, "two": 1.0}) == [
        (0, {"one": 1.0, "two": 1.0}),
        (6, {"one": 0.0, "two": 1.0}),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"manifest": "nowhere.jsonl"},
            r"nowhere.jsonl does not exist. Set config.data.streams.one.manifest",
        ),
        ({"sizes": ("64",)}, r"config.data.streams.one.sizes: '64'.*HEIGHTxWIDTH"),
        ({"sizes": ("40x64",)}, "40x64 .*multiples of 16"),
        ({"task": "paint"}, "task 'paint' is none of t2i"),
        ({"lenghts": (96,)}, "did you mean 'lengths'"),
        ({"latents": "there"}, "names manifest and latents; give it one of"),
        (
            {"manifest": "", "tfds": "nothing_here", "fields": {"image": "x"}},
            "nothing_here.*Set config.data.streams.one.tfds",
        ),
    ],
)
def test_a_wrong_stream_is_named(folder, tmp_path, change, message):
    values = experiment(folder, {"one": ("t2i", "captions", change)})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(values, tmp_path)


def test_a_conversation_that_ends_in_a_picture_is_a_bad_row_unless_the_stream_draws(
    folder, tmp_path
):
    rows = [
        json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines() for _ in "ab"
    ]
    drawn = {"image": "0.jpg", "conversations": talk("draw a dog", "here: <image>")}
    write_rows(folder / "ending.jsonl", [*rows[:3], drawn, *rows[3:]])
    told = {"one": ("understand", "ending", {})}
    limits = {"max_invalid_fraction": 0.5}
    log = run(experiment(folder, told, steps=6, data=limits), tmp_path / "told")
    assert log[-1]["invalid_examples/assistant_image"] == log[-1]["invalid_examples"] > 0
    (line,) = map(
        json.loads, (tmp_path / "told" / "invalid_examples.jsonl").read_text().splitlines()
    )
    assert line["line"] == 4 and "set draws=True for the stream 'one'" in line["reason"]
    both = {"one": ("understand", "ending", {"draws": True})}
    log = run(experiment(folder, both, steps=6, data=limits), tmp_path / "both")
    assert log[-1]["invalid_examples"] == 0
    assert any("flow_loss/one" in line for line in log)


def test_latents_of_a_converted_models_vae_are_known_to_be_its(folder, tiny_model, tmp_path):
    ready = tmp_path / "ready"
    arguments = ["--manifest", str(folder / "captions.jsonl"), "--output", str(ready)]
    assert (
        encode_latents.main([*arguments, "--sizes", "32x32", "--vae", str(tiny_model.parent)]) == 1
    )
    assert encode_latents.main([*arguments, "--sizes", "32x32", "--vae", str(tiny_model)]) == 0
    more = {"manifest": "", "latents": str(ready), "sizes": ("32x32",)}
    streams = {"one": ("t2i", "captions", more)}
    model = {"preset": "tiny", "language": {"vocabulary": 640}}
    values = experiment(folder, streams, steps=2, model=model, vae=str(tiny_model))
    assert np.isfinite(run(values, tmp_path / "run")[-1]["flow_loss/one"])
