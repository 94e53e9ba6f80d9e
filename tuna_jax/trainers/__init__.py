"""Trainers: what an experiment names in its kind; each puts data, model and training together."""
