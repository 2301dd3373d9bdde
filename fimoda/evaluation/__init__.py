"""Judging scores: agreement with training, removal of rows, wrong labels, metrics of a test set, noise."""
