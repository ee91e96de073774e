"""Encode a synthetic slice as a PNG that identifies itself."""

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from oasisgen import __version__
from oasisgen.data.labels import palette


def encode_png(image: np.ndarray, text: dict[str, str]) -> bytes:
    """(H, W) uint8 -> PNG with `text` in its text chunks; equal input gives equal bytes."""
    # Z_RLE: filtered rows rarely repeat, so a search for longer matches would take time and save nothing.
    return _to_bytes(Image.fromarray(image), text, zlib.Z_RLE)


def encode_labels(labels: np.ndarray, classes: int, text: dict[str, str]) -> bytes:
    """(H, W) uint8 -> palette PNG whose pixels are the classes, and whose palette gives each a color.

    As `encode_png`: equal input gives equal bytes.
    """
    image = Image.fromarray(labels)
    image.putpalette(palette(classes).tobytes())
    return _to_bytes(image, text, zlib.Z_DEFAULT_STRATEGY)


def _to_bytes(image: Image.Image, text: dict[str, str], strategy: int) -> bytes:
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, compress_type=strategy)
    return buffer.getvalue()


def decode_png(png: bytes, size: tuple[int, int], mode: str = "L") -> np.ndarray:
    """PNG -> uint8 of `size` (H, W). Raises ValueError with the reason for a PNG that `encode_png` does not write.

    With mode `P`, one that `encode_labels` does not write.
    """
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"])  # reads no pixels yet
        if (image.height, image.width) != size or image.mode != mode:
            raise ValueError(f"{image.width} x {image.height} pixels of mode {image.mode}")
        return np.asarray(image)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # Pillow raises all kinds: OSError, SyntaxError, IndexError, zlib.error, …
        raise ValueError(f"truncated or no PNG ({type(error).__name__})") from None


@dataclass(frozen=True)
class PngEncoder:
    """Replaces the column `image` by `png` and `sha256`, and `labels`, if there is one, by `labels_png` and
    `labels_sha256`."""

    model: str  # digest
    base_seed: int
    label_classes: tuple[str, ...] = ()  # their names

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`id`, `level`, `image` and more -> the same rows without arrays."""
        texts = [self._text(number, level) for number, level in zip(batch["id"], batch["level"], strict=True)]
        files = [encode_png(image, text) for image, text in zip(batch["image"], texts, strict=True)]
        rows = {name: values for name, values in batch.items() if name not in ("image", "labels")}
        rows |= {"png": _objects(files), "sha256": _digests(files)}
        if "labels" in batch:
            names = ", ".join(f"{number} {name}" for number, name in enumerate(self.label_classes))
            count = len(self.label_classes)
            pairs = zip(batch["labels"], texts, strict=True)
            maps = [encode_labels(labels, count, text | {"label_classes": names}) for labels, text in pairs]
            rows |= {"labels_png": _objects(maps), "labels_sha256": _digests(maps)}
        return rows

    def _text(self, number: int, level: int) -> dict[str, str]:
        """What the text chunks of a slice's PNGs say."""
        return {
            "Comment": "SYNTHETIC",
            "Software": f"oasisgen {__version__}",
            "model": self.model,
            "base_seed": str(self.base_seed),
            "id": str(number),
            "level": str(level),
        }


def _objects(files: list[bytes]) -> np.ndarray:
    return np.array(files, dtype=object)


def _digests(files: list[bytes]) -> np.ndarray:
    return np.array([hashlib.sha256(file).hexdigest() for file in files])
