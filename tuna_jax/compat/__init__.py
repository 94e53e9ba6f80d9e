"""Fragile APIs of other libraries, one module per library; `tests/compat` checks every name and parameter used here."""
