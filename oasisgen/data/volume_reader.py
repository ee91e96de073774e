"""Bytes of a volume (NIfTI, Analyze, MGH) -> its voxels in RAS order, and where they lie in millimetres.

Headers are checked before any memory is used, and compressed files are unpacked only as far as their header says.
"""

import gzip
import io
import math
import posixpath
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

FILE_NAME = re.compile(r"(?P<stem>.+?)\.(?P<kind>nii|img|hdr|mgh|mgz)(?P<packed>\.gz)?", re.IGNORECASE)
MOST_VOXELS = 2**27  # 512 x 512 x 512: half a gigabyte as float32
MOST_BYTES = 2**30  # of a file: all those voxels as 64-bit numbers
HEADER_BYTES = 348  # of Analyze
MOST_HEADER_BYTES = 1024  # more than any of the headers
MOST_OFFSET = 2**26  # bytes before the voxels: extensions of the header
MILLIMETRES = 0.05, 20.0  # between the centres of neighbouring voxels
SAME_DIRECTION = "its header gives two axes the same direction: convert it to NIfTI again"
UNKNOWN = "its header gives no orientation: the order of its voxels is taken for right, front, up (RAS)"


class VolumeData(NamedTuple):
    """A volume in memory."""

    voxels: np.ndarray  # (X, Y, Z) float32, finite: towards right, front and top
    affine: np.ndarray  # (4, 4): voxel -> millimetres towards right, front and top
    notes: tuple[str, ...] = ()  # what was guessed or repaired


def read_volume(name: str, image: bytes, header: bytes | None = None) -> VolumeData:
    """The volume in file `name` with content `image`; `header` is the other file of a pair.

    Raises ValueError with the reason if it is damaged, or no volume of grey values.
    """
    try:
        return _read(name, image, header)
    except (MemoryError, ValueError):
        raise
    except EOFError:
        raise ValueError("truncated: copy it again") from None
    except Exception as error:  # nibabel raises many types: HeaderDataError, KeyError, zlib.error, …
        raise ValueError(f"damaged, or not the volume that its name says ({' '.join(str(error).split())})") from None


def _read(name: str, image: bytes, header: bytes | None) -> VolumeData:
    file = _opened(image)
    start = _opened(header).read(MOST_HEADER_BYTES) if header is not None else file.read(MOST_HEADER_BYTES)
    parsed = _header(name, start, header is not None)
    shape, dtype = _shape(parsed), parsed.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ValueError("its voxels are colours or complex numbers instead of grey values: convert it")
    offset = int(parsed.get_data_offset())
    affine, notes = _affine(parsed)
    if not 0 <= offset <= MOST_OFFSET:
        raise ValueError(f"its header puts the voxels at byte {offset}: damaged; copy it again")
    file.seek(offset)
    need = math.prod(shape) * dtype.itemsize
    data = file.read(need)
    if len(data) < need:
        raise ValueError(f"{len(data)} bytes of voxels, {need} are needed: truncated; copy it again")
    file.read(1)  # a compressed file that ends here is compared with its checksum
    stored = np.frombuffer(data, dtype).reshape(shape, order="F")
    return oriented(_scaled(stored, parsed), affine, notes)


def oriented(voxels: np.ndarray, affine: np.ndarray, notes: Sequence[str] = ()) -> VolumeData:
    """The volume with its axes in RAS order, of voxels (X, Y, Z) float32 in any order.

    Raises ValueError with the reason if it is empty, or if two axes have the same direction.
    """
    voxels, repaired = _finite(voxels)
    turn = io_orientation(affine)
    if np.isnan(turn).any():
        raise ValueError(SAME_DIRECTION)
    affine = affine @ inv_ornt_aff(turn, voxels.shape)
    return VolumeData(apply_orientation(voxels, turn), affine, (*notes, *repaired))


def _opened(data: bytes) -> gzip.GzipFile | io.BytesIO:
    return gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)


