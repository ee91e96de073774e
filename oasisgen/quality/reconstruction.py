"""How well the VQ-VAE reconstructs a split: every slice, in evaluation mode, as the 8-bit image it would write."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from oasisgen import actor, cluster
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.data.slices import DataSet, read_slices
from oasisgen.metrics.bootstrap import mean_with_interval
from oasisgen.metrics.ssim import psnr, ssim
from oasisgen.models.quantizer import count_codes, perplexity
from oasisgen.models.scores import MeasuredData, ReconstructionScores
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import autocast, repeatable
from oasisgen.progress import Progress

BATCH = 16


class Evaluation(NamedTuple):
    """What `evaluate` returns."""

    scores: ReconstructionScores
    slices: pa.Table  # case, subject, level, ssim, psnr
    code_counts: np.ndarray  # (K,) int64


class Reconstructor:
    """A Ray actor that reconstructs batches of slices, with the model that `load` reads, and scores them.

    With `mixed`, it decodes in bfloat16 where the hardware supports it.
    """

    def __init__(self, load: Callable[[], VQVAE], mixed: bool = True) -> None:
        self.device, self.mixed = actor.set_up(), mixed
        self.vqvae = load().to(self.device)
        self.codebook_size = len(self.vqvae.quantizer.codebook)

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, H, W) uint8 -> what would be written of them, and how often each code occurs (B, K)."""
        with repeatable(self.device):
            codes = self.vqvae.encode(to_unit(images.unsqueeze(1)))  # (B, H/4, W/4)
            with autocast(self.device, self.mixed):  # as slices are sampled
                written = to_uint8(self.vqvae.decode(codes)).squeeze(1)  # (B, H, W)
            return written, count_codes(codes.flatten(1), self.codebook_size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images = torch.from_numpy(np.array(batch["image"])).to(self.device)  # (B, H, W) uint8
        written, counts = self.reconstruct(images)
        return {
            "case": batch["case"],
            "subject": batch["subject"],
            "level": batch["level"],
            "ssim": ssim(written, images).cpu().numpy(),
            "psnr": psnr(written, images).cpu().numpy(),
            "code_counts": counts.long().cpu().numpy(),  # (B, K)
        }


def evaluate(load: Callable[[], VQVAE], data: DataSet, split: str, actors: cluster.Actors) -> Evaluation:
    """Reconstruct a whole split with the model that `load` reads, in evaluation mode. Needs a connected Ray."""
    counts = np.zeros(1, np.int64)
    scored = read_slices(data, split, shared=True).map_batches(
        Reconstructor,
        fn_constructor_args=(load,),
        batch_size=BATCH,
        **cluster.pool(actors, data.count(split)),
    )
    tables = []
    with Progress("evaluate", data.count(split), f"{split} slices") as progress:
        for batch in scored.iter_batches(batch_size=BATCH):
            counts = counts + batch.pop("code_counts").sum(0)
            tables.append(pa.table(batch))
            progress.advance(len(tables[-1]))
    slices = pa.concat_tables(tables)
    subjects = slices["subject"].to_numpy()
    scores = ReconstructionScores(
        data=MeasuredData(data.uri, data.fingerprint),
        split=split,
        slices=len(slices),
        cases=len(np.unique(slices["case"].to_numpy())),
        ssim=mean_with_interval(slices["ssim"].to_numpy(), subjects),
        psnr_db=mean_with_interval(slices["psnr"].to_numpy(), subjects),
        codes_in_use=int((counts > 0).sum()),
        codes_in_use_percent=float(100.0 * (counts > 0).mean()),
        perplexity=float(perplexity(torch.from_numpy(counts))),
    )
    return Evaluation(scores, slices, counts)
