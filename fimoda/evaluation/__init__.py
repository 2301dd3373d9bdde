"""Agreement of scores with a gold standard."""
