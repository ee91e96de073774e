"""The real slices that a batch is compared with, and what they score in its place."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from oasisgen import cluster
from oasisgen.data.feed import FeedName
from oasisgen.data.slices import DataSet, open_data_set, source_of
from oasisgen.errors import UserError
from oasisgen.models.bundle import Bundle
from oasisgen.progress import Progress
from oasisgen.quality.gate import limits
from oasisgen.quality.label_maps import RealLabelMaps, read_real_label_maps
from oasisgen.quality.searchable import Searchable, search_bytes, searchable
from oasisgen.quality.sets import compare_slices, select_levels
from oasisgen.sampling.request import BatchRequest

REFERENCE_SLICES = 64, 1120  # fewest and most held-out slices scored as if they were synthetic; between: the count


@dataclass(frozen=True)
class ReferenceData:
    """The real slices that a batch is compared with."""

    image_size: tuple[int, int]
    train: Searchable
    held_out: Searchable
    scores: pa.Table  # of held-out slices in the place of synthetic ones: level and OF_SLICES
    label_maps: RealLabelMaps | None = None  # None: the batch has no label maps, or the data set has others


def open_reference_data_set(bundle: Bundle, data: str | None) -> DataSet:
    """The data set a batch is compared with: `data`, or the one the model was trained on.

    Raises UserError if it is missing, has changed since, or has too few cases to compare held-out with held-out.
    """
    trained = bundle.described.data
    try:
        reference = open_data_set(data or trained.uri)
        cases = len(reference.split("validate").cases)
    except UserError as error:
        raise UserError(f"{error}; or name the data set to measure against with --data") from None
    if not data and reference.fingerprint != trained.fingerprint:
        raise UserError(f"{reference.uri} has changed since the model was trained on it: name a data set with --data")
    if cases < 2:
        raise UserError(
            f"{reference.uri} has {cases} case in validate: measuring needs at least 2 subjects; pack more, or name "
            "another data set with --data"
        )
    return reference


def store_bytes(data: DataSet, feed: FeedName) -> int:
    """The most that a batch needs in the object store for real slices."""
    pixels = data.pixels("validate") + (data.pixels("train") if feed == "memory" else 0)
    return pixels + sum(search_bytes(data, split) for split in ("train", "validate"))


def choose(data: DataSet) -> FeedName:
    """`memory` if all real slices fit into every object store, else `stream`. The results are the same."""
    return "stream" if cluster.too_small(store_bytes(data, "memory"), cluster.ACTOR_CPUS) else "memory"


def read_reference_data(data: DataSet, request: BatchRequest, feed: FeedName = "memory") -> ReferenceData:
    """Read the real slices, and score held-out ones in the place of synthetic ones: that is the reference.

    With `stream`, training slices are read when they are needed, and only what they are searched by is in memory.
    Raises UserError if all held-out slices are of one subject, or those of the requested levels blank or copies.
    """
    held_out = searchable(source_of("memory", data, "validate"))
    slices = held_out.load()
    subjects = set(slices.column("subject").tolist())
    if len(subjects) < 2:  # a held-out slice is compared with those of the others
        raise UserError(
            f"{data.uri}: validate holds slices of one subject, {subjects.pop()}: measuring needs at least 2; pack "
            "more, or name another data set with --data"
        )
    train = searchable(source_of(feed, data, "train"))
    # What is rejected must not depend on how many slices are requested.
    fewest, most = REFERENCE_SLICES
    count = most if request.reject != "none" else int(np.clip(request.count, fewest, most))
    real = select_levels(slices, np.resize(request.levels, count), data.degenerate_in("validate"))
    if not len(real.levels):
        raise UserError(f"{data.uri} has no held-out slice of the requested levels that is neither blank nor a copy")
    with Progress("reference", len(real.levels), "held-out slices") as progress:
        scores = compare_slices(real, train, held_out, request.base_seed, progress)
    limits(scores, "copies")  # refuse now what could not be judged later: suspected copies are always counted
    maps = None
    if request.label_classes and request.label_classes == data.label_classes:
        maps = read_real_label_maps(data)
    return ReferenceData(data.image_size, train, held_out, scores, maps)
