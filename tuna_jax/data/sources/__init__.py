"""Sources of examples: JSONL manifests, TFDS data sets, precomputed latents."""
