"""Decode one image file to a slice."""

import io
import struct

import numpy as np
from PIL import Image

MOST_BYTES = 4_000_000  # larger files are not opened: 20 times an uncompressed slice in RGB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_png(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode a PNG file to (H, W) uint8, where (H, W) must be `size`.

    Raises ValueError with the reason if it is not a usable slice.

    The header is checked before any pixel is decoded, and only Pillow's PNG decoder is ever tried.
    """
    if data[:8] != PNG_SIGNATURE or len(data) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    if (height, width) != size:
        raise ValueError(f"{width} x {height} pixels instead of {size[1]} x {size[0]}")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode in ("L", "RGB"):
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types: OSError, SyntaxError, IndexError, zlib.error, …
        raise ValueError(f"truncated or damaged ({' '.join(str(error).split())})") from None
    if image.mode == "RGB":
        red, green, blue = (np.asarray(channel) for channel in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise ValueError("RGB with unequal channels")
        return red
    if image.mode != "L":
        raise ValueError(f"mode {image.mode} instead of 8-bit greyscale")
    return np.asarray(image)
