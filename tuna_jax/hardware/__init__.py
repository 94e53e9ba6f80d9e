"""Accelerator chips and FLOP counts, for planning and for MFU in training."""
