"""The HTTP server behind `tuna-jax serve`: OpenAI's endpoints in front of a scheduler that keeps the device busy."""
