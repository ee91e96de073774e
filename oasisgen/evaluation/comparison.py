"""A slice against real ones: held-out slices of its level, and the training slice nearest to it."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from oasisgen.data.feed import Feed, Stored
from oasisgen.evaluation.ssim import ssim

HELD_OUT = 16  # R: real slices that `ssim_real` is the mean over
CANDIDATES = 8  # training slices, nearest as thumbnails, among which SSIM finds the nearest
THUMBNAIL = 32  # pixels, both ways


class Comparison(NamedTuple):
    """One slice against the real ones."""

    level: int  # its own, or, where it has none, that of the training slice most like it
    ssim_real: float  # mean SSIM to HELD_OUT held-out slices of the level
    ssim_train_max: float  # SSIM to the nearest training slice of the level
    nearest_case: str
    nearest_level: int
    copy_ratio: float  # 1 - SSIM to the nearest training slice, over 1 - SSIM to the nearest held-out one; a copy has 0


def thumbnails(images: np.ndarray) -> torch.Tensor:
    """(N, 256, 256) uint8 -> (N, 32 * 32) float32, block means."""
    side = images.shape[-1] // THUMBNAIL
    pieces = [F.avg_pool2d(torch.from_numpy(np.array(image)).float()[None], side).flatten() for image in images]
    return torch.stack(pieces)  # (N, 1024)


class References:
    """The real slices, in the shape that makes comparing cheap."""

    def __init__(self, train: Feed, held_out: Feed) -> None:
        self.train, self.held_out = train, held_out
        self.thumbnails = torch.cat([thumbnails(block["image"]) for block in train.blocks])  # (N, 1024)
        self.train_levels = np.concatenate([block["level"] for block in train.blocks])
        self.train_cases = np.concatenate([block["case"] for block in train.blocks])
        self.held_out_thumbnails = torch.cat([thumbnails(block["image"]) for block in held_out.blocks])  # (M, 1024)
        self.held_out_levels = np.concatenate([block["level"] for block in held_out.blocks])
        self.held_out_cases = np.concatenate([block["case"] for block in held_out.blocks])

    def compare(self, image: np.ndarray, level: int, seed: list[int], case: str | None = None) -> Comparison:
        """Compare a slice, (256, 256) uint8. `seed` draws the held-out slices; a level below 0 is to be found.

        A held-out slice itself gives its `case`, which is then left out: so it is that the floor is measured.
        """
        pixels = torch.from_numpy(np.array(image))
        thumbnail = thumbnails(image[None])  # (1, 1024)
        distance = (self.thumbnails - thumbnail).pow(2).sum(1)  # (N,)
        if level < 0:
            level = int(self.train_levels[int(distance.argmin())])
        same_level = np.flatnonzero(self.train_levels == level)
        if len(same_level) == 0:  # this training set lacks the level: any slice may be the nearest
            same_level = np.arange(len(self.train_levels))
        candidates = same_level[distance[same_level].argsort()[:CANDIDATES].numpy()]
        to_train = _ssim_to(pixels, self.train, candidates)
        nearest = candidates[int(to_train.argmax())]

        others = np.flatnonzero((self.held_out_levels == level) & (self.held_out_cases != case))
        if len(others) == 0:
            others = np.flatnonzero(self.held_out_cases != case)
        drawn = np.random.default_rng(seed).permutation(others)[:HELD_OUT]
        to_real = _ssim_to(pixels, self.held_out, drawn)
        distance = (self.held_out_thumbnails[others] - thumbnail).pow(2).sum(1)  # (others,)
        to_held_out = _ssim_to(pixels, self.held_out, others[distance.argsort()[:CANDIDATES].numpy()])
        return Comparison(
            level,
            float(to_real.mean()),
            float(to_train.max()),
            str(self.train_cases[nearest]),
            int(self.train_levels[nearest]),
            float((1 - to_train.max()) / (1 - to_held_out.max()).clamp(min=1e-6)),
        )


def _ssim_to(image: torch.Tensor, slices: Feed, rows: np.ndarray) -> torch.Tensor:
    """SSIM of (256, 256) uint8 to some rows of a feed: (len(rows),)."""
    return ssim(image.expand(len(rows), -1, -1), torch.from_numpy(slices.rows(rows, "image")))


class Comparer:
    """A Ray actor that compares batches of slices. Adds the fields of `Comparison` and keeps the other columns."""

    def __init__(self, train: Stored, held_out: Stored, base_seed: int) -> None:
        torch.set_num_threads(1)
        self.references = References(train.load(), held_out.load())
        self.base_seed = base_seed

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`image` (B, 256, 256) uint8, `level`, `id`; a batch with `case` is of held-out slices."""
        cases = batch.get("case", [None] * len(batch["id"]))
        compared = [
            # The 1 keeps this stream apart from the one that z is drawn from.
            self.references.compare(image, int(level), [self.base_seed, int(number), 1], case)
            for image, level, number, case in zip(batch["image"], batch["level"], batch["id"], cases, strict=True)
        ]
        columns = {
            name: np.array(values) for name, values in zip(Comparison._fields, zip(*compared, strict=True), strict=True)
        }
        return batch | columns


def rows_of_levels(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row numbers of as many slices of each level as `wanted` (M,) has, as far as there are; spread over the rows."""
    chosen = []
    for level, count in zip(*np.unique(wanted, return_counts=True), strict=True):
        rows = np.roll(np.flatnonzero(levels == level), level)  # other cases for every level
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)])
    return np.sort(np.concatenate(chosen))
