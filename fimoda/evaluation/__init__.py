"""How well scores agree with a gold standard."""
