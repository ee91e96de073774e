"""A synthetic slice as a PNG that says what it is."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from oasisgen import __version__, storage

SLICES_PER_FOLDER = 10_000


def slice_path(number: int) -> str:
    """Where a slice lies below its batch."""
    return f"slices/{number // SLICES_PER_FOLDER}/{number:010d}.png"


def encode(image: np.ndarray, text: dict[str, str]) -> bytes:
    """(256, 256) uint8 -> PNG with `text` in its text chunks; equal input gives equal bytes."""
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@dataclass(frozen=True)
class PngWriter:
    """Writes batches of slices below `uri`; puts `file` and `sha256` in the place of `image`."""

    uri: str
    model: str  # digest
    base_seed: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`id`, `level`, `image` -> the same rows with `file` and `sha256` instead of `image`."""
        files, digests = [], []
        for image, number, level in zip(batch["image"], batch["id"], batch["level"], strict=True):
            text = {
                "Comment": "SYNTHETIC",
                "Software": f"oasisgen {__version__}",
                "model": self.model,
                "base_seed": str(self.base_seed),
                "id": str(number),
                "level": str(level),
            }
            data = encode(image, text)
            files.append(slice_path(int(number)))
            digests.append(hashlib.sha256(data).hexdigest())
            storage.write_bytes(storage.join(self.uri, files[-1]), data)
        rows = {name: values for name, values in batch.items() if name != "image"}
        return rows | {"file": np.array(files), "sha256": np.array(digests)}
