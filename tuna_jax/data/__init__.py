"""Data: the emoji world's scenes, the tokenizer, and the Grain pipelines that emit batches."""
