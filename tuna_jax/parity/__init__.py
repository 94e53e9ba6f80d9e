"""Parity with the released PyTorch code: golden sets and the checker that runs this model on them."""
