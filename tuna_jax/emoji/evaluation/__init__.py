"""Evaluation in the emoji world: exact judges, tasks with chance levels, and the report."""
