"""Virtual subjects, the embedded data set: random deformations of one real brain template.

The MNI152 template (ICBM 152 nonlinear symmetric 2009a at 1 mm with its grey- and white-matter maps, Fonov et al. 2011,
NeuroImage 54:313-327), as the nilearn wheel carries it, is deformed, recolored and sliced in the layout of OASIS.
Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University; its licence lets anyone use, copy, modify and distribute it provided that this notice goes with every copy.
"""

import io
import json
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import ray.data
from nilearn import datasets
from PIL import Image
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from oasisgen import storage
from oasisgen.config.data import OASIS, Shape
from oasisgen.config.folder import write_settings
from oasisgen.data.slice_files import OASIS_VALUES
from oasisgen.data.slices import file_name
from oasisgen.lock import lock
from oasisgen.progress import Progress, say

WHITE = 255.0
COMPLETE = "complete.json"  # written last
LOWEST = 71  # mm in the template's grid: the mid-brain, level 0
VENTRICLES = np.array([98.0, 118.0, 88.0])  # mm: between the two lateral ventricles
VENTRICLE_REACH = np.array([18.0, 34.0, 16.0])  # mm: standard deviations of the ventricles' deformation field


@cache
def _template() -> np.ndarray:
    """(3, 197, 233, 189) float32: T1 in [0, 1], grey matter, white matter; on the 1 mm grid."""
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    return np.stack([np.asarray(load(resolution=1).get_fdata(), np.float32) for load in loaders])


def _smooth_noise(random: np.random.Generator, knots: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Normal noise on a few knots, interpolated to `shape` by splines; its standard deviation is near 1."""
    field = random.standard_normal(knots)
    for n in shape:  # interpolate along the first axis, which then becomes the last one
        spline = make_interp_spline(np.arange(field.shape[0]), np.eye(field.shape[0]))
        field = np.tensordot(field, spline(np.linspace(0, field.shape[0] - 1, n)), axes=(0, 1))
    return field.astype(np.float32)


class VirtualSubject(NamedTuple):
    """A virtual subject, levels from the mid-brain up."""

    images: np.ndarray  # (L, H, W) uint8
    tissues: np.ndarray  # (L, H, W) uint8: 0 background, 1 CSF, 2 grey matter, 3 white matter


def subject(seed: int, number: int, data: Shape = OASIS) -> np.ndarray:
    """The images of `virtual_subject`."""
    return virtual_subject(seed, number, data).images


def virtual_subject(seed: int, number: int, data: Shape = OASIS) -> VirtualSubject:
    """Virtual subject `number` for a seed.

    Slices of another size than OASIS's show as much of the head, along the shorter side, with other pixels; another
    number of levels spans the same height.
    """
    random = np.random.default_rng([seed, number])
    shape = (data.levels, *data.image_size)
    pixel, step = min(OASIS.image_size) / min(data.image_size), OASIS.levels / data.levels  # mm

    # The position of each voxel in the template, in mm: head size and pose, ventricles, local deformations.
    level, row, column = np.indices(shape, np.float32)
    axes = ((row, data.height, pixel), (column, data.width, pixel), (level, data.levels, step))
    place = np.stack([(n - (count - 1) / 2) * mm for n, count, mm in axes])  # (3, L, H, W), from the stack's middle
    scale = random.normal([1.1, 1.1, 1.0], 0.04)
    tilt = np.eye(3) + random.normal(0.0, 0.035, (3, 3))
    place = np.einsum("ij,j...->i...", tilt / scale, place).astype(np.float32)
    middle = np.array([98.0, 116.0, LOWEST + 15.5]) + random.normal(0.0, [1.5, 2.0, 2.5])
    place += middle[:, None, None, None].astype(np.float32)
    offset = place - VENTRICLES[:, None, None, None].astype(np.float32)
    near = np.exp(-0.5 * ((offset / VENTRICLE_REACH[:, None, None, None].astype(np.float32)) ** 2).sum(0))
    place -= random.uniform(-0.35, 0.5) * near * offset  # above 0, the ventricles are enlarged
    for axis in range(3):
        place[axis] += 2.2 * _smooth_noise(random, (4, 6, 6), shape) + 1.3 * _smooth_noise(random, (6, 14, 14), shape)

    t1, grey, white = (ndimage.map_coordinates(volume, place, order=1) for volume in _template())

    # Contrast, bias field and Rician noise, as of a scanner.
    contrast = 1.0 + random.normal(-0.28, 0.05) * grey + random.normal(0.0, 0.03) * white
    fluid = np.clip(1.0 - grey - white, 0.0, 1.0)
    image = t1 * contrast * (1.0 - random.uniform(0.35, 0.6) * fluid)
    image *= np.exp(0.08 * _smooth_noise(random, (4, 4, 4), shape))
    noise = random.normal(0.0, random.uniform(0.008, 0.02), (2, *shape)).astype(np.float32)
    image = np.where(t1 > 0.05, np.hypot(image + noise[0], noise[1]), 0.0)  # the background is masked, as in OASIS
    brightest = np.percentile(image, 99.9, axis=(1, 2), keepdims=True)  # per slice, as in OASIS
    images = (np.clip(image / brightest, 0.0, 1.0) * WHITE).round().astype(np.uint8)
    tissues = np.where(t1 > 0.05, 1 + np.stack([fluid, grey, white]).argmax(0), 0).astype(np.uint8)
    return VirtualSubject(images, tissues)


def write_subject(row: dict[str, Any]) -> dict[str, Any]:
    """Write one virtual subject's PNGs and those of its label maps, one of each per level."""
    made = virtual_subject(row["seed"], row["number"], Shape(*row["shape"]))
    values = np.array(OASIS_VALUES, np.uint8)[made.tissues]  # (L, H, W)
    for level, (image, labels) in enumerate(zip(made.images, values, strict=True)):
        name = file_name(f"{row['number']:03d}", level)
        folders = {f"keras_png_slices_{row['split']}": name}
        folders |= {f"keras_png_slices_seg_{row['split']}": name.replace("case_", "seg_")}
        for (folder, file), pixels in zip(folders.items(), (image, labels), strict=True):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            storage.write_bytes(storage.join(row["out"], folder, file), png.getvalue())
    return {"number": row["number"]}


def write_phantoms(out: str, splits: dict[str, int], seed: int, shape: Shape = OASIS) -> None:
    """Write the virtual subjects of all splits, {split: number of subjects}. Needs a connection to Ray.

    A finished folder, one with `complete.json`, is left unchanged. Raises UserError if `out` holds other files than
    these virtual subjects (real slices have the same file names), or if another job is writing to it.
    """
    out = storage.absolute(out)
    settings: dict[str, Any] = {"virtual_subjects": splits, "seed": seed}
    if shape != OASIS:  # folders of older versions do not name theirs
        settings |= {"image_size": list(shape.image_size), "levels": shape.levels}
    write_settings(out, settings)
    marker = storage.join(out, COMPLETE)
    if storage.exists(marker):
        say("phantom", f"{sum(splits.values())} subjects exist already")
        return
    homes = [split for split, subjects in splits.items() for _ in range(subjects)]
    rows = [
        {
            "seed": seed,
            "number": number,
            "out": out,
            "split": split,
            "shape": [*shape.image_size, shape.levels],
        }
        for number, split in enumerate(homes, start=1)
    ]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(write_subject)
    with lock(out) as held:
        with Progress("phantom", len(rows), "subjects") as progress:
            for _ in written.iter_rows():
                progress.advance(1)
        held.commit(marker, (json.dumps(settings) + "\n").encode())
