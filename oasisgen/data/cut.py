"""Cut a volume into slices: a grid of points in millimetres, whatever the order, spacing and angle of its voxels.

Slices are placed relative to the edge of the head, because scanners put the origin anywhere.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates

from oasisgen.config.pack import PackConfig
from oasisgen.data.volume_reader import VolumeData

RIGHT, FRONT, TOP = range(3)  # the axes of space
AXES = {"sagittal": RIGHT, "coronal": FRONT, "axial": TOP}
ROWS_COLUMNS = {  # axis and direction of the rows and the columns of a slice
    "axial": ((RIGHT, 1), (FRONT, 1)),  # as OASIS's: from left to right down the rows
    "coronal": ((TOP, -1), (RIGHT, 1)),
    "sagittal": ((TOP, -1), (FRONT, 1)),
}
EDGES = {
    "axial": {"top": "left", "bottom": "right", "left": "back", "right": "front"},
    "coronal": {"top": "top", "bottom": "bottom", "left": "left", "right": "right"},
    "sagittal": {"top": "top", "bottom": "bottom", "left": "back", "right": "front"},
}
LEAST_AREA = 100  # mm2 of tissue: a plane with more is part of the head
HEAD = 110  # mm below the top: without the neck
CENTER = 80  # mm below the top: the middle of a coronal or sagittal slice
MOST_POINTS = 2**24  # voxels in which the head is looked for
GREY = 255


class Head(NamedTuple):
    """Where the head begins and ends, in millimetres towards right, front and top."""

    low: np.ndarray  # (3,)
    high: np.ndarray  # (3,)


def cut(volume: VolumeData, labels: VolumeData | None, config: PackConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """The slices of a volume, (L, H, W) uint8, and the values of a label volume at their pixels, (L, H, W) float32.

    The label volume may have another grid; outside of it, labels are 0. Raises ValueError if no head is found or the
    grey values are all equal.
    """
    low, high = window = _window(volume.voxels, config)
    to_labels = np.linalg.inv(labels.affine) @ volume.affine if labels else np.eye(4)
    images, maps = [], []
    for points in grid(volume, find_head(volume), config):
        plane = map_coordinates(volume.voxels, points, order=1, mode="constant", cval=min(low, 0), prefilter=False)
        if config.window_per == "slice":
            low, high = _window(plane, config) if plane.any() else window
        images.append(np.rint(np.clip((plane - low) / (high - low), 0, 1) * GREY).astype(np.uint8))
        if labels:
            there = np.tensordot(to_labels[:3, :3], points, 1) + to_labels[:3, 3, None, None]  # (3, H, W)
            maps.append(map_coordinates(labels.voxels, there.round(5), order=0, mode="constant", cval=0))
    return np.array(images), np.array(maps) if labels else None


def grid(volume: VolumeData, head: Head, config: PackConfig) -> Iterator[np.ndarray]:
    """The points of each slice in voxels of `volume`, (3, H, W), from level 0 on.

    Where the voxels are not larger than the pixels, the first pixel is moved to the centre of a voxel, by less than
    half a voxel: slices of a volume with pixels of that size are then its voxels, and not blurred.
    """
    axis, sizes = AXES[config.axis], config.slice_size
    (row, down), (column, along) = ROWS_COLUMNS[config.axis]
    center = (head.low + head.high) / 2
    center[TOP] = head.high[TOP] - CENTER
    first, last = config.cut_range
    start, to_voxels = center.copy(), np.linalg.inv(volume.affine)
    start[row] -= down * config.mm * (sizes[0] - 1) / 2
    start[column] -= along * config.mm * (sizes[1] - 1) / 2
    start[axis] = head.high[axis] - first
    start = to_voxels[:3, :3] @ start + to_voxels[:3, 3]
    fine = np.linalg.norm(volume.affine[:3, :3], axis=0) <= 1.01 * config.mm
    start = np.where(fine, start.round(), start)
    rows = down * config.mm * np.arange(sizes[0])
    columns = along * config.mm * np.arange(sizes[1])
    for depth in np.linspace(0, last - first, config.levels):
        steps = np.zeros((3, *sizes))  # (3, H, W)
        steps[row], steps[column], steps[axis] = rows[:, None], columns, -depth
        yield (np.tensordot(to_voxels[:3, :3], steps, 1) + start[:, None, None]).round(5)


def find_head(volume: VolumeData) -> Head:
    """Where planes have more than LEAST_AREA of tissue; to the sides, front and back, only below the top by HEAD.

    Raises ValueError if none has.
    """
    step = int(np.ceil((volume.voxels.size / MOST_POINTS) ** (1 / 3)))
    voxels = volume.voxels[::step, ::step, ::step]
    affine = volume.affine @ np.diag([step, step, step, 1])
    points = np.argwhere(voxels > tissue_threshold(voxels)) @ affine[:3, :3].T + affine[:3, 3]  # (N, 3)
    low, high = np.zeros(3), np.zeros(3)
    for axis in (TOP, FRONT, RIGHT):
        thickness = np.abs(affine[axis, :3]).max()
        origin = points[:, axis].min(initial=np.inf)
        places = np.rint((points[:, axis] - origin) / thickness) if len(points) else np.zeros(0)
        counts = np.bincount(places.astype(int))
        planes = np.flatnonzero(counts * abs(np.linalg.det(affine)) / thickness > LEAST_AREA)
        if not len(planes):
            raise ValueError("no head found: no plane of it has more than 1 cm2 of tissue; is it a brain scan?")
        low[axis], high[axis] = origin + planes[[0, -1]] * thickness
        if axis == TOP:
            points = points[points[:, TOP] >= high[TOP] - HEAD]
    return Head(low, high)


def tissue_threshold(voxels: np.ndarray) -> float:
    """Half of Otsu's threshold (1979), between background and tissue, without the brightest 0.5 % of the voxels."""
    clipped = np.minimum(voxels, np.percentile(voxels, 99.5))
    counts, edges = np.histogram(clipped, 256)
    centers = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * centers)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    at = int(np.nanargmax(np.where(above > 0, between, 0)))
    return float(edges[0] + (centers[at] - edges[0]) / 2)


def _window(values: np.ndarray, config: PackConfig) -> tuple[float, float]:
    """The values that become black and white. Raises ValueError if they are equal."""
    low, high = np.percentile(values[values != 0], config.window_percentiles)
    if not low < high:
        raise ValueError(f"--window {config.window} is from {low:g} to {high:g} in it: it has too few grey values")
    return float(low), float(high)
