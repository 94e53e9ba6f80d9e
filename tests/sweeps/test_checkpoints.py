"""Which checkpoints a run has, whether they are the same, and what is in them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.inference import loading
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.sweeps import checkpoints
from tuna_jax.sweeps.checkpoints import Hashes
from tuna_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run):
    folder = tmp_path_factory.mktemp("run")
    values = tiny_run.experiment(folder)
    values["steps"] = 30
    tiny_run.save(folder / "run", values, (10, 20))
    return folder / "run", values


def test_checkpoints_are_listed_or_chosen_by_step(run, tmp_path):
    workdir, _ = run
    listed = checkpoints.listed(workdir)
    assert [(checkpoint.run, checkpoint.step, checkpoint.path.name) for checkpoint in listed] == [
        ("run", 10, "00000010"),
        ("run", 20, "00000020"),
    ]
    assert checkpoints.chosen(workdir, ()) == listed
    assert checkpoints.chosen(workdir, (20,)) == listed[1:]
    gone = checkpoints.chosen(workdir, (15,))[0]
    assert gone.step == 15 and not gone.path.exists()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoints.listed(tmp_path / "nowhere")


def test_a_model_without_checkpoints_counts_as_one(tiny_model):
    (checkpoint,) = checkpoints.listed(tiny_model)
    assert checkpoint.step == 0
    model = loading.load(
        checkpoint.path, mesh=make_mesh(MeshSettings(), jax.devices()[:1]), tokenizer="emoji"
    )
    assert model.generate_image(["a cat"], steps=1, size=(32, 32)).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("until", [0, 20])
def test_a_run_is_followed_until_its_last_step(run, tmp_path, until):
    source, values = run
    saved = tmp_path / "run" / "checkpoints"
    waits = []

    def wait(seconds):
        """Training continues meanwhile: a checkpoint appears, then another replaces it, then the last one appears."""
        waits.append(seconds)
        if len(waits) == 2:
            shutil.copytree(source / "checkpoints" / "00000010", saved / "00000010")
        if len(waits) == 4:
            shutil.copytree(source / "checkpoints" / "00000020", saved / "00000020")
            shutil.rmtree(saved / "00000010")
        if len(waits) == 6:
            shutil.copytree(source / "checkpoints" / "00000020", saved / "00000030")

    followed = checkpoints.followed(
        tmp_path / "run", until=until, patience=60.0, wait=wait, interval=5.0
    )
    assert [checkpoint.step for checkpoint in followed] == ([10, 20] if until else [10, 20, 30])
    assert len(waits) == (4 if until else 6)


def test_the_wait_for_a_stopped_run_ends(run):
    waits = []
    followed = checkpoints.followed(run[0], until=0, patience=12.0, wait=waits.append, interval=5.0)
    assert [checkpoint.step for checkpoint in followed] == [10, 20]
    assert len(waits) == 3


def test_a_hash_depends_on_the_content_and_outlives_it(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "numbers").write_bytes(b"12345")
    hashes = Hashes(tmp_path / "hashes.json")
    first = hashes(folder)
    assert hashes(folder / "state" / "numbers") != first
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert hashes(copied) == first, "it does not depend on the name of the folder or on times"
    monkeypatch.setattr(checkpoints, "_hash_file", lambda path: 1 / 0)
    again = Hashes(tmp_path / "hashes.json")
    assert again(folder) == first, "nothing is read again as long as sizes and times are the same"
    monkeypatch.undo()
    (folder / "state" / "numbers").write_bytes(b"12346")
    second = hashes(folder)
    assert second != first
    (folder / "state" / "numbers").rename(folder / "state" / "other")
    assert hashes(folder) not in (first, second)
    shutil.rmtree(copied)
    assert Hashes(tmp_path / "hashes.json")(copied) == first, "results outlive their checkpoint"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hashes(tmp_path / "nowhere")


def test_a_value_is_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        hashes = Hashes(tmp_path / "hashes.json")
        assert hashes.once("the VAE of x", lambda: calls.append(1) or "vae.file") == "vae.file"
    assert len(calls) == 1


def test_averaged_parameters_or_not(run, tiny_run):
    workdir, values = run
    path = workdir / "checkpoints" / "00000010"
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    for averaged, seed in ((True, 11), (False, 10)):
        model = loading.load(path, mesh=mesh, averaged=averaged)
        expected = jax.tree.leaves(tiny_run.parameters(values, seed))
        for a, b in zip(jax.tree.leaves(model.params), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert model.template == "plain" and model.samples.steps == 2
    assert str(loading.vae_file(path)) == values["vae"]


def test_a_save_is_known_by_its_name_without_reading_it(tmp_path):
    with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        for step in (1, 2):
            saved.save(step, {"w": jnp.ones(3)}, config={})
    one, two = (tmp_path / "run" / "checkpoints" / f"0000000{step}" for step in (1, 2))
    hashes = Hashes(tmp_path / "hashes.json")
    names = [hashes.of_checkpoint(one), hashes.of_checkpoint(two)]
    assert names[0] != names[1]
    copy = shutil.copytree(one, tmp_path / "copy" / one.name)
    shutil.rmtree(copy / "state" / "d")  # No array is read.
    assert hashes.of_checkpoint(copy) == names[0]
    shutil.rmtree(one)  # Results of a checkpoint outlive it.
    assert Hashes(tmp_path / "hashes.json").of_checkpoint(one) == names[0]
    shutil.rmtree(two / "identity")  # As of an earlier version.
    assert hashes.of_checkpoint(two) == hashes(two) != names[1]
    with pytest.raises(FileNotFoundError):
        hashes.of_checkpoint(tmp_path / "run" / "checkpoints" / "00000009")
