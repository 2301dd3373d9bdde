"""The bytes of tensors, looked at from outside."""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Looks at the bytes of all tensors that have been made inside and are still there."""

    def __init__(self):
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now())
        return found

    def now(self) -> int:
        """Return the bytes that are there."""
        self._seen = {k: (ref, n) for k, (ref, n) in self._seen.items() if not ref.expired()}
        return sum(n for _, n in self._seen.values())
