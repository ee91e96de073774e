"""The label maps of a batch beside those of real slices: areas of the classes, and the fit of map and slice."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray.data

from oasisgen import cluster
from oasisgen.data.feed import evenly_spaced
from oasisgen.data.pairs import read_pairs
from oasisgen.data.slices import DataSet
from oasisgen.metrics.label_maps import area_scores, class_areas, label_fit
from oasisgen.quality.measures import Scores, beside
from oasisgen.quality.sets import rows_of_levels

AT_ONCE = 64  # label maps that a task measures
MOST = 2048  # real label maps of each half that are measured, about; as many as slices of a batch


class LabelMaps(NamedTuple):
    """What is measured of label maps, one row each."""

    levels: np.ndarray  # (N,)
    areas: np.ndarray  # (N, K - 1): the share of each class but the background
    fit: np.ndarray  # (N,): NaN for an empty map


@dataclass(frozen=True)
class RealLabelMaps:
    """The label maps that those of a batch are compared with: of the subjects of a data set, in two halves."""

    first: LabelMaps
    second: LabelMaps


def measure_labels(images: np.ndarray, labels: np.ndarray, levels: np.ndarray, classes: int) -> LabelMaps:
    """Of slices and their label maps, both (N, H, W) uint8."""
    fit = np.array([label_fit(*pair) for pair in zip(images, labels, strict=True)], np.float64)
    return LabelMaps(levels, class_areas(labels, classes), fit)


def measure_pairs(batch: dict[str, Any], classes: int) -> dict[str, Any]:
    """`image` and `labels` (B, H, W) uint8, `level` (B,), `subject` (B,) -> the fields of LabelMaps, and `subject`."""
    measured = measure_labels(batch["image"], batch["labels"], batch["level"], classes)
    return measured._asdict() | {"subject": batch["subject"]}


def spread(cases: Mapping[str, Sequence[str]], levels: int) -> dict[str, frozenset[tuple[str, int]]]:
    """Split -> case and level of the slices that are measured: of all cases, and of so many levels of each that there
    are about MOST in each half.

    The areas of a class differ a lot between people, so a few slices of each person say more than all slices of a few.
    """
    numbers = itertools.count()
    every = math.ceil(sum(map(len, cases.values())) * levels / (2 * MOST))
    return {
        split: frozenset((case, level) for case in its for level in range(next(numbers) % every, levels, every))
        for split, its in cases.items()
    }


def spread_pairs(data: DataSet) -> Iterator[ray.data.Dataset]:
    """The real pairs of both splits that are measured, as `read_pairs` reads them."""
    cases = {split: list(data.split(split).cases) for split in ("train", "validate")}
    for split, some in spread(cases, data.levels).items():
        yield read_pairs(data, split, some)


def in_halves(maps: LabelMaps, subjects: np.ndarray, first: Collection[str]) -> RealLabelMaps:
    """Measured label maps of `subjects` (N,), those of the `first` ones and those of all others."""
    mine = np.isin(subjects, list(first))
    return RealLabelMaps(_take(maps, np.flatnonzero(mine)), _take(maps, np.flatnonzero(~mine)))


def read_real_label_maps(data: DataSet) -> RealLabelMaps | None:
    """The measured label maps of a data set; None unless two subjects have one. Needs a connected Ray."""
    measure = partial(measure_pairs, classes=len(data.label_classes))
    batches = [
        batch
        for pairs in spread_pairs(data)
        for batch in pairs.map_batches(measure, batch_size=AT_ONCE, **cluster.tasks()).iter_batches(batch_size=None)
        if len(batch["levels"])
    ]
    if not batches:
        return None
    names = (*LabelMaps._fields, "subject")
    *columns, subjects = (np.concatenate([batch[name] for batch in batches]) for name in names)
    people = np.unique(subjects)
    return in_halves(LabelMaps(*columns), subjects, people[::2].tolist()) if len(people) > 1 else None


def score_label_maps(maps: LabelMaps, levels: list[int], real: RealLabelMaps) -> Scores:
    """The measures of a batch's label maps, compared with one half of the real ones, beside what the other half scores.

    All three sets are equally large. Nothing if no real slice of the requested `levels` has a label map.
    """
    wanted = np.resize(levels, len(maps.levels))
    sets = [maps, *(_take(of, rows_of_levels(of.levels, wanted)) for of in (real.first, real.second))]
    count = min(len(of.levels) for of in sets)
    if not count:
        return {}
    synthetic, first, second = (_take(of, evenly_spaced(len(of.levels), count)) for of in sets)
    values, references = (
        {**area_scores(of.areas, of.levels, second.areas, second.levels), "label_fit": _mean(of.fit)}
        for of in (synthetic, first)
    )
    return beside(values, references)


def _take(maps: LabelMaps, rows: np.ndarray) -> LabelMaps:
    return LabelMaps(*(column[rows] for column in maps))


def _mean(fit: np.ndarray) -> float:
    """The mean over maps that are not empty; NaN if all are."""
    there = fit[np.isfinite(fit)]
    return float(there.mean()) if there.size else float("nan")
