"""Derivatives of runs of training: walks through their steps, and runs of the linearised network."""
