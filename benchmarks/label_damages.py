"""Known damage to real label maps, and what the measures of label maps make of it: a part of `make instruments`."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy import ndimage

from oasisgen.data.slices import DataSet
from oasisgen.quality.label_maps import LabelMaps, in_halves, measure_labels, score_label_maps, spread_pairs

DEEP = 20  # pixels from the background at which CSF lies in a ventricle
AT_ONCE = 256  # pairs

Damage = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images and label maps, both (N, H, W) uint8, and levels (N,) -> damaged images and label maps."""


def intact(images: np.ndarray, labels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return images, labels


def shifted(images: np.ndarray, labels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label maps four pixels too far down and to the right."""
    return images, np.roll(labels, (4, 4), (1, 2))


def swapped(
    images: np.ndarray, labels: np.ndarray, levels: np.ndarray, one: int, other: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two classes under each other's name."""
    names = np.arange(256, dtype=np.uint8)
    names[[one, other]] = other, one
    return images, names[labels]


def of_another(images: np.ndarray, labels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label map of another slice of the same level."""
    rows = np.arange(len(levels))
    for level in np.unique(levels):
        same = np.flatnonzero(levels == level)
        rows[same] = np.roll(same, 1)
    return images, labels[rows]


def enlarged(
    images: np.ndarray, labels: np.ndarray, levels: np.ndarray, fluid: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ventricles larger by a share of their area, in slices and label maps.

    Ventricles are what has the class `fluid` and lies deep in the brain. The pixels around them that are nearest become
    fluid, with the grey value of the nearest fluid.
    """
    pairs = [_enlarged(*pair, fluid, share) for pair in zip(images, labels, strict=True)]
    larger, maps = zip(*pairs, strict=True)
    return np.stack(larger), np.stack(maps)


def _enlarged(image: np.ndarray, labels: np.ndarray, fluid: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    brain = labels > 0
    ventricles = (labels == fluid) & (ndimage.distance_transform_edt(brain) > DEEP)
    more = round(share * ventricles.sum())
    if not more:
        return image, labels
    distance, (y, x) = ndimage.distance_transform_edt(~ventricles, return_indices=True)
    around = np.flatnonzero(brain & (labels != fluid))
    taken = around[np.argsort(distance.flat[around], kind="stable")[:more]]
    image, labels = image.copy(), labels.copy()
    image.flat[taken] = image[y.flat[taken], x.flat[taken]]
    labels.flat[taken] = fluid
    return image, labels


def damages(classes: Sequence[str]) -> list[tuple[str, Damage, dict[str, int]]]:
    """What must move, and where to, of label maps with CSF, grey matter and white matter.

    Of ventricles that are larger by a fifth nothing is asked: people differ by more than that.
    """
    fluid, grey, white = map(classes.index, ("CSF", "grey matter", "white matter"))
    areas = {"tissue_area": 1, "tissue_ks": 1}
    return [
        ("label maps shifted by 4 pixels", shifted, {"label_fit": -1}),
        ("label maps of other slices of the level", of_another, {"label_fit": -1}),
        ("grey and white matter swapped", partial(swapped, one=grey, other=white), areas),
        ("ventricles enlarged by a fifth", partial(enlarged, fluid=fluid, share=0.2), {}),
        ("ventricles enlarged by a half", partial(enlarged, fluid=fluid, share=0.5), {"tissue_area": 1}),
    ]


def measured(data: DataSet, ways: Sequence[Damage]) -> tuple[list[LabelMaps], np.ndarray]:
    """Real label maps, damaged in each of the ways; and the subjects (N,) whose they are."""
    pieces: list[list[LabelMaps]] = [[] for _ in ways]
    subjects: list[np.ndarray] = []
    for pairs in spread_pairs(data):
        for batch in pairs.iter_batches(batch_size=AT_ONCE):
            subjects.append(batch["subject"])
            for damage, into in zip(ways, pieces, strict=True):
                images, labels = damage(batch["image"], batch["labels"], batch["level"])
                into.append(measure_labels(images, labels, batch["level"], len(data.label_classes)))
    together = [LabelMaps(*map(np.concatenate, zip(*some, strict=True))) for some in pieces]
    return together, np.concatenate(subjects)


def scores_of_cuts(maps: Sequence[LabelMaps], subjects: np.ndarray, cuts: int) -> list[list[dict[str, float]]]:
    """What one half of the subjects scores against the other half of the first of `maps`: a list for each of `maps`,
    with the scores in each of so many cuts in halves.
    """
    people, found = np.unique(subjects), []
    for seed in range(cuts):
        first = np.random.default_rng(seed).permutation(people)[: len(people) // 2].tolist()
        real = in_halves(maps[0], subjects, first)
        halves = [in_halves(each, subjects, first).first for each in maps]
        scores = [score_label_maps(half, sorted(set(half.levels.tolist())), real) for half in halves]
        found.append([{key: score.value for key, score in each.items()} for each in scores])
    return [list(each) for each in zip(*found, strict=True)]
