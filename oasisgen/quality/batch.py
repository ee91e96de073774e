"""A batch in numbers: means over its slices, variety and fidelity, each beside what real slices score."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import nn

from oasisgen import cluster
from oasisgen.data.feed import Feed, chunks, evenly_spaced
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.diversity import variety
from oasisgen.metrics.fidelity import fidelity
from oasisgen.precision import repeatable
from oasisgen.quality.gate import Measures, limits
from oasisgen.quality.reference import ReferenceData
from oasisgen.quality.sets import PER_SLICE, Slices, chosen, take
from oasisgen.sampling.parts import read_images

BATCH = 32


MOST = 2048  # slices of a batch that are measured; more would change little and cost much


class FeatureExtractor:
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
        FeatureExtractor, fn_constructor_args=(load,), batch_size=BATCH, **cluster.pool(actors)
    )
    return torch.cat([torch.from_numpy(batch["features"].copy()) for batch in described.iter_batches(batch_size=None)])


def mean_measures(slices: pa.Table, floor: pa.Table) -> dict[str, dict[str, float]]:
    """Means of what is measured of single slices, and the share of suspected copies, beside those of held-out slices.

    A slice is suspected where it is nearer to a training slice, by its copy_ratio, than 99 % of held-out slices are.
    """
    rare = limits(floor, "copies")["copy_ratio"]
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


def measure_sets(
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


def measure_batch(
    load: Callable[[], nn.Module],
    request: dict[str, Any],
    references: ReferenceData,
    slices: pa.Table,
    out: str,
    actors: cluster.Actors,
) -> tuple[Measures, int]:
    """The batch in numbers, each beside its floor; and how many slices fidelity and variety were measured on."""
    if not len(slices):
        return {}, 0
    chosen = slices.take(evenly_spaced(len(slices), MOST))
    images = np.stack(read_images(out, request["format"], chosen))
    train, held_out = (split.load() for split in (references.train, references.held_out))
    written = Slices(images, chosen["level"].to_numpy())
    sets = equal_sets(written, request["levels"], train, held_out)
    measures = mean_measures(slices, references.floor) | measure_sets(load, sets, actors)
    return measures, len(sets.synthetic.levels)


def counts(slices: pa.Table) -> dict[str, Any]:
    """Codes in use per slice, and slices per level."""
    levels = pc.value_counts(slices["level"]).to_pylist()
    return {
        "codes_in_use_mean": pc.mean(slices["codes_in_use"]).as_py(),
        "slices_per_level": {str(entry["values"]): entry["counts"] for entry in levels},
    }
