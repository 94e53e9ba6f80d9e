"""Precomputed latents: the batches of pixels, shards that resume byte for byte, hosts that share, what is refused."""

import functools
import json
import pickle

import ml_dtypes
import numpy as np
import pytest

from tuna_jax import encode_latents
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.precompute_latents import Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import LatentExamples, vae_fingerprint
from tuna_jax.data.text.tokenizer import Tokenizer

SIZES = (Size(32, 32), Size(32, 48))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def squares(clips):
    """A VAE of two channels without weights: the mean of every 16x16 square, of the first frame of each four."""
    n, frames, height, width, _ = clips.shape
    kept = clips[:, :: 4 if frames > 1 else 1, :, :, :2].astype(np.float32) / 64 - 2
    return kept.reshape(n, -1, height // 16, 16, width // 16, 16, 2).mean((3, 5))


def encode_with(spread):
    def encode(clips):
        mean = squares(clips)
        return mean, np.full_like(mean, spread)

    return encode


def encoding(**changes):
    settings = {
        "vae_fingerprint": "ours",
        "sizes": SIZES,
        "frames": 5,
        "fps": 10.0,
        "batch_size": 3,
        "shard_rows": 4,
    }
    return Encoding(**{**settings, **changes})  # fmt: skip


@pytest.fixture(scope="module")
def dataset(module_files):
    """Manifests of four formats, each with an invalid example in the middle."""
    files = module_files
    names = [files.image(f"{i}.png", 40, 40 + 20 * (i % 2), shade=8 * i) for i in range(14)]
    talk = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This."}]
    clips = [files.video(f"{i}.mp4", 36, 36, frames=10 + i) for i in range(3)]
    rows = {
        "captions": [{"image": name, "caption": f"number {i}"} for i, name in enumerate(names)],
        "chats": [{"image": names[i : i + 2], "conversations": talk} for i in range(0, 12, 2)],
        "edits": [{"raw_image": names[i], "out_image": names[i + 1], "instruction": f"edit {i}"} for i in range(8)],
        "clips": [{"video": clip, "caption": f"clip {i}"} for i, clip in enumerate(clips)],
    }  # fmt: skip
    for name, listed in rows.items():
        listed.insert(2, {"image": "none.png", "caption": "not there"})
        files.manifest(f"{name}.jsonl", listed)
    return files


def encoded(dataset, name, folder, spread=0.0, **options):
    manifest = Manifest(dataset.root / f"{name}.jsonl")
    settings = options.pop("encoding", encoding())
    encode = options.pop("encode", encode_with(spread))
    encode_manifest(manifest, folder, encode, settings, progress=False, **options)
    return LatentExamples(folder)


SETTINGS = {
    "captions": {"task": "t2i", "lengths": (24, 48)},
    "chats": {"task": "understand", "lengths": (64,), "slots": (2,)},
    "edits": {"task": "edit", "lengths": (48,), "source_dropout": 0.3},
    "clips": {"task": "t2v", "lengths": (48,), "frames": 5, "fps": 10.0},
}


def mixture(dataset, tokenizer, source_of, **options):
    """All four streams, with the sources that `source_of` returns."""
    streams = [
        ExampleStream(
            name=name, source=source_of(name), weight=1.0, rows=2, sizes=SIZES, **settings
        )
        for name, settings in SETTINGS.items()
    ]
    return Mixture(streams, tokenizer, directory=dataset.root / "cache", seed=3, **options)


def test_a_stream_of_latents_is_the_stream_of_pixels(dataset, tokenizer, tmp_path) -> None:
    pixels = mixture(dataset, tokenizer, lambda name: Manifest(dataset.root / f"{name}.jsonl"))
    exact = mixture(dataset, tokenizer, lambda name: encoded(dataset, name, tmp_path / name),
                    vae_fingerprint="ours")  # fmt: skip
    noisy = mixture(
        dataset, tokenizer, lambda name: encoded(dataset, name, tmp_path / f"{name}_noisy", 0.25)
    )
    assert len(exact.shapes()) == len(pixels.shapes())
    seen = set()
    for n in range(40):
        pixel_batch, latent_batch, noisy_batch = pixels[n], exact[n], noisy[n]
        assert {key: (a.shape, a.dtype) for key, a in latent_batch.items()} == exact.shape_of(
            n
        ).arrays()
        for key in ("tokens", "labels", "spans", "is_target", "stream"):
            np.testing.assert_array_equal(pixel_batch[key], latent_batch[key], err_msg=key)
            np.testing.assert_array_equal(pixel_batch[key], noisy_batch[key], err_msg=key)
        name = pixels.stream_of(n)
        seen.add(name)
        used = pixel_batch["spans"][..., 0] >= 0
        assert "pixels" not in latent_batch
        assert (latent_batch["moments"][~used] == 0).all() and (
            noisy_batch["moments"][~used] == 0
        ).all()
        if name != "clips":  # The frames of clips begin where they were encoded.
            expected = squares(pixel_batch["pixels"][used]).astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(latent_batch["moments"][used][:, 0], expected)
        np.testing.assert_array_equal(
            noisy_batch["moments"][:, :, 0], latent_batch["moments"][:, :, 0]
        )
        assert (latent_batch["moments"][:, :, 1] == 0).all(), "encoded without any spread"
        assert (noisy_batch["moments"][used][:, 1] == 0.25).all()
    assert seen == set(SETTINGS)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_resumes_to_the_same_bytes(dataset, tmp_path) -> None:
    encoded(dataset, "captions", tmp_path / "whole", 0.1)
    calls = []

    def dies(clips):
        calls.append(clips.shape)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode_with(0.1)(clips)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        encoded(dataset, "captions", broken, encode=dies)
    assert set(calls) == {(3, 1, 32, 32, 3), (3, 1, 32, 48, 3)}, "one program per shape"
    with pytest.raises(FileNotFoundError, match=r"of 4 shards"):
        LatentExamples(broken)
    done = len(list(broken.glob("0*.json")))
    assert 0 < done < 4
    # Killed between a shard's two files, and while it wrote another.
    (broken / "00003-of-00004.array_record").write_bytes(b"half")
    (broken / ".00003-of-00004.array_record-0123").write_bytes(b"scratch")
    encoded(dataset, "captions", broken, 0.1)
    assert files_of(broken) == files_of(tmp_path / "whole")


def test_hosts_share_the_shards(dataset, tmp_path) -> None:
    encoded(dataset, "captions", tmp_path / "single", 0.1)
    manifest, counts = Manifest(dataset.root / "captions.jsonl"), []
    for host in range(2):
        counts.append(encode_manifest(manifest, tmp_path / "shared", encode_with(0.1), encoding(), process_index=host,
                                      process_count=2, progress=False))  # fmt: skip
        written = {path.name[:5] for path in (tmp_path / "shared").glob("0*.json")}
        assert written == (
            {"00000", "00002"} if host == 0 else {"00000", "00001", "00002", "00003"}
        )
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "single")
    assert counts == [{"rows": 7, "missing_file": 1}, {"rows": 7}]


