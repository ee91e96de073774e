"""A slice against real ones: held-out slices of its level, and the training slice nearest to it."""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from oasisgen.data.feed import Feed, Stored
from oasisgen.evaluation.ssim import ssim_to

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


class Split:
    """Real slices, in the shape that makes comparing cheap: only those of a level are looked at."""

    def __init__(self, slices: Feed) -> None:
        self.slices = slices
        self.thumbnails = torch.cat([thumbnails(block["image"]) for block in slices.blocks])  # (N, 1024)
        self.levels, self.cases = (
            np.concatenate([block[name] for block in slices.blocks]) for name in ("level", "case")
        )
        self.rows = {int(level): np.flatnonzero(self.levels == level) for level in np.unique(self.levels)}

    def of_level(self, level: int, without: str | None = None) -> np.ndarray:
        """Rows of a level, those of a case left out; of any level where the split has none of this one."""
        for rows in (self.rows.get(level, np.zeros(0, int)), np.arange(len(self.levels))):
            rows = rows[self.cases[rows] != without]
            if len(rows):
                break
        return rows

    def nearest(self, thumbnail: torch.Tensor, rows: np.ndarray, count: int) -> np.ndarray:
        """Up to `count` of `rows`, nearest to a thumbnail (1, 1024) first."""
        distance = (self.thumbnails[rows] - thumbnail).pow(2).sum(1)  # (len(rows),)
        return rows[distance.argsort()[:count].numpy()]

    def ssim_to(self, image: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """SSIM of an image, (256, 256) uint8, to some rows: (len(rows),)."""
        return ssim_to(image, torch.from_numpy(self.slices.rows(rows, "image")))


class References:
    """The real slices that synthetic ones are compared with."""

    def __init__(self, train: Feed, held_out: Feed) -> None:
        self.train, self.held_out = Split(train), Split(held_out)

    def compare(self, image: np.ndarray, level: int, seed: list[int], case: str | None = None) -> Comparison:
        """Compare a slice, (256, 256) uint8. `seed` draws the held-out slices; a level below 0 is to be found.

        A held-out slice itself gives its `case`, which is then left out: so it is that the floor is measured.
        """
        train, held_out = self.train, self.held_out
        pixels = torch.from_numpy(np.array(image))
        thumbnail = thumbnails(image[None])  # (1, 1024)
        if level < 0:
            level = int(train.levels[train.nearest(thumbnail, np.arange(len(train.levels)), 1)[0]])
        candidates = train.nearest(thumbnail, train.of_level(level), CANDIDATES)
        to_train = train.ssim_to(pixels, candidates)
        nearest = candidates[int(to_train.argmax())]

        others = held_out.of_level(level, without=case)
        drawn = np.random.default_rng(seed).permutation(others)[:HELD_OUT]
        near = held_out.nearest(thumbnail, others, CANDIDATES)
        rows, places = np.unique(np.concatenate([drawn, near]), return_inverse=True)  # many are both
        to_real, to_held_out = held_out.ssim_to(pixels, rows)[places].split([len(drawn), len(near)])
        return Comparison(
            level,
            float(to_real.mean()),
            float(to_train.max()),
            str(train.cases[nearest]),
            int(train.levels[nearest]),
            float((1 - to_train.max()) / (1 - to_held_out.max()).clamp(min=1e-6)),
        )


@cache
def _references(train: Stored, held_out: Stored) -> References:
    """What all tasks in a process share: it takes seconds to prepare."""
    torch.set_num_threads(1)
    return References(train.load(), held_out.load())


@dataclass(frozen=True)
class Comparer:
    """Compares batches of slices. Adds the fields of `Comparison` and keeps the other columns."""

    train: Stored
    held_out: Stored
    base_seed: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`image` (B, 256, 256) uint8, `level`, `id`; a batch with `case` is of held-out slices."""
        references = _references(self.train, self.held_out)
        cases = batch.get("case", [None] * len(batch["id"]))
        compared = [
            # The 1 keeps this stream apart from the one that z is drawn from.
            references.compare(image, int(level), [self.base_seed, int(number), 1], case)
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
