"""Curvature of the training objective, ways to solve with it, and derivatives through runs of training."""
