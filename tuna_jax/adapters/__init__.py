"""Adapters: LoRA on the linear layers of a frozen model, its settings, parameters, merging, and digest of the base."""
