"""Flow sampling and text decoding on one prefix cache."""
