"""Parity with the released PyTorch code: golden sets, and the checker that compares our model with them."""
