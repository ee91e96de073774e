"""A batch in numbers: means over its slices, variety and fidelity, each beside what real slices score."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import nn

from oasisgen import cluster
from oasisgen.data.feed import Feed, Stored, chunks, evenly_spaced
from oasisgen.data.pixels import to_unit
from oasisgen.evaluation import release
from oasisgen.evaluation.comparison import Comparer, rows_of_levels
from oasisgen.evaluation.fidelity import fidelity
from oasisgen.evaluation.variety import variety
from oasisgen.precision import repeatable
from oasisgen.progress import Progress

BATCH = 32
COMPARED_AT_ONCE = 16
MOST = 2048  # slices of a batch that are measured; more would change little and cost much


PER_SLICE = ("ssim_real", "ssim_train_max", "copy_ratio")  # measures of a single slice


class Slices(NamedTuple):
    """Slices of known level; real ones name their case."""

    images: np.ndarray  # (N, 256, 256) uint8
    levels: np.ndarray  # (N,)
    cases: np.ndarray | None = None  # (N,)


class Describer:
    """A Ray actor that turns batches of `data` (B, 256, 256) uint8 into `features` (B, F)."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        torch.set_num_threads(1)
        self.device = torch.device(cluster.device())
        self.network = load().to(self.device)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(np.array(batch["data"])).to(self.device)  # (B, 256, 256)
        with repeatable(self.device):
            features = self.network(to_unit(images.unsqueeze(1)))  # (B, F)
        return {"features": features.float().cpu().numpy()}


def describe(load: Callable[[], nn.Module], images: np.ndarray, actors: cluster.Actors) -> torch.Tensor:
    """(N, 256, 256) uint8 -> features (N, F), with the network that `load` reads. Needs a connected Ray."""
    described = ray.data.from_numpy(list(chunks(images, BATCH))).map_batches(
        Describer, fn_constructor_args=(load,), batch_size=BATCH, **cluster.pool(actors)
    )
    return torch.cat([torch.from_numpy(batch["features"].copy()) for batch in described.iter_batches(batch_size=None)])


def compare(
    slices: Slices, train: Stored, held_out: Stored, base_seed: int, progress: Progress | None = None
) -> pa.Table:
    """`level` and PER_SLICE of slices that are in memory."""
    columns = {
        name: column for name, column in zip(("image", "level", "case"), slices, strict=True) if column is not None
    }
    rows = [{"id": i, **{name: column[i] for name, column in columns.items()}} for i in range(len(slices.levels))]
    compared = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // COMPARED_AT_ONCE)).map_batches(
        Comparer(train, held_out, base_seed), batch_size=COMPARED_AT_ONCE, **cluster.tasks()
    )
    tables = []
    for batch in compared.select_columns(["level", *PER_SLICE]).iter_batches(
        batch_size=COMPARED_AT_ONCE, batch_format="pyarrow"
    ):
        assert isinstance(batch, pa.Table)
        tables.append(batch)
        if progress:
            progress.advance(len(batch))
    return pa.concat_tables(tables)


def mean_measures(slices: pa.Table, floor: pa.Table) -> dict[str, dict[str, float]]:
    """Means of what is measured of single slices, and the share of suspected copies, beside those of held-out slices.

    A slice is suspected where it is nearer to a training slice, by its copy_ratio, than 99 % of held-out slices are.
    """
    rare = release.limits(floor, "copies")["copy_ratio"]
    measures = {}
    for name in (*PER_SLICE, "suspected_copies"):
        value, real = (
            float(
                (t["copy_ratio"].to_numpy() < rare).mean() if name == "suspected_copies" else pc.mean(t[name]).as_py()
            )
            for t in (slices, floor)
        )
        measures[name] = {"value": value, "floor": real, "distance": value - real}
    return measures


def chosen(feed: Feed, wanted: np.ndarray, without: Collection[tuple[str, int]] = ()) -> Slices:
    """Real slices, as many of each level as `wanted` (M,) has, as far as there are so many; none of `without`.

    `without` names slices by case and level.
    """
    columns = {name: np.concatenate([block[name] for block in feed.blocks]) for name in ("level", "case")}
    named = zip(columns["case"], columns["level"].tolist(), strict=True)
    fit = np.flatnonzero([name not in without for name in named])
    rows = fit[rows_of_levels(columns["level"][fit], wanted)]
    return Slices(feed.rows(rows, "image"), columns["level"][rows], columns["case"][rows])


class Sets(NamedTuple):
    """What is measured against each other, as many slices of each: FID and its kin depend on how many there are."""

    synthetic: Slices
    real: Slices  # held-out
    others: Slices  # of the training split, in the place of synthetic ones: what they score is the floor


def equal_sets(synthetic: Slices, levels: list[int], train: Feed, held_out: Feed) -> Sets:
    """The three sets, evenly spaced over what there is; real slices are of the `levels` asked for."""
    wanted = np.resize(levels, min(MOST, len(synthetic.levels)))
    real, others = chosen(held_out, wanted), chosen(train, wanted)
    count = min(len(real.levels), len(others.levels), len(wanted))
    return Sets(*(take(slices, evenly_spaced(len(slices.levels), count)) for slices in (synthetic, real, others)))


def take(slices: Slices, rows: np.ndarray) -> Slices:
    """Some rows of all columns."""
    return Slices(slices.images[rows], slices.levels[rows], None if slices.cases is None else slices.cases[rows])


def measure(
    load: Callable[[], nn.Module],
    sets: Sets,
    actors: cluster.Actors = cluster.Actors(),  # noqa: B008 (frozen)
) -> dict[str, dict[str, float]]:
    """Each measure of the synthetic slices against the real ones: `value`, `floor`, `distance`.

    The floor is what the training slices score in their place: real against real. What so few slices have no value for
    is left out. Needs a connected Ray.
    """
    synthetic, real, others = sets
    features = describe(load, np.concatenate([real.images, synthetic.images, others.images]), actors)
    real_features, *candidates = features.split([len(real.levels), len(synthetic.levels), len(others.levels)])
    values, floors = (
        {"ms_ssim": variety(*slices), **fidelity(real_features, its)}
        for slices, its in zip((synthetic, others), candidates, strict=True)
    )
    return {
        name: {"value": value, "floor": floors[name], "distance": value - floors[name]}
        for name, value in values.items()
        if math.isfinite(value + floors.get(name, math.nan))
    }
