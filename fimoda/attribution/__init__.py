"""One call, with a method that is chosen by size and budget."""

from .call import attribute
from .result import Attribution

__all__ = ["Attribution", "attribute"]
