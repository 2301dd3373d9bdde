"""A test image beside its top training images."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._base import LITERAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pictures(
    X_test: Any, row: int, X_train: Any, indices: NDArray[np.int64], image_shape: Any
) -> NDArray[np.float64]:
    """Return test row and training rows as images (h, w) or (h, w, 3), jointly scaled to [0, 1]."""
    test, train = as_images(X_test, image_shape), as_images(X_train, image_shape)
    return scaled(np.concatenate([test[[row]], train[indices]]))


def as_images(X: Any, image_shape: Any) -> NDArray[np.float64]:
    """Return rows as images (n, h, w) or (n, h, w, 3); `image_shape` is that of the rows by default."""
    rows = np.asarray(X)
    if rows.dtype.kind not in "buif":
        raise ValueError(
            f"image_shape must be left out for rows that are no numbers: these are of type {rows.dtype}."
        )
    rows = rows.astype(np.float64)
    shape = rows.shape[1:] if image_shape is None else tuple(image_shape)
    fits = len(shape) in (2, 3) and min(shape) > 0 and np.prod(shape) == rows[0].size
    if not fits:
        raise ValueError(
            f"image_shape must be (height, width), with 1 or 3 channels before or after, and hold the "
            f"{rows[0].size} values of a row; got {image_shape}."
        )
    found = rows.reshape(-1, *shape)
    if found.ndim == 4:
        found = np.moveaxis(found, 1, -1) if shape[0] in (1, 3) else found
        if found.shape[-1] not in (1, 3):
            raise ValueError(f"image_shape must have 1 or 3 channels, got {image_shape}.")
        found = found[..., 0] if found.shape[-1] == 1 else found
    return found


def scaled(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return images with their smallest value at 0 and their largest at 1."""
    low, high = images.min(), images.max()
    return (images - low) / (high - low or 1)


def data_uris(images: NDArray[np.float64], side: int) -> list[str]:
    """Return images, jointly scaled, as PNG in data URIs; at most `side` pixels high and wide."""
    from PIL import Image

    found = []
    for pixels in (255 * scaled(images)).round().astype(np.uint8):
        image, file = Image.fromarray(pixels), BytesIO()
        image.thumbnail((side, side))
        image.save(file, "PNG", optimize=True)
        found.append(f"data:image/png;base64,{b64encode(file.getvalue()).decode()}")
    return found


def draw(images: NDArray[np.float64], titles: Sequence[str], ax: Axes) -> None:
    """Draw the first image on the left, half of the others above beside it, half below."""
    ax.set_axis_off()
    k = (len(images) - 1) // 2
    width, height = 1 / (k + 1), 0.5
    places = [(0.0, height / 2)]
    places += [(width * (j + 1), bottom) for bottom in (height, 0.0) for j in range(k)]
    colours = ["0.3"] + ["C0"] * k + ["C3"] * k
    for image, title, (x, y), colour in zip(images, titles, places, colours, strict=True):
        one = ax.inset_axes((x + 0.05 * width, y, 0.9 * width, 0.68 * height))
        one.imshow(image, cmap="gray", vmin=0, vmax=1)
        one.set(xticks=[], yticks=[])
        one.set_title(title, fontsize="small", **LITERAL)
        for spine in one.spines.values():
            spine.set(color=colour, linewidth=2)
