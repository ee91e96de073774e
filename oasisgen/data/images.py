"""Decode one image file: to a slice, or to a label map."""

import ctypes
import io
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging

MOST_BYTES = 4_000_000  # larger files are not opened: 20 times an uncompressed slice in RGB
MOST_PIXELS = 2048  # in height and in width
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"BM": "BMP"}
WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes with more than 8 bits


def silence_pillow() -> None:
    """Hide what Pillow and libtiff print about damaged files in this process: these are rejected with their reason."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    decoders = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        with suppress(AttributeError):  # a Pillow without libtiff
            getattr(decoders, name)(None)


class Decoded(NamedTuple):
    """An image, and what had to be converted; "" for nothing."""

    pixels: np.ndarray  # (h, w) uint8
    converted: str


def decode(data: bytes) -> Decoded:
    """The slice in an image file.

    Grey values of more than 8 bits are divided by the largest one of the slice, times 255. Raises ValueError with the
    reason if it is not a slice: damaged, colored, transparent, of several frames, too large or of another format.
    """
    image = _open(data)
    if image.mode == "L":
        return Decoded(np.asarray(image), "")
    if image.mode == "1":
        return Decoded(np.asarray(image.convert("L")), "1-bit images")
    if image.mode in WIDE:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0:
            raise ValueError("grey values below 0")
        scaled = values * 255 // max(1, int(values.max()))
        return Decoded(scaled.astype(np.uint8), "16-bit images, divided by the maximum of each slice")
    if image.mode not in ("P", "LA", "PA", "RGB", "RGBA"):
        raise ValueError(f"mode {image.mode} instead of greyscale")
    kind = {"P": "palette", "PA": "palette", "LA": "grey with alpha"}.get(image.mode, image.mode)
    red, green, blue, alpha = (np.asarray(channel) for channel in _load(image.convert, "RGBA").split())
    if alpha.min() < 255:
        raise ValueError("transparent pixels")
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        raise ValueError(f"{kind} with unequal channels: not greyscale")
    return Decoded(red, f"grey images stored as {kind}")


def decode_labels(data: bytes) -> np.ndarray:
    """The values of a label map in an image file, (h, w) int64: of a palette image its indices. Raises as `decode`."""
    image = _open(data)
    if image.mode in ("L", "P", *WIDE):
        return np.asarray(image).astype(np.int64)
    return decode(data).pixels.astype(np.int64)


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width by the header of an image file. Raises as `decode`."""
    width, height = _open(data, load=False).size
    return height, width


def _open(data: bytes, load: bool = True) -> Image.Image:
    """The image in a file. Its header is checked before any pixel is decoded, and no other decoder is ever tried."""
    kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)
    if not kind:
        raise ValueError("not a PNG, JPEG, TIFF or BMP file")
    image: Image.Image = _load(lambda: Image.open(io.BytesIO(data), formats=[kind]))
    width, height = image.size
    if max(width, height) > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels: a slice has at most {MOST_PIXELS} x {MOST_PIXELS}")
    if _load(lambda: getattr(image, "n_frames", 1)) > 1:
        raise ValueError("several frames or pages instead of one")
    if load:
        _load(image.load)
    return image


def _load(step, *given):  # type: ignore[no-untyped-def]
    """What a step of Pillow's returns. Raises ValueError with the reason for any error that a damaged file causes."""
    try:
        return step(*given)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"too many pixels: a slice has at most {MOST_PIXELS} x {MOST_PIXELS}") from None
    except UnidentifiedImageError:  # its message holds an address in memory
        raise ValueError("truncated or damaged (its header cannot be read)") from None
    except Exception as error:  # Pillow raises many types: OSError, SyntaxError, IndexError, zlib.error, …
        raise ValueError(f"truncated or damaged ({' '.join(str(error).split())})") from None
