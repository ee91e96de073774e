"""Whether a small classifier can tell synthetic slices from real ones: a classifier two-sample test (Lopez-Paz & Oquab
2017, arXiv:1610.06545).
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.data.pixels import to_unit
from oasisgen.precision import autocast, repeatable

MOST = 512  # slices of a set; more would cost much
FEWEST = 64  # slices of a set: fewer teach a classifier nothing
STEPS = 400
BATCH = 32
CROP = 64  # pixels: side of the random crops that a classifier is trained on; whole slices are scored
LEARNING_RATE = 2e-3
CHANNELS = 24, 48, 64, 96


class Labelled(NamedTuple):
    """A set of slices, and who they are of."""

    images: np.ndarray  # (N, H, W) uint8
    subjects: np.ndarray  # (N,): slices of one subject are never split between training and test


def detectability(real: Labelled, others: Labelled, device: torch.device, seed: int = 0, steps: int = STEPS) -> float:
    """AUC in [0, 1] of a fresh classifier on slices of subjects that it was not trained on: 0.5 if it cannot tell
    `others` from `real`, 1 if it always can.

    Each half of the subjects is scored by a classifier that was trained on the other half. NaN if a set has fewer than
    FEWEST slices.
    """
    from torchmetrics.functional.classification import binary_auroc  # here: it takes seconds to import

    if min(len(real.images), len(others.images)) < FEWEST:
        return float("nan")
    pair = real, others
    folds = [halves(of.subjects, seed) for of in pair]  # (N,) and (M,)
    scores = []
    for second in (False, True):
        to_train, to_test = (
            [torch.from_numpy(of.images[fold == part]) for of, fold in zip(pair, folds, strict=True)]
            for part in (second, not second)
        )
        network = trained(to_train[0], to_train[1], device, seed + second, steps)
        logits = [score(network, images, device) for images in to_test]
        target = torch.cat([torch.full(each.shape, place) for place, each in enumerate(logits)])
        scores.append(float(binary_auroc(torch.cat(logits), target)))
    return float(np.mean(scores))


def halves(subjects: np.ndarray, seed: int) -> np.ndarray:
    """For each of `subjects` (N,), whether it belongs to the second of two random halves: (N,) bool."""
    names = np.random.default_rng(seed).permutation(np.unique(subjects))
    return np.isin(subjects, names[: len(names) // 2])


def classifier() -> nn.Sequential:
    """(B, 1, H, W) -> logits (B, 1): four strided convolutions, which see texture, and the mean over all positions."""
    layers: list[nn.Module] = []
    for narrow, wide in zip((1, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], 1))


def trained(real: torch.Tensor, others: torch.Tensor, device: torch.device, seed: int, steps: int = STEPS) -> nn.Module:
    """A classifier that was trained to tell images (N, H, W) uint8 from others (M, H, W)."""
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(seed)
        network: nn.Module = classifier().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    target = torch.tensor([0.0, 1.0], device=device).repeat_interleave(BATCH // 2)  # (B,)
    with repeatable(device), torch.enable_grad():
        for step in range(steps):
            crops = torch.cat([random_crops(images, random) for images in (real, others)]).to(device)  # (B, h, w)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            with autocast(device):
                logits = network(to_unit(crops.unsqueeze(1))).squeeze(1)  # (B,)
            optimizer.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(logits.float(), target).backward()
            optimizer.step()
    return network.eval()


def random_crops(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Half a batch of square crops of random images (N, H, W): (B / 2, CROP, CROP), less where a side is shorter."""
    height, width = (min(CROP, side) for side in images.shape[1:])
    rows = random.integers(len(images), size=BATCH // 2)
    tops = random.integers(images.shape[1] - height + 1, size=BATCH // 2)
    lefts = random.integers(images.shape[2] - width + 1, size=BATCH // 2)
    return torch.stack(
        [images[row, top : top + height, left : left + width] for row, top, left in zip(rows, tops, lefts, strict=True)]
    )


@torch.no_grad()
def score(network: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Logits (N,) of whole images (N, H, W) uint8, the higher, the less real."""
    with repeatable(device), autocast(device):
        return torch.cat(
            [network(to_unit(piece.unsqueeze(1).to(device))).squeeze(1).float().cpu() for piece in images.split(BATCH)]
        )
