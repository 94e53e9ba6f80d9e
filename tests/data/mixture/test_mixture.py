"""The mixture: five formats in one run, one shape per batch, and the same batches with any number of workers."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data import loader
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media.image import Size, read_image
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import IGNORE

SIZES = (Size(32, 32), Size(32, 48), Size(48, 32))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def dataset(module_files):
    """A folder with manifests of all formats; image i has red 3 i and the caption 'number i'."""
    return write_dataset(module_files)


def talk(*texts):
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


def write_dataset(files):
    shapes = [(40, 40), (40, 60), (60, 40), (64, 64), (32, 48)]
    names = []
    for i in range(30):
        suffix, options = (".jpg", {"quality": 95}) if i % 2 else (".png", {})
        names.append(files.image(f"{i}{suffix}", *shapes[i % 5], shade=3 * i, **options))
    clips = [files.video(f"{i}.mp4", 36, 36 + 18 * (i % 2), frames=9 + i) for i in range(6)]
    captions = [{"image": name, "caption": f"number {i}"} for i, name in enumerate(names)]
    captions[4]["caption"] = "number 4 " + "and so on " * 10
    files.manifest("captions.jsonl", captions)
    chats = [
        {"image": name, "conversations": talk("<image>\nWhich?", f"number {i}")}
        for i, name in enumerate(names)
    ]
    chats += [
        {
            "image": names[i : i + 2],
            "conversations": talk("<image><image>Same?", "No.", "Sure?", "Yes."),
        }
        for i in range(8)
    ]
    files.manifest("chats.jsonl", chats)
    files.manifest("text.jsonl", [{"conversations": talk(f"Say {i}.", f"{i}")} for i in range(12)])
    edits = [
        {"raw_image": names[i], "out_image": names[29 - i], "instruction": f"from {i} to {29 - i}"}
        for i in range(20)
    ]
    files.manifest("edits.jsonl", edits)
    moving = [{"video": clip, "caption": f"clip {i}"} for i, clip in enumerate(clips)]
    files.manifest("clips.jsonl", moving)
    return files


def streams(dataset, **changes):
    def source(name):
        return Manifest(dataset.root / f"{name}.jsonl")

    settings_of = {
        "draw": {"task": "t2i", "source": source("captions"), "weight": 4.0, "rows": 8, "lengths": (24, 48)},
        "look": {"task": "understand", "source": source("chats"), "weight": 3.0, "rows": 4,
                 "lengths": (64, 96), "slots": (1, 2)},
        "talk": {"task": "chat", "source": source("text"), "weight": 1.0, "rows": 4, "lengths": (64,)},
        "edit": {"task": "edit", "source": source("edits"), "weight": 2.0, "rows": 4, "lengths": (48,),
                 "source_dropout": 0.2},
        "film": {"task": "t2v", "source": source("clips"), "weight": 1.0, "rows": 2, "lengths": (48,),
                 "frames": 5, "fps": 5.0},
    }  # fmt: skip
    for name, settings in settings_of.items():
        if settings["task"] != "chat":
            settings["sizes"] = SIZES
        settings.update(changes.get(name, {}))
    return [ExampleStream(name=name, **settings) for name, settings in settings_of.items()]


def mixture(dataset, tokenizer, seed=1, changes=None, **options):
    options = {"directory": dataset.root / "cache", **options}
    return Mixture(streams(dataset, **(changes or {})), tokenizer, seed=seed, **options)


def same(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key]) for key in first
    )


def number_of(pixels) -> int:
    """The number of the image that fills a slot."""
    return round(float(np.median(pixels[..., 0])) / 3)


def test_every_batch_has_one_of_the_stated_shapes(dataset, tokenizer) -> None:
    mixed = mixture(dataset, tokenizer)
    stated = mixed.shapes()
    # draw: 3 sizes short, 1 long; look: 3 sizes of 1 slot, 3 of 2 slots; talk 1; edit 3; film 2.
    # Together 16; talk's shape equals one of look's, so one program serves both.
    assert len(stated) == 15
    assert len(mixed.summary().splitlines()) == 16 + 1
    assert mixed.summary().endswith("15 distinct batch shapes")
    seen = set()
    for n in range(120):
        batch, shape = mixed[n], mixed.shape_of(n)
        kinds = {key: (array.shape, array.dtype) for key, array in batch.items()}
        assert kinds == shape.arrays()
        seen.add(shape)
        (task,) = set(batch["stream"].tolist())
        assert mixed.streams[task].name == mixed.stream_of(n)
    assert seen <= set(stated)
    assert len(seen) >= 13


def test_weights_are_shares_of_batches(dataset, tokenizer) -> None:
    mixed = mixture(dataset, tokenizer)
    counts = collections.Counter(mixed.stream_of(n) for n in range(1280))
    shares = {"draw": 4, "look": 3, "talk": 1, "edit": 2, "film": 1}
    for name, share in shares.items():
        assert abs(counts[name] - 1280 * share / 11) <= 3


def test_text_belongs_to_the_pixels(dataset, tokenizer) -> None:
    mixed, special = mixture(dataset, tokenizer), tokenizer.special
    seen = collections.Counter()
    for n in range(100):
        batch, name = mixed[n], mixed.stream_of(n)
        for row in range(len(batch["stream"])):
            text = tokenizer.decode(batch["tokens"][row])
            labels, spans = batch["labels"][row], batch["spans"][row]
            learned = tokenizer.decode(labels[labels != IGNORE])
            numbers = [number_of(clip) for clip in batch["pixels"][row]]
            used = spans[:, 0] >= 0
            assert (batch["pixels"][row][~used] == 0).all()
            for offset, length in spans[used]:
                _, frames, height, width, _ = batch["pixels"].shape[1:]
                assert length == 1 + (1 + (frames - 1) // 4) * height * width // 256
                assert batch["tokens"][row][offset - 1] == special.boi
            if name == "draw" and text:
                assert text.startswith(f"number {numbers[0]}")
            elif name == "look" and len(spans) == 1:
                assert learned == f"number {numbers[0]}"
            elif name == "look":
                assert learned == "No.Yes."
                assert numbers[1] == numbers[0] + 1
            elif name == "talk":
                assert f"Say {learned}." in text and not used.any()
            elif name == "edit" and text:
                source, target = text.removeprefix("from ").split(" to ")
                assert numbers[: int(used.sum())] == [int(source), int(target)][-int(used.sum()) :]
                assert batch["is_target"][row].tolist() == (
                    [False, True] if used.all() else [True, False]
                )
            elif name == "film":
                shades = batch["pixels"][row, 0].mean((1, 2, 3)) / 6
                # 5 of 10 frames per second
                np.testing.assert_allclose(np.diff(shades), 2, atol=0.3)
            seen[name] += 1
    assert len(seen) == 5


def test_an_epoch_has_every_example_once(dataset, tokenizer) -> None:
    changes = {"draw": {"sizes": SIZES[:1], "lengths": (64,), "rows": 5, "text_dropout": 0.0}}
    mixed = mixture(dataset, tokenizer, changes=changes)
    numbers = []
    for n in range(80):
        if mixed.stream_of(n) == "draw":
            numbers += [number_of(clip[0]) for clip in mixed[n]["pixels"]]
    epochs = [numbers[at : at + 30] for at in range(0, 90, 30)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(30))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_iteration_equals_random_access_with_any_number_of_threads(dataset, tokenizer) -> None:
    expected = [mixture(dataset, tokenizer)[n] for n in range(50)]
    for threads in (1, 4):
        iterator = loader.iterate(batches(mixture(dataset, tokenizer)), threads=threads)
        assert all(same(next(iterator), batch) for batch in expected)
        iterator.close()
    assert not same(mixture(dataset, tokenizer, seed=2)[3], expected[3])


def test_hosts_together_have_the_batch(dataset, tokenizer) -> None:
    whole = mixture(dataset, tokenizer)
    hosts = [mixture(dataset, tokenizer, process_index=i, process_count=2) for i in range(2)]
    assert {host.fingerprint for host in hosts} == {whole.fingerprint}
    for n in range(40):
        parts, batch = [host[n] for host in hosts], whole[n]
        kinds = {key: (array.shape, array.dtype) for key, array in parts[0].items()}
        assert kinds == whole.shape_of(n).arrays(2)
        for key, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([part[key] for part in parts]))


def test_a_run_resumes_on_other_threads_and_hosts(dataset, tokenizer) -> None:
    step = int(np.random.default_rng().integers(1, 60))
    iterator = loader.iterate(batches(mixture(dataset, tokenizer)), threads=1)
    for _ in range(step):
        next(iterator)
    state = iterator.get_state()
    continued = [next(iterator) for _ in range(50)]
    iterator.close()
    resumed = []
    for host in range(2):
        part = mixture(dataset, tokenizer, process_index=host, process_count=2)
        resumed.append(loader.iterate(batches(part), threads=3, ahead=2))
        resumed[-1].set_state(state)
    for batch in continued:
        for host, part in enumerate(resumed):
            local = {key: np.split(array, 2)[host] for key, array in batch.items()}
            assert same(next(part), local), f"resumed at step {step}"
    for part in resumed:
        part.close()


def test_weights_may_change_at_a_resume(dataset, tokenizer) -> None:
    own = {"draw": 4.0, "look": 3.0, "talk": 1.0, "edit": 2.0, "film": 1.0}
    only = {"draw": 1.0}
    old = mixture(dataset, tokenizer)
    changed = mixture(dataset, tokenizer, history=[(0, own), (40, only)])
    assert old.fingerprint == changed.fingerprint
    assert all(same(old[n], changed[n]) for n in (0, 17, 39))
    assert {changed.stream_of(n) for n in range(40, 100)} == {"draw"}
    # A stream continues in its data: across the change no image repeats within an epoch.
    changes = {"draw": {"sizes": SIZES[:1], "lengths": (64,), "rows": 5}}
    mixed = mixture(dataset, tokenizer, changes=changes, history=[(0, own), (7, only)])
    numbers = []
    for n in range(60):
        if mixed.stream_of(n) == "draw":
            numbers += [number_of(clip[0]) for clip in mixed[n]["pixels"]]
    assert sorted(numbers[:30]) == sorted(numbers[30:60]) == list(range(30))
    with pytest.raises(ValueError, match="'paint'"):
        mixture(dataset, tokenizer, history=[(0, {"paint": 1.0})])


def write_invalid_examples(files, tokenizer):
    """Writes manifests with invalid examples of every kind; returns the kinds by manifest and line."""
    good = [
        {"image": f"{i % 30}{'.jpg' if i % 2 else '.png'}", "caption": f"number {i % 30}"}
        for i in range(400)
    ]
    whole = (files.root / "1.jpg").read_bytes()
    (files.root / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (files.root / "note.png").write_text("not an image")
    files.image("five.png", 5, 5)
    bad = {
        17: ('{"image": "1.jpg", "capt', "malformed_json"),
        60: ({"picture": "1.jpg", "caption": "x"}, "unknown_format"),
        111: ({"image": "1.jpg", "caption": "  "}, "empty_text"),
        150: ({"image": ["1.jpg", "2.png"], "caption": "x"}, "wrong_image_count"),
        199: ({"image": "none.jpg", "caption": "x"}, "missing_file"),
        222: ({"image": "note.png", "caption": "x"}, "corrupt_image"),
        300: ({"image": "cut.jpg", "caption": "x"}, "corrupt_image"),
        399: ({"image": "five.png", "caption": "x"}, "tiny_image"),
    }
    for index, (row, _) in bad.items():
        good[index] = row
    files.manifest("broken.jsonl", good)
    (files.root / "empty").mkdir(exist_ok=True)
    (files.root / "note.mp4").write_text("not a clip")
    long = {"video": "1.mp4", "conversations": talk("What?", "words " * 100)}
    clips = [{"video": f"{i % 6}.mp4", "caption": f"clip {i}"} for i in range(100)]
    clips[20:23] = [{"video": "empty", "caption": "x"}, {"video": "note.mp4", "caption": "x"}, long]
    files.manifest("broken_clips.jsonl", clips)
    expected = {(str(files.root / "broken.jsonl"), i + 1): kind for i, (_, kind) in bad.items()}
    for line, kind in ((21, "no_frames"), (22, "corrupt_video"), (23, "too_long")):
        expected[str(files.root / "broken_clips.jsonl"), line] = kind
    return expected


def broken_mixture(files, tokenizer, log, **options):
    draw = ExampleStream(name="draw", task="t2i", source=Manifest(files.root / "broken.jsonl"), weight=3.0,
                     rows=16, lengths=(32,), sizes=SIZES)  # fmt: skip
    watch = ExampleStream(name="watch", task="video_understand", source=Manifest(files.root / "broken_clips.jsonl"),
                      weight=1.0, rows=4, lengths=(96,), sizes=SIZES[:1], frames=5)  # fmt: skip
    options = {"directory": files.root / "cache", **options}
    return Mixture([draw, watch], tokenizer, invalid_examples=log, **options)


def test_invalid_examples_of_every_kind_are_skipped_counted_and_listed(
    dataset, tokenizer, tmp_path
) -> None:
    expected = write_invalid_examples(dataset, tokenizer)
    log = InvalidExamples(tmp_path / "invalid_examples.jsonl", limit=0.05, least=20)
    mixed = broken_mixture(dataset, tokenizer, log)
    iterator = loader.iterate(batches(mixed), threads=2)
    produced = [next(iterator) for _ in range(50)]
    iterator.close()
    listed = [
        json.loads(line) for line in (tmp_path / "invalid_examples.jsonl").read_text().splitlines()
    ]
    assert {(entry["source"], entry["line"]): entry["kind"] for entry in listed} == expected
    assert len(listed) == len(expected), "each example once"
    assert log.counts() == dict(collections.Counter(expected.values()))
    # The same batches on one host without threads, and shared by two.
    again = broken_mixture(dataset, tokenizer, InvalidExamples())
    hosts = [
        broken_mixture(dataset, tokenizer, InvalidExamples(), process_index=i, process_count=2)
        for i in range(2)
    ]
    for n, batch in enumerate(produced):
        assert same(again[n], batch)
        for i, host in enumerate(hosts):
            assert same(host[n], {key: np.split(array, 2)[i] for key, array in batch.items()})
    # An example that fails only in decoding leaves no gap: captions still match the pixels.
    for n, batch in enumerate(produced):
        if mixed.stream_of(n) == "draw":
            for tokens, clip in zip(batch["tokens"], batch["pixels"], strict=True):
                text = tokenizer.decode(tokens)
                assert text in ("", f"number {number_of(clip[0])}")


def test_too_many_invalid_examples_stop_the_run(dataset, tokenizer) -> None:
    write_invalid_examples(dataset, tokenizer)
    with pytest.raises(TooManyInvalidExamples, match=r"7 of 400 .*broken\.jsonl"):
        broken_mixture(dataset, tokenizer, InvalidExamples(limit=0.01, least=20))
    # Detected only by decoding: the headers were whole when the source was scanned.
    names = [dataset.image(f"late{i}.jpg", 40, 40) for i in range(20)]
    dataset.manifest("late.jsonl", [{"image": name, "caption": "x"} for name in names])
    stream = ExampleStream(name="late", task="t2i", source=Manifest(dataset.root / "late.jsonl"), weight=1.0,
                       rows=4, lengths=(32,), sizes=SIZES[:1])  # fmt: skip
    mixed = Mixture(
        [stream],
        tokenizer,
        invalid_examples=InvalidExamples(limit=0.3, least=10),
        directory=dataset.root,
    )
    for name in names[:10]:
        (dataset.root / name).unlink()
    iterator = loader.iterate(batches(mixed))
    with pytest.raises(TooManyInvalidExamples, match="examples read.*missing_file"):
        for _ in range(20):
            next(iterator)
    for name in names:
        (dataset.root / name).unlink(missing_ok=True)
    with pytest.raises(TooManyInvalidExamples, match="'late': none of the 20"):
        Mixture([stream], tokenizer, invalid_examples=InvalidExamples(limit=1.0))[0]
    with pytest.raises(TooManyInvalidExamples, match="'late'.*bucket 32x32"):
        Mixture(
            [stream],
            tokenizer,
            invalid_examples=InvalidExamples(limit=1.0),
            directory=dataset.root,
        )[0]


def test_invalid_settings_are_named(dataset, tokenizer) -> None:
    with pytest.raises(ValueError, match="'draw' has 8 rows.*3 hosts"):
        mixture(dataset, tokenizer, process_count=3)
    stream = streams(dataset)[0]
    with pytest.raises(ValueError, match="streams are named"):
        Mixture([stream, stream], tokenizer)


def test_a_stream_may_decode_jpegs_at_a_smaller_fraction(module_files, tokenizer) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(module_files.root / "noise.jpg")
    path = module_files.manifest("noise.jsonl", [{"image": "noise.jpg", "caption": "noise"}])
    made = {}
    for reduced in (False, True):
        stream = ExampleStream(
            name="s", task="t2i", source=Manifest(path), weight=1.0, rows=1, lengths=(24,), sizes=SIZES[:1],
            reduced_decode=reduced,
        )  # fmt: skip
        made[reduced] = Mixture([stream], tokenizer, directory=module_files.root / "cache")
        expected = read_image(module_files.root / "noise.jpg", SIZES[0], reduced=reduced)
        np.testing.assert_array_equal(made[reduced][0]["pixels"][0, 0, 0], expected)
    assert made[False].fingerprint != made[True].fingerprint
    assert not same(made[False][0], made[True][0])
