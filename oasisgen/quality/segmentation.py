"""How well segmenters find each class in real held-out slices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from oasisgen import actor, cluster
from oasisgen.config.segmenter import SegmenterConfig
from oasisgen.data.feed import Stored
from oasisgen.data.slices import BLOCK
from oasisgen.metrics.segmentation import compare_label_maps
from oasisgen.models.segmenter import Segmenter
from oasisgen.progress import Progress
from oasisgen.quality.utility import SCORES, Arm

SCORED_AT_ONCE = 16


class SegmenterScorer:
    """A Ray actor that segments pairs of `held_out` by number, and compares the results with their label maps."""

    def __init__(
        self, config: SegmenterConfig, weights: list[dict[str, torch.Tensor]], held_out: Stored, classes: int
    ) -> None:
        self.device, self.classes, self.feed = actor.set_up(), classes, held_out.load()
        self.segmenters = [Segmenter(config, classes).to(self.device).eval() for _ in weights]
        for segmenter, of_one in zip(self.segmenters, weights, strict=True):
            segmenter.load_state_dict(of_one)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`row` (B,) -> `row`, and of each segmenter and each class but the first, `pixels` (B, S, K - 1, 3) and
        `hausdorff95` (B, S, K - 1).
        """
        rows, pixels, distances = batch["row"], [], []
        images, labels = (torch.from_numpy(self.feed.rows(rows, name)).to(self.device) for name in ("image", "labels"))
        for segmenter in self.segmenters:
            found = compare_label_maps(segmenter.label_map(images), labels, self.classes)
            pixels.append(np.stack([found.there, found.found, found.both], 2))
            distances.append(found.hausdorff95)
        return {"row": rows, "pixels": np.stack(pixels, 1), "hausdorff95": np.stack(distances, 1)}


def score_segmenters(
    config: SegmenterConfig,
    weights: Mapping[Arm, dict[str, torch.Tensor]],
    held_out: Stored,
    classes: Sequence[str],
    actors: cluster.Actors,
) -> dict[Arm, pa.Table]:
    """The SCORES of segmenters with these `weights` on all pairs of `held_out`: `case`, `subject`, `level`, `image`,
    `labels`.
    """
    feed = held_out.load()
    rows = ray.data.from_items([{"row": row} for row in range(len(feed))], override_num_blocks=-(-len(feed) // BLOCK))
    scored = rows.map_batches(
        SegmenterScorer,
        fn_constructor_args=(config, list(weights.values()), held_out, len(classes)),
        batch_size=SCORED_AT_ONCE,
        **cluster.pool(actors, len(feed)),
    )
    pieces: dict[Arm, list[pa.Table]] = {arm: [] for arm in weights}
    with Progress("score", len(feed), "held-out slices") as progress:
        for batch in scored.iter_batches(batch_size=SCORED_AT_ONCE):
            names = {name: feed.rows(batch["row"], name) for name in ("case", "subject", "level")}
            for number, tables in enumerate(pieces.values()):
                tables.append(table_of(names, classes, batch["pixels"][:, number], batch["hausdorff95"][:, number]))
            progress.advance(len(batch["row"]))
    order = [(name, "ascending") for name in ("case", "level", "class")]
    return {arm: pa.concat_tables(tables).sort_by(order) for arm, tables in pieces.items()}


def table_of(
    slices: dict[str, np.ndarray], classes: Sequence[str], pixels: np.ndarray, distances: np.ndarray
) -> pa.Table:
    """SCORES of slices, (B,) `case`, `subject` and `level`; `pixels` (B, K - 1, 3) and `distances` (B, K - 1) of one
    segmenter, as SegmenterScorer returns them.
    """
    each = len(classes) - 1
    columns = {name: np.repeat(values, each) for name, values in slices.items()}
    columns |= {"class": np.tile(np.array(classes[1:], object), len(pixels))}
    columns |= {name: pixels[:, :, place].ravel() for place, name in enumerate(("real", "found", "both"))}
    arrays = [pa.array(columns[name], SCORES.field(name).type) for name in SCORES.names[:-1]]
    return pa.table([*arrays, pa.array(distances.ravel(), pa.float64(), from_pandas=True)], SCORES)  # NaN -> null
