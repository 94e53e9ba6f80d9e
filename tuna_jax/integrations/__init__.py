"""Adapters that let other projects run TUNA models."""
