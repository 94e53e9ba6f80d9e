"""Weights to and from PyTorch: the weight map, readers and writers, and pretrained backbones."""
