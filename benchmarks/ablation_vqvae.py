"""Recipes of stage 1 beside each other, on real slices: `make ablation`, or some:
`python -m benchmarks.ablation_vqvae NAME …`.

Each trains for as many steps on the same crops in the same order, one thread, and is scored on validate. What differs
from `full` is in its name; quantizers of others come from vector-quantize-pytorch.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import real_slices
from benchmarks.models import training
from oasisgen import cli
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import FULL
from oasisgen.data.feed import Feed
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.metrics.ssim import ssim
from oasisgen.models.quantizer import Quantized, Quantizer
from oasisgen.models.vqvae import VQVAE

STEPS, SCORED_EVERY = 1000, 250
SCORED = 256  # slices of validate

CHANGES: dict[str, dict[str, Any]] = {
    "full": {},
    "squared error only": {"ssim_weight": 0.0},
    "SSIM weight 1": {"ssim_weight": 1.0},
    "last weights": {"weight_ema_decay": 0.0},
    "no clipping": {"max_grad_norm": 0.0},
    "rate 1e-3": {"learning_rate": 1e-3},
    "rate 8e-3": {"learning_rate": 8e-3},
    "code dimension 8": {"code_dim": 8},
    "code dimension 64": {"code_dim": 64},
    "EMA decay 0.95": {"codebook_ema_decay": 0.95},
    "EMA decay 0.999": {"codebook_ema_decay": 0.999},
    "no revival": {"dead_below": 1e-9},
    "commitment 1": {"commitment": 1.0},
    "2 residual blocks": {"residual_blocks": 2},
    "8 residual blocks": {"residual_blocks": 8},
    "64 residual channels": {"residual_channels": 64},
    "96 channels": {"channels": 96, "residual_channels": 48},
    "crop 64, batch 64": {"crop": 64, "batch_size": 64},
    "FSQ 8 x 8 x 8": {"code_dim": 3},
    "SimVQ": {},
    "rotation trick": {},
    "normalised codes": {"code_dim": 8},
}


class Foreign(Quantizer):
    """A quantizer of vector-quantize-pytorch behind the interface of ours."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Quantized:
        """(B, D, H, W) -> Quantized."""
        vectors, codes, *loss = self.quantizer(z)
        return Quantized(vectors, codes.long(), loss[0].mean() if loss else z.new_zeros(()))


def quantizers(dim: int) -> dict[str, Callable[[], nn.Module]]:
    """Those that `CHANGES` names."""
    from vector_quantize_pytorch import FSQ, SimVQ, VectorQuantize

    ema = {"accept_image_fmap": True, "decay": 0.99, "commitment_weight": 0.25, "threshold_ema_dead_code": 2}
    return {
        "FSQ 8 x 8 x 8": lambda: FSQ([8, 8, 8], channel_first=True),
        "SimVQ": lambda: SimVQ(dim, 512, channel_first=True),
        "rotation trick": lambda: VectorQuantize(dim, 512, rotation_trick=True, kmeans_init=True, **ema),
        "normalised codes": lambda: VectorQuantize(dim, 512, use_cosine_sim=True, kmeans_init=True, **ema),
    }


@torch.no_grad()
def score(model: VQVAE, slices: torch.Tensor) -> tuple[float, int]:
    """Mean SSIM of (N, H, W) uint8 and their reconstructions, and the codes they use."""
    model.eval()
    scores, used = [], set()
    for images in slices.split(16):
        y = model(to_unit(images.unsqueeze(1)))
        scores.append(ssim(to_uint8(y.image).squeeze(1), images))
        used |= set(y.codes.unique().tolist())
    return float(torch.cat(scores).mean()), len(used)


def train(name: str, images: Feed, held_out: torch.Tensor, steps: int) -> None:
    """Print a row of the table."""
    c = replace(FULL.vqvae, **CHANGES[name])
    torch.manual_seed(0)
    model, averaged = VQVAE(c), VQVAE(c).requires_grad_(False)
    if name in (foreign := quantizers(c.code_dim)):
        for each in (model, averaged):
            each.quantizer = Foreign(foreign[name]())
    curve, seconds = [], training(model, averaged, images, c, steps)
    for step in range(1, steps + 1):
        spent = next(seconds)
        if step % SCORED_EVERY == 0 or step == steps:
            curve.append(score(averaged, held_out))
    rate = steps * c.batch_size / spent
    path = ", ".join(f"{value:.4f}" for value, _ in curve)
    print(f"| {name} | {curve[-1][0]:.4f} | {path} | {curve[-1][1]} | {rate:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(CHANGES)}")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    images, held_out = training_and_held_out(real_slices())
    torch.set_num_threads(1)
    print(f"| recipe | SSIM | on the way, every {SCORED_EVERY} steps | codes | slices/s |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.names or CHANGES:
        train(name, images, held_out, arguments.steps)


def training_and_held_out(source: str) -> tuple[Feed, torch.Tensor]:
    """The training split, and 256 slices (256, H, W) uint8 of validate."""
    from oasisgen import cluster
    from oasisgen.data.feed import store
    from oasisgen.data.pack import pack
    from oasisgen.data.slices import open_data_set, read_slices
    from oasisgen.quality.sets import select_levels

    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        pack(PackConfig(source, f"{folder}/data"))
        data = open_data_set(f"{folder}/data")
        train, validate = (store(read_slices(data, split)).load() for split in ("train", "validate"))
        columns = {"image": np.concatenate([block["image"] for block in train.blocks])}
        wanted = np.resize(np.arange(data.levels), SCORED)
        return Feed([columns]), torch.from_numpy(select_levels(validate, wanted).images)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_vqvae", continues=False)