def test_examples_and_invalid_examples_are_counted(dataset, tmp_path) -> None:
    rows = encoded(dataset, "edits", tmp_path / "edits")
    assert len(rows) == 8
    assert [rows.line(i) for i in range(8)] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert rows[2].kind == "edit" and rows[2].text == "edit 2" and rows[2].line == 4
    listed = json.loads((tmp_path / "edits" / "00000-of-00003.json").read_text())
    ((line, kind, reason),) = listed["bad"]
    assert (line, kind) == (3, "missing_file") and f"{dataset.root}/none.png" in reason
    again = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(again[7].media[1].read()[0], rows[7].media[1].read()[0])
    assert again.identity == rows.identity
    assert encoded(dataset, "captions", tmp_path / "b").identity != rows.identity
    text = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    dataset.manifest("text.jsonl", text)
    with pytest.raises(ValueError, match="none of the examples"):
        encoded(dataset, "text", tmp_path / "text")
    dataset.manifest("gone.jsonl", [{"image": f"gone{i}.png", "caption": "x"} for i in range(30)])
    with pytest.raises(TooManyInvalidExamples, match="missing_file"):
        encoded(
            dataset,
            "gone",
            tmp_path / "gone",
            invalid_examples=InvalidExamples(limit=0.5, least=20),
        )


