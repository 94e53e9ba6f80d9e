"""From streams and weights to bucketed batches, each determined by its number."""
