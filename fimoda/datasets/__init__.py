"""Data sets of examples and benchmarks."""

from ._files import Split
from .images import load_cifar10, split_fashion_mnist
from .tables import load_heloc, split_breast_cancer, split_concrete
from .text import load_sst2

__all__ = [
    "Split",
    "load_cifar10",
    "load_heloc",
    "load_sst2",
    "split_breast_cancer",
    "split_concrete",
    "split_fashion_mnist",
]
