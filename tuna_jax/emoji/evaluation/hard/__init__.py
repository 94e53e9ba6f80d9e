"""Evaluation in the hard world: exact judges, scores of pictures and answers, diversity, and distance to the data."""
