"""For all tests: CPU, full matmul precision, a shared compile cache, and array shapes checked at run time."""

import os
from pathlib import Path

_CACHE = Path(__file__).parents[1] / ".cache"

# Before JAX is imported: it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Tests compile more than they compute.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TUNA_JAX_DATA", str(_CACHE / "data"))

from jaxtyping import install_import_hook  # noqa: E402

# Every function of these is called with its jaxtyping shapes checked against each other.
install_import_hook(
    [
        "tuna_jax.config",
        "tuna_jax.data",
        "tuna_jax.evaluation",
        "tuna_jax.flow",
        "tuna_jax.generation",
        "tuna_jax.models",
        "tuna_jax.parallel",
        "tuna_jax.recipes",
        "tuna_jax.sequence",
        "tuna_jax.training",
    ],
    "beartype.beartype",
)
