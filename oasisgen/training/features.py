"""The loop that trains the feature network, on real slices only. It embeds slices for FID, KID, precision and recall.

It learns by pretext tasks: from a slice that is shifted and perhaps damaged, it predicts the level, the damage, and
what anatomy lies where.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import ray.train.torch
import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.config.data import SIDE_STEP, Shape
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, Source
from oasisgen.data.pixels import share_to_unit, to_share
from oasisgen.models.features import FeatureNetwork
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.worker import Worker, unwrap

LOSSES = ("level_loss", "damage_loss", "anatomy_loss")  # of a step
HALF = SIDE_STEP // 2  # of a region's side, in pixels: anatomy is predicted for regions, 8 x 8 of 256 x 256 pixels
TISSUES = (0.15, 0.35, 0.6, 0.85)  # grey values between background, fluid, grey and white matter, and fat; of 1
SHIFT = 8  # pixels
WEIGHTS = (0.3, 1.0, 10.0)  # of the losses; weighted, they are of one order of magnitude
BLUR, NOISE, CONTRAST = 2.0, 0.08, 0.4  # the strongest damage: pixels, of the grey range, as a power


class Augmented(NamedTuple):
    """An augmented batch, and what is to be predicted from it."""

    x: torch.Tensor  # (B, 1, H, W) in [-1, 1]: shifted, and half of them damaged
    damage: torch.Tensor  # (B, 3): how strongly blurred, noisy, changed in contrast
    anatomy: torch.Tensor  # (B, 6, H/32, W/32): shares of tissue, and local contrast, of each region of the whole slice


class PretextHeads(nn.Module):
    """The feature network with a linear head for each pretext task: level, damage, anatomy."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.regions = shape.height // SIDE_STEP, shape.width // SIDE_STEP
        self.network = FeatureNetwork(shape)
        self.level = nn.Linear(FeatureNetwork.num_features, shape.levels)
        self.damage = nn.Linear(FeatureNetwork.num_features, 3)
        self.anatomy = nn.Linear(FeatureNetwork.num_features, (len(TISSUES) + 2) * math.prod(self.regions))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 1, H, W) -> logits of levels (B, L), damage (B, 3), anatomy (B, 6, H/32, W/32)."""
        h = self.network(x)  # (B, 192)
        return self.level(h), self.damage(h), self.anatomy(h).view(len(x), -1, *self.regions)


def train_features(config: TrainConfig, worker: Worker, train: Source, shape: Shape) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks."""
    c = config.features
    slices = train.load()
    model = ray.train.torch.prepare_model(PretextHeads(shape).to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    weights = torch.tensor(WEIGHTS, device=worker.device)
    parts = {"model": unwrap(model), "optimizer": optimizer}
    state = StageState(worker, config, "features", slices, parts, LOSSES)

    while state.epoch < c.epochs:
        for images, levels in worker.ahead(images_and_levels(slices, numbers) for numbers, _ in state.batches()):
            share = state.share(len(levels))
            batch = augment(images, state.random())
            optimizer.param_groups[0]["lr"] = state.lr_factor * c.learning_rate * (1.0 - state.step / state.total_steps)
            with worker.autocast():
                level, damage, anatomy = model(batch.x)
            losses = pretext_losses(level, damage, anatomy, levels, batch)  # (3,)
            optimizer.zero_grad(set_to_none=True)
            (losses @ weights * share).backward()
            optimizer.step()
            state.end_step(*losses, share=share, line=lambda: pretext_line(losses.tolist()))

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        state.end_epoch(means, pretext_line(means.values()))


def images_and_levels(slices: Feed, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices (B, H, W) uint8 of some rows, and their levels (B,) int64."""
    return slices.rows(numbers, "image"), slices.rows(numbers, "level").astype(np.int64)


def pretext_line(losses: Iterable[float]) -> str:
    """The three losses, in the order of `LOSSES`, for a line of the log."""
    level, damage, anatomy = losses
    return f"level {level:.3f}, damage {damage:.3f}, anatomy {anatomy:.4f}"


def pretext_losses(
    level: torch.Tensor, damage: torch.Tensor, anatomy: torch.Tensor, levels: torch.Tensor, batch: Augmented
) -> torch.Tensor:
    """`LOSSES` of predicted level (logits, (B, L)), damage (B, 3) and anatomy (B, 6, H/32, W/32) -> (3,)."""
    level_loss = F.cross_entropy(level.float(), levels)
    damage_loss = F.mse_loss(damage.float(), batch.damage)
    return torch.stack([level_loss, damage_loss, F.mse_loss(anatomy.float(), batch.anatomy)])  # (3,)


def augment(images: torch.Tensor, random: torch.Generator | None) -> Augmented:
    """(B, H, W) uint8 -> the slices shifted, half of them damaged, and what is to be predicted from them."""
    B, device = len(images), images.device
    shifts = torch.randint(-SHIFT, SHIFT + 1, (B, 2), generator=random, device=device)
    clean = to_share(roll_each(images, shifts).unsqueeze(1))  # (B, 1, H, W) in [0, 1]
    amount = torch.rand(B, 3, generator=random, device=device)  # (B, 3) in [0, 1)
    amount = amount * (torch.rand(B, 1, generator=random, device=device) < 0.5)
    sign = torch.randint(0, 2, (B,), generator=random, device=device) * 2.0 - 1.0
    one = torch.ones_like(sign)
    damage = amount * torch.stack([one, one, sign], 1)  # contrast goes both ways

    x = blur(clean, damage[:, 0] * BLUR)
    x = x ** torch.exp(damage[:, 2] * CONTRAST).view(B, 1, 1, 1)
    noise = torch.randn(x.shape, generator=random, device=device)
    x = (x + noise * (damage[:, 1] * NOISE).view(B, 1, 1, 1)).clamp(0, 1)
    return Augmented(share_to_unit(x), damage, anatomy_of(clean))


def roll_each(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Each of (B, H, W) rolled by its own (down, right) of (B, 2), on the device; `torch.roll` takes host integers."""
    B, H, W = images.shape
    rows = (torch.arange(H, device=images.device) - shifts[:, :1]) % H  # (B, H)
    columns = (torch.arange(W, device=images.device) - shifts[:, 1:]) % W  # (B, W)
    down = images.gather(1, rows[:, :, None].expand(B, H, W))  # (B, H, W)
    return down.gather(2, columns[:, None, :].expand(B, H, W))  # (B, H, W)


def anatomy_of(clean: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) in [0, 1] -> shares of five tissues, and local contrast, of each region (B, 6, H/32, W/32)."""
    every_other = clean[..., ::2, ::2]  # (B, 1, H/2, W/2)
    above = [F.avg_pool2d((every_other > grey).float(), HALF) for grey in TISSUES]  # (B, 1, H/32, W/32) each
    everywhere = torch.ones_like(above[0])
    shares = [low - high for low, high in pairwise([everywhere, *above, 0 * everywhere])]  # (B, 1, H/32, W/32) each
    down = (clean[..., 1::2, ::2] - every_other).abs()  # (B, 1, H/2, W/2)
    across = (clean[..., ::2, 1::2] - every_other).abs()  # (B, 1, H/2, W/2)
    return torch.cat([*shares, F.avg_pool2d(down + across, HALF) * 4.0], 1)  # (B, 6, H/32, W/32)


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each of (B, 1, H, W) blurred by a Gaussian of its own deviation (B,) in pixels; 0 leaves it unchanged."""
    B, _, H, W = x.shape
    offsets = torch.arange(-6, 7, device=x.device)
    taps = torch.exp(-0.5 * (offsets / sigma.clamp(min=0.05)[:, None]) ** 2)  # (B, 13)
    taps = taps / taps.sum(1, keepdim=True)
    rows = F.conv2d(x.view(1, B, H, W), taps.view(B, 1, 13, 1), padding=(6, 0), groups=B)
    return F.conv2d(rows, taps.view(B, 1, 1, 13), padding=(0, 6), groups=B).view(B, 1, H, W)
