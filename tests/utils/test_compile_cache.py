"""The compile cache: its folder, and that programs are stored in it."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tuna_jax.utils import compile_cache

_KEYS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def restored():
    before = {key: getattr(jax.config, key) for key in _KEYS}
    yield
    for key, value in before.items():
        jax.config.update(key, value)


def test_a_named_folder_is_used_and_small_programs_are_kept(tmp_path) -> None:
    assert compile_cache.enable({compile_cache.FOLDER: str(tmp_path)}) == tmp_path
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0


def test_environment_variables_take_precedence(tmp_path) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    compile_cache.enable({compile_cache.FOLDER: str(tmp_path), least: "7"})
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    assert compile_cache.enable({compile_cache.FOLDER: ""}) is None
    assert not jax.config.jax_enable_compilation_cache


def test_the_default_folder_belongs_to_the_user(tmp_path) -> None:
    folder = compile_cache.enable({"XDG_CACHE_HOME": str(tmp_path)})
    assert folder is not None and folder.parent == tmp_path / "tuna_jax"
    assert folder == compile_cache.default_folder({"XDG_CACHE_HOME": str(tmp_path)})
    home = compile_cache.default_folder({})
    assert home.is_relative_to(Path.home() / ".cache" / "tuna_jax")


def test_a_new_process_fills_the_cache(tmp_path) -> None:
    code = """
import jax
from tuna_jax.utils import compile_cache
compile_cache.enable()
jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3)).block_until_ready()
"""
    environment = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root)
    (folder,) = (tmp_path / "tuna_jax").iterdir()
    assert any(folder.iterdir())
