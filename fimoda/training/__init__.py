"""Training many models at once: the engine of every method that trains."""
