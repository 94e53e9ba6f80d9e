"""Parallelism: the device mesh, and which parameter is split along which of its axes. Knows
parameter paths, no model."""
