"""Display classes."""
