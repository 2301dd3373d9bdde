"""The last `transform` of a method: what it has seen beside its scores."""

from __future__ import annotations

from typing import Any

from ._validation import check_is_fitted


def of_last_call(name: str, doc: str) -> property:
    """Return a property that gives what the last call has put into ``_seen`` by this name.

    It is kept in a dict, since `transform` must leave the attributes as they are.
    """

    def get(method: Any) -> Any:
        check_is_fitted(method, "model_")
        if name not in method._seen:
            raise AttributeError(f"{name} is there after transform; call transform first.")
        return method._seen[name]

    return property(get, doc=doc)
