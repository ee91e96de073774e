"""Whether a small classifier can tell synthetic slices from real ones: a classifier two-sample test (Lopez-Paz & Oquab
2017, arXiv:1610.06545).
"""

from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.data.pixels import to_unit
from oasisgen.precision import autocast, repeatable

MOST = 512  # slices of a set; more would cost much
FEWEST = 64  # slices of a set: fewer teach a classifier nothing
STEPS = 400
BATCH = 16
CROP = 64  # pixels: side of the random crops that a classifier is trained on; whole slices are scored
LEARNING_RATE = 2e-3
CHANNELS = 24, 48, 64, 96


class Labelled(NamedTuple):
    """A set of slices, of which levels and of whom they are."""

    images: np.ndarray  # (N, H, W) uint8
    levels: np.ndarray  # (N,)
    subjects: np.ndarray  # (N,): slices of one subject are never split between training and test

    def take(self, rows: np.ndarray) -> Self:
        """Some of the slices, by their numbers or by booleans (N,)."""
        return type(self)(self.images[rows], self.levels[rows], self.subjects[rows])


class _Pair(NamedTuple):
    real: Labelled
    others: Labelled


def detectability(real: Labelled, others: Labelled, device: torch.device, seed: int = 0, steps: int = STEPS) -> float:
    """AUC in [0, 1] of a fresh classifier on slices of subjects that it was not trained on: 0.5 if it cannot tell
    `others` from `real`, 1 if it always can.

    Each half of the subjects is scored by a classifier that was trained on the other half. A slice is only ever
    compared with slices of its own level: a half that happens to hold more low levels of one set gives nothing away.
    NaN if a set has fewer than FEWEST slices, or if the sets share no level within a half.
    """
    if min(len(real.images), len(others.images)) < FEWEST:
        return float("nan")
    parts = [_Pair(*(of.take(halves(of.subjects, seed) == half) for of in (real, others))) for half in (False, True)]
    if not all(np.isin(part.real.levels, part.others.levels).any() for part in parts):
        return float("nan")
    scores = []
    for fold, (to_train, to_test) in enumerate((parts, parts[::-1])):
        network = trained(to_train.real, to_train.others, device, seed + fold, steps)
        logits = [score(network, of.images, device) for of in to_test]
        scores.append(auc(to_test.real.levels, to_test.others.levels, *logits))
    return float(np.mean(scores))


def auc(real: np.ndarray, others: np.ndarray, of_real: np.ndarray, of_others: np.ndarray) -> float:
    """How often a slice of levels `others` (M,) scores higher than one of levels `real` (N,): the share in [0, 1] of
    the pairs of one level. Ties count half. The scores are `of_real` (N,) and `of_others` (M,).
    """
    pairs = real[:, None] == others  # (N, M)
    difference = of_others - of_real[:, None]  # (N, M)
    return float(((1 + np.sign(difference[pairs])) / 2).mean())


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


def trained(real: Labelled, others: Labelled, device: torch.device, seed: int, steps: int = STEPS) -> nn.Module:
    """A classifier that was trained to tell slices from others of the same levels."""
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(seed)
        network: nn.Module = classifier().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    target = torch.tensor([0.0, 1.0], device=device).repeat_interleave(BATCH // 2)  # (B,)
    with repeatable(device), torch.enable_grad():
        for step in range(steps):
            rows = pairs_of_one_level(real.levels, others.levels, BATCH // 2, random)  # (B / 2,) and (B / 2,)
            crops = [random_crops(of.images, its, random) for of, its in zip((real, others), rows, strict=True)]
            images = torch.from_numpy(np.concatenate(crops)).to(device)  # (B, h, w)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            with autocast(device):
                logits = network(to_unit(images.unsqueeze(1))).squeeze(1)  # (B,)
            optimizer.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(logits.float(), target).backward()
            optimizer.step()
    return network.eval()


def pairs_of_one_level(
    real: np.ndarray, others: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random rows (count,) of slices of levels `real` (N,), and as many of `others` (M,), of the same levels."""
    rows = random.choice(np.flatnonzero(np.isin(real, others)), count)
    order = np.argsort(others, kind="stable")
    first, end = (np.searchsorted(others[order], real[rows], side) for side in ("left", "right"))
    return rows, order[random.integers(first, end)]


def random_crops(images: np.ndarray, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random square crop of each of these rows (B,) of images (N, H, W): (B, CROP, CROP), less where a side is
    shorter.
    """
    height, width = (min(CROP, side) for side in images.shape[1:])
    tops = random.integers(images.shape[1] - height + 1, size=len(rows))
    lefts = random.integers(images.shape[2] - width + 1, size=len(rows))
    return np.stack(
        [images[row, top : top + height, left : left + width] for row, top, left in zip(rows, tops, lefts, strict=True)]
    )


@torch.no_grad()
def score(network: nn.Module, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Logits (N,) of whole images (N, H, W) uint8, the higher, the less real."""
    with repeatable(device), autocast(device):
        logits = [
            network(to_unit(piece.unsqueeze(1).to(device))).squeeze(1).float().cpu()
            for piece in torch.from_numpy(images).split(BATCH)
        ]
    return torch.cat(logits).numpy()
