"""Evaluation: metrics, visual question answering, published benchmarks, and image features."""
