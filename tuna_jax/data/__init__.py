"""Data: sources of examples, media decoding, tokenization, and the loaders that emit batches."""
