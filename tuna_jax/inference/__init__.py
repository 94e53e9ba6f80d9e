"""Inference: loading a model, and generating, editing and answering with it."""
