"""Whether a classifier can tell a batch's slices from real ones that were encoded and decoded by the same VQ-VAE.

Raw real slices would be no fair opponent: the decoder's texture alone gives away every slice that it has decoded.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch

from oasisgen import actor, cluster
from oasisgen.data.feed import evenly_spaced
from oasisgen.metrics.detectability import FEWEST, MOST, STEPS, Labelled, detectability
from oasisgen.models.vqvae import VQVAE
from oasisgen.quality.measures import Scores, beside
from oasisgen.quality.reconstruction import BATCH, Reconstructor
from oasisgen.quality.sets import Sets, Slices, map_images, take


class Redrawer:
    """A Ray actor that encodes and decodes batches of `data` (B, H, W) uint8."""

    def __init__(self, load: Callable[[], VQVAE], mixed: bool) -> None:
        self.reconstructor = Reconstructor(load, mixed)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(np.array(batch["data"])).to(self.reconstructor.device)  # (B, H, W)
        return {"data": self.reconstructor.reconstruct(images)[0].cpu().numpy()}


def redraw(load: Callable[[], VQVAE], images: np.ndarray, mixed: bool, actors: cluster.Actors) -> np.ndarray:
    """(N, H, W) uint8 -> what the VQ-VAE makes of them, (N, H, W) uint8. Needs a connected Ray."""
    return map_images(Redrawer, (load, mixed), images, BATCH, actors)


def score_detectability(load: Callable[[], VQVAE], sets: Sets, mixed: bool, actors: cluster.Actors) -> Scores:
    """The AUC of a classifier on synthetic slices, beside the one on training slices in their place.

    Both kinds of real slices are encoded and decoded first, with the VQ-VAE that `load` reads. Empty if there are too
    few slices. Needs a connected Ray.
    """
    rows = evenly_spaced(len(sets.real.levels), MOST)
    if len(rows) < FEWEST:
        return {}
    synthetic, real, training = (take(slices, rows) for slices in sets)
    of_real, of_training = np.split(
        redraw(load, np.concatenate([real.images, training.images]), mixed, actors), [len(rows)]
    )
    held_out = labelled(real._replace(images=of_real))
    candidates = labelled(synthetic), labelled(training._replace(images=of_training))
    value, reference = ray.get(
        [
            ray.remote(auc).options(num_cpus=cluster.ACTOR_CPUS, num_gpus=actors.gpus).remote(held_out, candidate)
            for candidate in candidates
        ]
    )
    return beside({"detectability": value}, {"detectability": reference})


def labelled(slices: Slices) -> Labelled:
    """These slices; of synthetic ones, each is a subject of its own."""
    return Labelled(*slices[:2], np.arange(len(slices.levels)) if slices.subjects is None else slices.subjects)


def auc(real: Labelled, others: Labelled, seed: int = 0, steps: int = STEPS) -> float:
    """`detectability`, in a Ray task."""
    return detectability(real, others, actor.set_up(), seed, steps)
