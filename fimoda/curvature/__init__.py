"""Curvature of the training objective, and ways to solve with it."""
