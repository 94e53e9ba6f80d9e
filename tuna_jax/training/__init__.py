"""Training: settings, optimizer, state, step, checkpoints, metrics, and the loops that put them
together."""