def test_files_that_were_missing_are_looked_at_again(dataset, tmp_path) -> None:
    for i in range(6):
        dataset.image(f"late{i}.png", 32, 32)
    missing = dataset.root / "late4.png"
    content = missing.read_bytes()
    missing.unlink()
    rows = [{"image": f"late{i}.png", "caption": "x"} for i in range(6)]
    manifest = Manifest(dataset.manifest("late.jsonl", rows))
    settings = (manifest, tmp_path / "late", encode_with(0.1), encoding())
    run = functools.partial(encode_manifest, *settings, progress=False)
    assert run() == {"rows": 5, "missing_file": 1}
    before = files_of(tmp_path / "late")
    assert run() == {"rows": 0, "missing_file": 1}  # It says so again, and changes nothing.
    assert files_of(tmp_path / "late") == before
    missing.write_bytes(content)
    assert run()["rows"] > 0 and len(LatentExamples(tmp_path / "late")) == 6
    assert run() == {"rows": 0}


def test_latents_that_do_not_match_are_refused(dataset, tokenizer, tmp_path) -> None:
    captions = encoded(dataset, "captions", tmp_path / "captions")
    clips = encoded(dataset, "clips", tmp_path / "clips")

    def mix(source, vae="ours", factor=16, **changes):
        settings = {
            "name": "s",
            "task": "t2i",
            "weight": 1.0,
            "rows": 2,
            "lengths": (64,),
            "sizes": SIZES,
        }
        stream = ExampleStream(source=source, **{**settings, **changes})  # fmt: skip
        return Mixture([stream], tokenizer, vae_fingerprint=vae, spatial_factor=factor,
                       directory=tmp_path / "cache")  # fmt: skip

    with pytest.raises(ValueError, match=r"'s'.*fingerprint ours; this model's is t"):
        mix(captions, vae="theirs")
    with pytest.raises(ValueError, match="sizes 32x32, 32x48.*lacks 32x48"):
        mix(captions, sizes=SIZES[:1])
    with pytest.raises(ValueError, match=r"5 frames at fps=10.0.*has 9"):
        mix(clips, task="t2v", frames=9, fps=10.0)
    with pytest.raises(ValueError, match=r"Grid\(frames=1, height=2, width=2\) at 32x32"):
        mix(captions, factor=8)
    with pytest.raises(ValueError, match="vae_fingerprint: 'ours' there, 'new' now"):
        encoded(
            dataset, "captions", tmp_path / "captions", encoding=encoding(vae_fingerprint="new")
        )
    with pytest.raises(FileNotFoundError, match=r"latents\.json"):
        LatentExamples(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        encoded(dataset, "captions", tmp_path / "nan", np.nan)


def test_the_command_encodes_with_a_vae(dataset, tmp_path, capsys) -> None:
    flags = ["--manifest", str(dataset.root / "captions.jsonl"), "--output", str(tmp_path / "out")]
    assert encode_latents.main([*flags, "--sizes=32x32", "--shard_rows=8", "--batch_size=4"]) == 0
    printed = capsys.readouterr().out
    assert "14 examples" in printed and "1 missing_file" in printed
    rows = LatentExamples(tmp_path / "out")
    assert rows.vae_fingerprint == vae_fingerprint(*load_image_vae())
    mean, std = rows[5].media[0].read()
    assert mean.shape == std.shape == (1, 2, 2, 16)
    assert (std > 0).all() and mean.std() > 0.1
    assert encode_latents.main([*flags, "--sizes=32x32", "--vae=none.safetensors"]) == 1
    assert "no VAE at none.safetensors" in capsys.readouterr().err
    assert encode_latents.main([*flags, "--sizes=40x32"]) == 1
    assert "40" in capsys.readouterr().err
