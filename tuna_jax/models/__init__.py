"""The network, a file per part."""
