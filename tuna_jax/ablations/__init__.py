"""Comparisons of settings over several seeds: what `tuna-jax ablate` does."""
