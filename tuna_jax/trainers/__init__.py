"""Trainers, selected by the kind of an experiment; each combines data, model and the training loop."""
