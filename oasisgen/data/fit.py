"""Bring images of other sizes to the size of the data set."""

import cv2
import numpy as np

from oasisgen.config.pack import Fit


def fit(image: np.ndarray, size: tuple[int, int], how: Fit, labels: bool = False) -> np.ndarray:
    """(h, w) uint8 -> (H, W) uint8, centred, with zeros around it; label maps are never interpolated.

    `pad` changes no pixel; `crop` cuts what is too large, `resize` scales to the largest size that fits. Raises
    ValueError with the reason if `pad` is given an image that is too large.
    """
    height, width = image.shape
    if (height, width) == size:
        return image
    if how == "resize":
        scale = min(size[0] / height, size[1] / width)
        small = max(1, round(width * scale)), max(1, round(height * scale))
        method = cv2.INTER_NEAREST if labels else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, small, interpolation=method)
    elif how == "pad" and (height > size[0] or width > size[1]):
        raise ValueError(
            f"{width} x {height} pixels do not fit into {size[1]} x {size[0]}: give --fit crop or resize, or --size"
        )
    image = _middle(image, size)
    height, width = image.shape
    whole = np.zeros(size, np.uint8)  # (H, W)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    whole[top : top + height, left : left + width] = image
    return whole


def _middle(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image, at most `size`."""
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape, size, strict=True))
    return image[top : top + size[0], left : left + size[1]]
