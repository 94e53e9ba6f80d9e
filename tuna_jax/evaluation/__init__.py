"""Evaluation: judges that nobody trained, tasks with chance levels, and the report."""
