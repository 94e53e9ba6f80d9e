import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.training import checkpoints
from tuna_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpointError,
    MismatchedCheckpointError,
    UnreadableStorageError,
    UnwrittenCheckpointError,
)


def tree(value):
    return {"params": {"w": jnp.full((64, 8), value)}, "moments": (jnp.full((3,), value), None)}


def iterator():
    dataset = grain.MapDataset.range(100).shuffle(seed=1).repeat().batch(2)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def values(state):
    return float(state["params"]["w"][0, 0]), float(state["moments"][0][0])


def saved_run(folder, steps=(10, 20, 30), keep=5):
    """A run of one batch a checkpoint; returns the batch that follows each checkpoint."""
    data = iterator()
    seen = [next(data).tolist()]
    saved = Checkpoints(folder, keep=keep)
    for step in steps:
        saved.save(step, tree(float(step)), config={"model": {"preset": "tiny"}}, iterator=data)
        seen.append(next(data).tolist())
    saved.close()
    return dict(zip(steps, seen[1:], strict=True))


def damage(folder, step):
    """Flips a byte in the middle of every data file of a checkpoint."""
    for file in (folder / f"{step:08d}" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(bytes(content))


def test_everything_comes_back_together(tmp_path):
    following = saved_run(tmp_path)
    data = iterator()
    found = Checkpoints(tmp_path).restore(tree(0.0), iterator=data)
    assert found is not None
    assert (found.step, values(found.state), found.config) == (
        30,
        (30.0, 30.0),
        {"model": {"preset": "tiny"}},
    )
    assert jax.tree.structure(found.state) == jax.tree.structure(tree(0.0))
    assert next(data).tolist() == following[30]


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(tree(0.0)) is None


def test_damaged_newest_falls_back_loudly_to_the_older_with_its_data_position(tmp_path, caplog):
    following = saved_run(tmp_path)
    damage(tmp_path, 30)
    data = iterator()
    found = Checkpoints(tmp_path).restore(tree(0.0), iterator=data)
    assert found is not None
    assert (found.step, values(found.state)) == (20, (20.0, 20.0))
    assert next(data).tolist() == following[20]
    assert "CHECKPOINT DAMAGED" in caplog.text and "00000030" in caplog.text


def test_the_checkpoint_that_a_run_fell_back_to_stays_until_a_newer_one_is_written(tmp_path):
    """A damaged checkpoint does not count as one of those that are kept."""
    saved_run(tmp_path)
    damage(tmp_path, 30)
    with Checkpoints(tmp_path, keep=2) as saved:
        restored = saved.restore(tree(0.0), iterator=iterator())
        assert restored is not None and restored.step == 20
        saved.save(25, tree(25.0), config={})
    assert 20 in saved.steps() and 25 in saved.steps()


def test_missing_part_counts_as_damage(tmp_path):
    saved_run(tmp_path)
    for file in (tmp_path / "00000030" / "data").iterdir():
        file.unlink()
    found = Checkpoints(tmp_path).restore(tree(0.0), iterator=iterator())
    assert found is not None and found.step == 20


def test_missing_list_of_arrays_counts_as_damage(tmp_path):
    saved_run(tmp_path)
    (tmp_path / "00000030" / "state" / "_METADATA").unlink()
    found = Checkpoints(tmp_path).restore(tree(0.0), iterator=iterator())
    assert found is not None and found.step == 20


def test_nothing_readable_is_an_error_not_a_fresh_start(tmp_path):
    saved_run(tmp_path, steps=(10, 20))
    damage(tmp_path, 10)
    damage(tmp_path, 20)
    with pytest.raises(DamagedCheckpointError, match=r"none of the checkpoints \[10, 20\]"):
        Checkpoints(tmp_path).restore(tree(0.0))


def test_unfinished_save_is_no_checkpoint(tmp_path):
    saved_run(tmp_path, steps=(10, 20))
    (tmp_path / "00000020").rename(tmp_path / "00000030.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path).steps() == [10]


def test_another_model_is_refused_with_the_array_that_differs(tmp_path):
    saved_run(tmp_path)
    other = tree(0.0)
    other["params"] = {"w": jnp.zeros((64, 9)), "extra": jnp.zeros(2)}
    with pytest.raises(
        MismatchedCheckpointError, match=r"params\.extra.*has none.*params\.w: .*64, 8.*64, 9"
    ):
        Checkpoints(tmp_path).restore(other)


def test_only_the_newest_are_kept(tmp_path):
    saved_run(tmp_path, steps=(10, 20, 30, 40), keep=2)
    assert Checkpoints(tmp_path).steps() == [30, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000030", "00000040"]


def test_keep_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_saving_in_the_background_is_safe_with_donated_arrays(tmp_path):
    """The next step overwrites the saved buffers at once; the file must hold what they were."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"w": jnp.zeros((1 << 20,))}
    saved = Checkpoints(tmp_path)
    for number in range(1, 6):
        state = step(state)
        if number == 3:
            saved.save(number, state, config={})
    jax.block_until_ready(state)
    saved.close()
    found = Checkpoints(tmp_path).restore({"w": jnp.zeros((1 << 20,))})
    assert found is not None
    np.testing.assert_array_equal(found.state["w"], 3.0)


def test_a_save_in_flight_is_finished_when_the_run_fails(tmp_path):
    """Code that catches the error and continues at once finds a whole checkpoint, and nobody writing to it."""
    with pytest.raises(OSError, match="the disk is gone"), Checkpoints(tmp_path) as saved:
        saved.save(10, {"w": jnp.ones((1 << 22,))}, config={})
        raise OSError("the disk is gone")
    assert Checkpoints(tmp_path).steps() == [10]


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path):
    saved_run(tmp_path, steps=(10, 20))
    (tmp_path / "00000020").rename(tmp_path / "00000030.orbax-checkpoint-tmp")
    (tmp_path / "removed-00000005").mkdir()
    (tmp_path / "notes").mkdir()
    found = Checkpoints(tmp_path).restore(tree(0.0))
    assert found is not None and found.step == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "notes"]


FAULT = """Error reading local file "/bucket/d/1": Input/output error [os_error_code='5']"""


@pytest.mark.parametrize(("faults", "tries"), [(2, 3), (3, 3)])
def test_a_fault_of_the_storage_is_no_damage(tmp_path, monkeypatch, faults, tries):
    saved_run(tmp_path)
    monkeypatch.setattr(checkpoints, "_PAUSES", (0.0, 0.0))
    restore, tried = Checkpoints._restore, []

    def failing(self, step, *arguments):
        tried.append(step)
        if len(tried) <= faults:
            raise ValueError("no array") from Exception(f"details:\n{FAULT}\nmore")
        return restore(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "_restore", failing)
    with Checkpoints(tmp_path) as saved:
        if faults < tries:
            assert saved.restore(tree(0.0)).step == 30
        else:
            with pytest.raises(UnreadableStorageError, match="00000030.*Input/output error"):
                saved.restore(tree(0.0))
    assert tried == [30] * tries, "no older checkpoint is taken"


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_storage(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, tree(1.0), config={})
        saved.wait()

        def full(*arguments, **options):
            raise ValueError("No space left on device")

        monkeypatch.setattr(saved._checkpointer, "save", full)
        with pytest.raises(UnwrittenCheckpointError, match=r"00000002.*No space.*checkpoints: 1\."):
            saved.save(2, tree(2.0), config={})
