"""Samplers and text decoding on top of one prefix cache."""
