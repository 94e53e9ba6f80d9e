"""For all tests: CPU, full matmul precision, a shared compile cache, and array shapes checked at run time."""

import gc
import os
import warnings
from pathlib import Path

_CACHE = Path(__file__).parents[1] / ".cache"

# Before JAX is imported: it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Tests compile more than they compute: they are three times as fast without fusion emitters, which ignore the level,
# and a program in one piece takes LLVM less CPU time than in the pieces that would be compiled in parallel.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TUNA_JAX_DATA", str(_CACHE / "data"))

# Tracing makes millions of objects that live, and Python's collector would search them again and again: that was an
# eighth of the time of the tests. What is garbage in cycles goes at the end of each file (`_clear_programs`).
gc.set_threshold(100_000, 20, 20)

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# The jaxtyping shapes of every function in these modules are checked at each call.
install_import_hook(
    [
        "tuna_jax.config",
        "tuna_jax.data",
        "tuna_jax.emoji",
        "tuna_jax.evaluation",
        "tuna_jax.flow",
        "tuna_jax.inference",
        "tuna_jax.models",
        "tuna_jax.parallel",
        "tuna_jax.sequence",
        "tuna_jax.sweeps",
        "tuna_jax.trainers",
        "tuna_jax.training",
    ],
    "beartype.beartype",
)


# Files that take half a minute of CPU time or more. They run first, so that the two workers end at about the same time.
_SLOW = (
    "training/test_faults.py",
    "trainers/test_multitask.py",
    "test_buckets.py",
    "test_benchmark.py",
    "test_several_processes.py",
    "training/test_processes.py",
    "parity/test_pixel_goldens.py",
    "training/test_resume.py",
    "test_plan.py",
    "test_old_runs.py",
    "sweeps/test_devices.py",
    "test_doctor.py",
    "serving/test_endpoints.py",
    "planning/test_compiles.py",
    "inference/generation/test_reference.py",
    "parity/test_verify.py",
    "parity/test_mutations.py",
    "parallel/test_sharded_step.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of slow files to the front, in the order of `_SLOW`."""
    folder = Path(__file__).parent
    order = {folder / name: number for number, name in enumerate(_SLOW)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Excludes modules and tests, which live as long as the process, from every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _clear_programs():
    """Clears the compiled programs of a test file at its end.

    Processes that kept the programs of half of all files, 4.5 GB in 15,000 memory mappings, have crashed in jaxlib
    while reading or writing the compile cache.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tuna(tiny_model: Path):
    """`tiny_model`, loaded with the emoji vocabulary."""
    import tuna_jax

    return tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")


@pytest.fixture
def any_words():
    """Suppresses the warnings about words outside the emoji vocabulary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny TUNA with random weights and a random video VAE, as `convert from_torch` writes one."""
    from tests.fixtures import tiny_model

    return tiny_model.write(tmp_path_factory.mktemp("tiny"))


from tests.fixtures.files import files, module_files  # noqa: E402, F401
from tests.fixtures.judges import (  # noqa: E402, F401
    hard_judge,
    judge,
    through_hard_vae,
    through_vae,
)
from tests.fixtures.tiny_run import tiny_run  # noqa: E402, F401
