"""Bytes of an Analyze volume -> its array. The header is checked before any memory is used."""

import io
import math

import numpy as np
from nibabel.analyze import AnalyzeHeader

HEADER_BYTES = 348


def read_analyze(header: bytes, image: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The voxels of an Analyze pair of integers, (X, Y, Z), which must be of `shape`, perhaps with axes of length 1.

    Raises ValueError with the reason if they are damaged or something else.
    """
    if len(header) < HEADER_BYTES:
        raise ValueError(f"a header of {len(header)} bytes instead of {HEADER_BYTES}: truncated")
    try:
        parsed = AnalyzeHeader.from_fileobj(io.BytesIO(header), check=False)
        found, dtype = parsed.get_data_shape(), parsed.get_data_dtype()
        offset = float(parsed["vox_offset"])
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises many types: HeaderDataError, KeyError, ValueError, …
        raise ValueError(f"no Analyze header ({' '.join(str(error).split())})") from None
    if found[:3] != shape or any(length != 1 for length in found[3:]):
        raise ValueError(f"{_times(found)} voxels instead of {_times(shape)}")
    if dtype.kind not in "iu":
        raise ValueError(f"voxels of type {dtype} instead of integers")
    need = math.prod(shape) * dtype.itemsize
    if not 0 <= offset <= len(image) - need:  # also false for NaN
        raise ValueError(f"{len(image)} bytes of voxels, {need} are needed: truncated")
    return np.frombuffer(image, dtype, math.prod(shape), int(offset)).reshape(shape, order="F")


def _times(lengths: tuple[int, ...]) -> str:
    return " x ".join(map(str, lengths))
