"""A synthetic slice as a PNG that says what it is."""

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from oasisgen import __version__


def encode_png(image: np.ndarray, text: dict[str, str]) -> bytes:
    """(H, W) uint8 -> PNG with `text` in its text chunks; equal input gives equal bytes."""
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    # Z_RLE: filtered rows rarely repeat, so searching for repeats takes longer and saves nothing.
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode_png(png: bytes, size: tuple[int, int]) -> np.ndarray:
    """PNG -> uint8 of `size` (H, W). Raises ValueError with the reason for a PNG that `encode_png` does not write."""
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])  # reads no pixels yet
        if (image.height, image.width) != size or image.mode != "L":
            raise ValueError(f"{image.width} x {image.height} pixels of mode {image.mode}")
        return np.asarray(image)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # Pillow raises all kinds: OSError, SyntaxError, IndexError, zlib.error, …
        raise ValueError(f"truncated or no PNG ({type(error).__name__})") from None


@dataclass(frozen=True)
class PngEncoder:
    """Replaces the column `image` by `png` and `sha256`."""

    model: str  # digest
    base_seed: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`id`, `level`, `image` and more -> the same rows without `image`."""
        files = [
            encode_png(
                image,
                {
                    "Comment": "SYNTHETIC",
                    "Software": f"oasisgen {__version__}",
                    "model": self.model,
                    "base_seed": str(self.base_seed),
                    "id": str(number),
                    "level": str(level),
                },
            )
            for image, number, level in zip(batch["image"], batch["id"], batch["level"], strict=True)
        ]
        rows = {name: values for name, values in batch.items() if name != "image"}
        digests = np.array([hashlib.sha256(file).hexdigest() for file in files])
        return rows | {"png": np.array(files, dtype=object), "sha256": digests}
