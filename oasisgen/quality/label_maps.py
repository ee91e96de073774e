"""The label maps of a batch beside those of real slices: areas of the classes, and the fit of map and slice."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from oasisgen import cluster
from oasisgen.data.feed import evenly_spaced
from oasisgen.data.pairs import read_pairs
from oasisgen.data.slices import DataSet
from oasisgen.metrics.label_maps import area_scores, class_areas, label_fit
from oasisgen.quality.measures import Scores, beside
from oasisgen.quality.sets import rows_of_levels

AT_ONCE = 64  # label maps that a task measures
MOST = 2048  # real label maps of a split that are measured, or one case more; as many as slices of a batch


class LabelMaps(NamedTuple):
    """What is measured of label maps, one row each."""

    levels: np.ndarray  # (N,)
    areas: np.ndarray  # (N, K - 1): the share of each class but the background
    fit: np.ndarray  # (N,): NaN for an empty map


@dataclass(frozen=True)
class RealLabelMaps:
    """The label maps that those of a batch are compared with."""

    train: LabelMaps
    held_out: LabelMaps


def measure_labels(images: np.ndarray, labels: np.ndarray, levels: np.ndarray, classes: int) -> LabelMaps:
    """Of slices and their label maps, both (N, H, W) uint8."""
    fit = np.array([label_fit(*pair) for pair in zip(images, labels, strict=True)], np.float64)
    return LabelMaps(levels, class_areas(labels, classes), fit)


def measure_pairs(batch: dict[str, Any], classes: int) -> dict[str, Any]:
    """`image` and `labels` (B, H, W) uint8, `level` (B,) -> the fields of LabelMaps."""
    return measure_labels(batch["image"], batch["labels"], batch["level"], classes)._asdict()


def read_real_label_maps(data: DataSet) -> RealLabelMaps | None:
    """The measured label maps of evenly spaced cases of both splits of a data set.

    None if a split has none. Slices without a map are left out. Needs a connected Ray.
    """
    measure = partial(measure_pairs, classes=len(data.label_classes))

    def measured(split: str) -> LabelMaps | None:
        cases = list(data.split(split).cases)
        some = [cases[place] for place in evenly_spaced(len(cases), math.ceil(MOST / data.levels))]
        pairs = read_pairs(data, split, frozenset(product(some, range(data.levels))))
        maps = pairs.map_batches(measure, batch_size=AT_ONCE, **cluster.tasks())
        batches = [batch for batch in maps.iter_batches(batch_size=None) if len(batch["levels"])]
        if not batches:
            return None
        return LabelMaps(*(np.concatenate([np.array(batch[name]) for batch in batches]) for name in LabelMaps._fields))

    train, held_out = measured("train"), measured("validate")
    return RealLabelMaps(train, held_out) if train and held_out else None


def score_label_maps(maps: LabelMaps, levels: list[int], real: RealLabelMaps) -> Scores:
    """The measures of a batch's label maps, beside what those of training slices score in their place.

    All three sets are equally large. Nothing if no real slice of the requested `levels` has a label map.
    """
    wanted = np.resize(levels, len(maps.levels))
    sets = [maps, *(_take(of, rows_of_levels(of.levels, wanted)) for of in (real.train, real.held_out))]
    count = min(len(of.levels) for of in sets)
    if not count:
        return {}
    synthetic, training, held_out = (_take(of, evenly_spaced(len(of.levels), count)) for of in sets)
    values, references = (
        {**area_scores(of.areas, of.levels, held_out.areas, held_out.levels), "label_fit": _mean(of.fit)}
        for of in (synthetic, training)
    )
    return beside(values, references)


def _take(maps: LabelMaps, rows: np.ndarray) -> LabelMaps:
    return LabelMaps(*(column[rows] for column in maps))


def _mean(fit: np.ndarray) -> float:
    """The mean over maps that are not empty; NaN if all are."""
    there = fit[np.isfinite(fit)]
    return float(there.mean()) if there.size else float("nan")
