"""Effects of groups of rows, and the smallest sets that turn a prediction."""
