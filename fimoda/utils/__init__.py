"""For those who write attributors."""
