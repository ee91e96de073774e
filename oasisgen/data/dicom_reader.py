"""The files of a DICOM series -> the voxels of one volume in RAS order, and where they lie in millimetres.

The order and the place of the slices come from their positions, never from numbers or names of files. No value of a
tag gets into a message, since tags name persons.
"""

import io
import logging
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from oasisgen.data.volume_reader import MOST_VOXELS, VolumeData, check_affine, oriented
from oasisgen.errors import UserError

MISSING = (
    "DICOM files are read by pydicom, which is not installed: install requirements.lock, or the extra `dicom`, on "
    "every node, or convert them to NIfTI by dcm2niix -z y -f %i_%p -o <folder> <source> and pack that folder"
)
DAMAGED = "truncated or damaged: copy it again"
UNUSABLE = "no usable {}: copy it again, or convert it to NIfTI by dcm2niix"
LEAST_SLICES = 10  # in a series: those with fewer are localizers or samples
ANGLE = 0.002  # between slices of a volume: the most by which a part of a unit vector differs
UNEVEN = 0.1  # of the distance between slices: the most by which one lies elsewhere than in an even stack
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


class _Plane(NamedTuple):
    """One file of a series."""

    name: str
    pixels: np.ndarray  # (rows, columns) float32
    position: np.ndarray  # (3,) of the centre of the first pixel: millimetres towards left, back and top
    axes: np.ndarray  # (2, 3): unit vectors along a row, and down a column
    spacing: np.ndarray  # (2,): millimetres between rows, and between columns


def pydicom_module() -> Any:
    """The library, told to print nothing: its warnings quote values of tags. Raises UserError if it is missing."""
    try:
        import pydicom
    except ImportError:
        raise UserError(MISSING) from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom


