"""Property tests are the same on every run; TUNA_JAX_EXAMPLES=20000 tries that many, other ones each time."""

import os

from hypothesis import HealthCheck, settings

MANY = int(os.environ.get("TUNA_JAX_EXAMPLES", "0"))
settings.register_profile(
    "tuna_jax",
    derandomize=not MANY,
    max_examples=MANY or 30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("tuna_jax")
