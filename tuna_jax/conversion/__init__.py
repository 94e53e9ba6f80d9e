"""Weights to and from PyTorch: one table, readers, and the parity checker."""
