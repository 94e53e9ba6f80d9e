"""Sweeps: checkpoints times tasks times settings, every result kept by what determined it."""
