"""TUNA in JAX: one model that understands and generates images and video."""
