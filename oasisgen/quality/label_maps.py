"""The label maps of a batch beside those of real slices: areas of the classes, and the fit of map and slice."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from oasisgen import cluster
from oasisgen.data.feed import Stored, evenly_spaced
from oasisgen.data.slices import DataSet, read_labels
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


@dataclass(frozen=True)
class LabelMeasurer:
    """Measures real label maps of some cases; `slices` has their images."""

    slices: Stored
    classes: int
    cases: frozenset[str]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`case`, `level`, `labels` (B, H, W) -> the fields of LabelMaps."""
        feed = self.slices.load()
        names = [zip(block["case"], block["level"].tolist(), strict=True) for block in feed.blocks]
        rows = {name: row for row, name in enumerate(name for block in names for name in block)}
        mine = np.flatnonzero([case in self.cases for case in batch["case"]])
        if not len(mine):
            return LabelMaps(np.zeros(0, np.int64), np.zeros((0, self.classes - 1)), np.zeros(0))._asdict()
        case, level, labels = (batch[name][mine] for name in ("case", "level", "labels"))
        images = feed.rows(np.array([rows[name] for name in zip(case, level.tolist(), strict=True)], np.int64), "image")
        return measure_labels(images, labels, level, self.classes)._asdict()


def read_real_label_maps(data: DataSet, train: Stored, held_out: Stored) -> RealLabelMaps | None:
    """The measured label maps of evenly spaced cases of both splits of a data set, whose slices are `train` and
    `held_out`.

    None if a split has none. Slices without a map are left out. Needs a connected Ray.
    """

    def measured(split: str, slices: Stored) -> LabelMaps | None:
        cases = list(data.split(split).cases)
        some = frozenset(cases[place] for place in evenly_spaced(len(cases), math.ceil(MOST / data.levels)))
        measurer = LabelMeasurer(slices, len(data.label_classes), some)
        maps = read_labels(data, split).map_batches(measurer, batch_size=AT_ONCE, **cluster.tasks())
        batches = [batch for batch in maps.iter_batches(batch_size=None) if len(batch["levels"])]
        if not batches:
            return None
        return LabelMaps(*(np.concatenate([np.array(batch[name]) for batch in batches]) for name in LabelMaps._fields))

    of_train, of_held_out = measured("train", train), measured("validate", held_out)
    return RealLabelMaps(of_train, of_held_out) if of_train and of_held_out else None


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