def read_series(files: Iterable[tuple[str, bytes]]) -> VolumeData:
    """The volume of a series, from the names and contents of its files in any order.

    Raises ValueError with the reason if a file is damaged, or the slices are not those of one volume.
    """
    planes: list[_Plane] = []
    for name, content in files:
        try:
            planes.append(_plane(content, name, planes))
        except ValueError as reason:
            raise ValueError(f"{name}: {reason}") from None
    if len(planes) < LEAST_SLICES:
        raise ValueError(f"{len(planes)} slices: too few for a volume, which has at least {LEAST_SLICES}")
    planes, step = _stacked(planes)
    first = planes[0]
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[1]
    affine[:3, 1] = first.axes[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    check_affine(affine)
    return oriented(np.stack([plane.pixels.T for plane in planes], axis=-1), LPS_TO_RAS @ affine)  # (X, Y, Z)


def _plane(content: bytes, name: str, others: list[_Plane]) -> _Plane:
    """The slice in a file, which must fit `others`. Raises ValueError with the reason."""
    pydicom = pydicom_module()
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
    except MemoryError:
        raise
    except Exception:  # pydicom raises many types, and their texts may quote values
        raise ValueError(DAMAGED) from None
    rows, columns = (int(_numbers(dataset, keyword, 1)[0]) for keyword in ("Rows", "Columns"))
    position = _numbers(dataset, "ImagePositionPatient", 3)
    axes = _numbers(dataset, "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=0.01) or spacing.min() <= 0:
        raise ValueError("its ImageOrientationPatient or PixelSpacing is none of a grid of pixels")
    if rows * columns * (len(others) + 1) > MOST_VOXELS:
        raise ValueError(f"more than {MOST_VOXELS} voxels in its series: not a brain scan")
    if others:
        first = others[0]
        if (rows, columns) != first.pixels.shape:
            size = "{1} x {0} pixels".format
            raise ValueError(f"{size(rows, columns)}, but {first.name} of its series has {size(*first.pixels.shape)}")
        if np.abs(axes - first.axes).max() > ANGLE:
            raise ValueError(f"it lies at an angle to {first.name} of its series: several orientations in one series")
        if not np.allclose(spacing, first.spacing, rtol=0.001):
            raise ValueError(f"its pixels have another size than those of {first.name} of its series")
    return _Plane(name, _pixels(dataset, rows, columns), position, axes, spacing)


def _numbers(dataset: Any, keyword: str, count: int) -> np.ndarray:
    """The numbers of a tag, (count,). Raises ValueError if it has others."""
    try:
        numbers = np.array(_value(dataset, keyword), float).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(UNUSABLE.format(keyword))
    return numbers


def _value(dataset: Any, keyword: str, default: object = None) -> Any:
    """The value of a tag. Raises ValueError if its bytes, which are converted only here, are no such value."""
    try:
        return dataset.get(keyword, default)
    except MemoryError:
        raise
    except Exception:
        raise ValueError(UNUSABLE.format(keyword)) from None


def _pixels(dataset: Any, rows: int, columns: int) -> np.ndarray:
    """The pixels in the unit of the series, (rows, columns) float32. Raises ValueError with the reason."""
    pydicom = pydicom_module()
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("no pixel data: copy it again, with its pixels")
    if _value(dataset, "SamplesPerPixel", 1) != 1 or _value(dataset, "PhotometricInterpretation") != "MONOCHROME2":
        raise ValueError("its pixels are colours or a negative instead of grey values from dark to bright")
    is_compressed, why = _compression(pydicom, dataset)
    try:
        stored = dataset.pixel_array
    except MemoryError:
        raise
    except Exception:
        raise ValueError(why if is_compressed else DAMAGED) from None
    if stored.shape != (rows, columns):
        raise ValueError(f"pixels of shape {stored.shape} instead of {rows} x {columns}: one slice per file is read")
    slope = _numbers(dataset, "RescaleSlope", 1)[0] if _value(dataset, "RescaleSlope") is not None else 1
    intercept = _numbers(dataset, "RescaleIntercept", 1)[0] if _value(dataset, "RescaleIntercept") is not None else 0
    pixels = stored.astype(np.float32)
    if (slope, intercept) != (1, 0):
        pixels = pixels * np.float32(slope) + np.float32(intercept)
    return pixels


def _compression(pydicom: Any, dataset: Any) -> tuple[bool, str]:
    """Whether the pixels are compressed, and why they cannot be read if pydicom cannot decode them."""
    syntax = pydicom.uid.UID(str(_value(dataset.file_meta, "TransferSyntaxUID", "")))
    is_known = syntax in pydicom.uid.AllTransferSyntaxes
    why = (
        f"compressed as {syntax.name if is_known else 'something private'}, and damaged or beyond pydicom alone: "
        "install pylibjpeg and pylibjpeg-libjpeg on every node, or convert it to NIfTI by dcm2niix"
    )
    return is_known and syntax.is_encapsulated, why


def _stacked(planes: list[_Plane]) -> tuple[list[_Plane], np.ndarray]:
    """The slices by position along their normal, and the way from one to the next, (3,) in millimetres.

    Raises ValueError if they are no even stack.
    """
    normal = np.cross(*planes[0].axes)
    planes = sorted(planes, key=lambda plane: float(plane.position @ normal))
    places = np.array([plane.position for plane in planes])  # (N, 3)
    depths = places @ normal  # (N,)
    apart = np.diff(depths)
    usual = float(np.median(apart))
    if (same := np.flatnonzero(apart <= max(UNEVEN * usual, 0.01))).size:
        pair = planes[same[0]].name, planes[same[0] + 1].name
        raise ValueError(
            f"{len(same)} slices lie where another one does, such as {pair[0]} and {pair[1]}: copies, or a series of "
            "volumes such as fMRI; keep one volume"
        )
    if (wide := np.flatnonzero(apart > (1 + UNEVEN) * usual)).size:
        pair = planes[wide[0]].name, planes[wide[0] + 1].name
        raise ValueError(f"slices are missing between {pair[0]} and {pair[1]}: copy the series again")
    step = (places[-1] - places[0]) / (len(planes) - 1)
    even = places[0] + np.arange(len(planes))[:, None] * step  # (N, 3)
    if np.linalg.norm(places - even, axis=1).max() > UNEVEN * usual:
        raise ValueError("its slices do not lie in one even stack: convert it to NIfTI by dcm2niix")
    return planes, step
