"""The checks behind `tuna-jax doctor`, a module per kind of check. Each is a function of a `Context` that returns a `Finding`."""
