"""Speed measurements behind `tuna_jax.benchmark`."""