def _header(name: str, start: bytes, is_pair: bool) -> Any:
    """The header that the first bytes of a file hold."""
    match = FILE_NAME.fullmatch(posixpath.basename(name))
    is_mgh = match is not None and match["kind"].lower() in ("mgh", "mgz")
    magic = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}
    places = {at for at, values in magic.items() if start[at : at + 4] in values}
    kind: Any
    if is_mgh:
        kind, least = MGHHeader, 284
    elif 4 in places:
        kind, least = (Nifti2PairHeader if is_pair else Nifti2Header), 540
    elif 344 in places:
        kind, least = (Nifti1PairHeader if is_pair else Nifti1Header), 348
    elif is_pair or len(start) < 348:
        kind, least = AnalyzeHeader, 348
    else:
        raise ValueError("not a NIfTI file: convert it with dcm2niix or FreeSurfer's mri_convert")
    if len(start) < least:
        raise ValueError(f"a header of {len(start)} bytes instead of {least}: truncated; copy it again")
    # Without the bytes that follow: they are extensions of NIfTI, which nothing here needs.
    return kind.from_fileobj(io.BytesIO(start[:least]), check=False)


def _shape(header: Any) -> tuple[int, int, int]:
    """The numbers of voxels along three axes. Raises ValueError if there are other axes, or too many voxels."""
    lengths = tuple(int(length) for length in header.get_data_shape())
    size = _times(lengths) or "0"
    if len(lengths) < 3 or min(lengths) < 1 or min(lengths[:3]) < 2:
        raise ValueError(f"{size} voxels: not a volume")
    if math.prod(lengths[3:]) > 1:
        raise ValueError(f"{size} voxels: a series of volumes, such as fMRI; extract one, or remove the file")
    if math.prod(lengths) > MOST_VOXELS:
        raise ValueError(f"{size} voxels: more than {MOST_VOXELS}, so damaged or not a brain scan")
    return lengths[0], lengths[1], lengths[2]


def _affine(header: Any) -> tuple[np.ndarray, list[str]]:
    """Voxel -> millimetres, and what was guessed. Raises ValueError if it cannot be inverted."""
    if isinstance(header, MGHHeader):
        affine, is_known = header.get_affine(), bool(header["goodRASFlag"] == 1)
    elif isinstance(header, Nifti1Header):
        affine, is_known = header.get_best_affine(), bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    else:
        affine, is_known = header.get_base_affine(), False
    affine = np.asarray(affine, float)
    if not is_known:
        affine = np.abs(affine) * np.eye(4)  # the order of the voxels: no axis is mirrored
    check_affine(affine)
    return affine, [] if is_known else [UNKNOWN]


def check_affine(affine: np.ndarray) -> None:
    """Raise ValueError unless an affine, (4, 4), has axes of three directions and a plausible size of voxels."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = MILLIMETRES
    if not (np.isfinite(affine).all() and (steps >= low).all() and (steps <= high).all()):
        apart = " x ".join(f"{step:.4g}" for step in steps)
        raise ValueError(f"its header puts the voxels {apart} mm apart: must be from {low} to {high}; correct it")
    if abs(np.linalg.det(affine[:3, :3] / steps)) < 0.01:
        raise ValueError(SAME_DIRECTION)


def _scaled(stored: np.ndarray, header: Any) -> np.ndarray:
    """The stored numbers as float32, multiplied by the header's slope and shifted by its intercept."""
    voxels = stored.astype(np.float32)
    slope, intercept = header.get_slope_inter() if isinstance(header, Nifti1Header) else (None, None)
    if slope is not None and (slope, intercept) != (1, 0):
        voxels *= np.float32(slope)
        voxels += np.float32(intercept or 0)
    return voxels


def _finite(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The voxels with 0 for NaN and infinity. Raises ValueError if they all have the same value."""
    bad = ~np.isfinite(voxels)
    notes = []
    if bad.any():
        if bad.all():
            raise ValueError("all its voxels are NaN or infinite: export it again")
        voxels[bad] = 0
        notes = ["voxels that are NaN or infinite became 0"]
    if voxels.min() == voxels.max():
        raise ValueError(f"all its voxels are {voxels.min():g}: it is empty; export it again")
    return voxels, notes


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
