"""A batch in numbers: means over its slices, variety and fidelity, each beside its reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from oasisgen import actor, cluster
from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.diversity import variety
from oasisgen.metrics.fidelity import fidelity
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import repeatable
from oasisgen.quality.detectability import score_detectability
from oasisgen.quality.gate import limits
from oasisgen.quality.label_maps import measure_labels, score_label_maps
from oasisgen.quality.measures import MEASURES, Scores, beside
from oasisgen.quality.reference import ReferenceData
from oasisgen.quality.rows import MOST, BatchRows, Totals
from oasisgen.quality.sets import Sets, Slices, map_images, select_levels, take
from oasisgen.sampling.parts import read_images, read_label_maps
from oasisgen.sampling.request import BatchRequest

BATCH = 32


class FeatureExtractor:
    """A Ray actor that turns batches of `data` (B, H, W) uint8 into features (B, F)."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self.device = actor.set_up()
        self.network = load().to(self.device)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(np.array(batch["data"])).to(self.device)  # (B, H, W)
        with repeatable(self.device):
            features = self.network(to_unit(images.unsqueeze(1)))  # (B, F)
        return {"data": features.float().cpu().numpy()}


def extract_features(load: Callable[[], nn.Module], images: np.ndarray, actors: cluster.Actors) -> torch.Tensor:
    """(N, H, W) uint8 -> features (N, F), with the network that `load` reads. Needs a connected Ray."""
    return torch.from_numpy(map_images(FeatureExtractor, (load,), images, BATCH, actors))


def mean_scores(slices: pa.Table, reference: pa.Table) -> Scores:
    """Means of the measures that each slice has, and the share of suspected copies, beside those of held-out slices.

    A slice is suspected if its copy_ratio is lower than that of 99 % of held-out slices.
    """
    suspect = limits(reference, "copies")["copy_ratio"]
    return beside(*(Totals(suspect).add(table).means for table in (slices, reference)))


def equal_sets(synthetic: Slices, levels: list[int], train: Feed, held_out: Feed) -> Sets:
    """The three sets, each evenly spaced over what there is; real slices are of the requested `levels`."""
    wanted = np.resize(levels, min(MOST, len(synthetic.levels)))
    real, training = select_levels(held_out, wanted), select_levels(train, wanted)
    count = min(len(real.levels), len(training.levels), len(wanted))
    return Sets(*(take(slices, evenly_spaced(len(slices.levels), count)) for slices in (synthetic, real, training)))


def score_sets(
    load: Callable[[], nn.Module],
    sets: Sets,
    actors: cluster.Actors = cluster.Actors(),  # noqa: B008 (frozen)
) -> Scores:
    """Variety and fidelity of the synthetic slices, beside what the training slices score in their place.

    Measures that cannot be computed of so few slices are left out. Needs a connected Ray.
    """
    synthetic, real, training = sets
    features = extract_features(load, np.concatenate([real.images, synthetic.images, training.images]), actors)
    of_real, *of_candidates = features.split([len(real.levels), len(synthetic.levels), len(training.levels)])
    values, references = (
        {"ms_ssim": variety(*slices), **fidelity(of_real, its)}
        for slices, its in zip((synthetic, training), of_candidates, strict=True)
    )
    return beside(values, references)


def score_batch(
    load: Callable[[], nn.Module],
    load_vqvae: Callable[[], VQVAE],
    request: BatchRequest,
    references: ReferenceData,
    rows: BatchRows,
    out: str,
    actors: cluster.Actors,
) -> tuple[Scores, int]:
    """Every measure of a batch, and how many of its slices fidelity and variety were measured on.

    `load` reads the feature network, `load_vqvae` the VQ-VAE that decoded the slices.
    """
    if not rows.totals.rows:
        return {}, 0
    images = np.stack(read_images(out, request.format, rows.measured, references.image_size))
    train, held_out = (split.load() for split in (references.train, references.held_out))
    levels = rows.measured["level"].to_numpy()
    sets = equal_sets(Slices(images, levels), list(request.levels), train, held_out)
    scores = beside(rows.totals.means, Totals(rows.totals.suspect).add(references.scores).means)
    scores |= score_sets(load, sets, actors)
    scores |= score_detectability(load_vqvae, sets, request.precision == "bfloat16", actors)
    if references.label_maps:
        maps = np.stack(read_label_maps(out, request.format, rows.measured, references.image_size))
        measured = measure_labels(images, maps, levels, len(request.label_classes))
        scores |= score_label_maps(measured, list(request.levels), references.label_maps)
    return {key: scores[key] for key in MEASURES if key in scores}, len(sets.synthetic.levels)
