"""Training: settings, optimizer, state, step, checkpoints, metrics, and the loop that combines them."""
