"""One call, with a method that is chosen by size and budget."""
