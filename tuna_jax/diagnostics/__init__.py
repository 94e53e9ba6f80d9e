"""The checks behind `tuna-jax doctor`, a module per kind of check: functions of a `Context` that return a `Finding`."""
