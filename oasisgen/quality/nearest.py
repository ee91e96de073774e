"""Compare a slice with real ones: with held-out slices of its level, and with the nearest training slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from oasisgen import actor
from oasisgen.data.feed import Feed
from oasisgen.metrics.ssim import ssim_to
from oasisgen.quality.searchable import Rotations, Searchable, SearchBlock, rotations, search_block
from oasisgen.quality.thumbnails import NONE, Thumbnails, Window, centre, centred, shifted, thumbnail, thumbnails

HELD_OUT = 16  # R: `ssim_real` is the mean over so many real slices
CANDIDATES = 6  # the real slices with the nearest thumbnails, among which SSIM finds the nearest slice
AS_THEY_LIE = 3  # candidates that are compared unshifted as well: a slice that lacks a part has another centre

NEIGHBOURS = (
    4  # neighbouring levels on each side that are searched too if a case has at most 32 levels; else an eighth of them
)


class Comparison(NamedTuple):
    """One slice against the real ones."""

    level: int  # its own; if unknown, that of the most similar training slice
    ssim_real: float  # mean SSIM to HELD_OUT held-out slices of the level
    ssim_train_max: float  # SSIM to the nearest training slice, after the best alignment
    nearest_case: str
    nearest_level: int
    copy_ratio: float  # 1 - SSIM to the nearest training slice, over 1 - SSIM to the nearest held-out one; a copy has 0


class Pose(NamedTuple):
    """How a real slice is aligned with another one: mirrored or not, then shifted by some pixels."""

    row: int
    mirrored: bool
    down: int
    right: int


class Probe:
    """A slice to compare, with the thumbnails that its neighbours are searched by."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = np.array(image)  # (H, W) uint8
        self.centre = centre(self.image)
        mirror = np.ascontiguousarray(self.image[:, ::-1])
        self.as_it_lies = thumbnail(self.image)[None]  # (1, T)
        self.centred = np.stack([thumbnail(centred(self.image)), thumbnail(centred(mirror))])  # (2, T)


class SearchIndex:
    """Real slices, searched by their thumbnails: only those of some levels, wherever they lie in the split."""

    def __init__(self, slices: Feed, blocks: Sequence[SearchBlock], rotated: Rotations) -> None:
        self.slices, self.blocks, self.rotations = slices, [block for block in blocks if len(block.rows)], rotated
        self.highest = max(int(block.levels[-1]) for block in self.blocks)

    def row(self, number: int) -> tuple[SearchBlock, int]:
        """The block of a row of the split, and its number there."""
        block = next(block for block in reversed(self.blocks) if block.start <= number)
        return block, number - block.start

    def windows(self, lowest: int, highest: int, without: str | None = None) -> list[Window]:
        """The slices of some levels in each block, without those of one subject; of all levels if there is none."""
        for levels in ((lowest, highest), (0, self.highest)):
            windows = [block.window(*levels, without) for block in self.blocks]
            if any(window.wanted.any() for window in windows):
                break
        return windows

    def rows(self, windows: list[Window]) -> np.ndarray:
        """The rows of some windows, ordered by level, then by row."""
        levels, rows = (
            np.concatenate([of[window.wanted] for of, window in zip(column, windows, strict=True)])
            for column in ([window.levels for window in windows], [window.rows for window in windows])
        )
        return rows[np.lexsort((rows, levels))]

    def nearest(self, kind: str, probes: np.ndarray, windows: list[Window], count: int) -> list[tuple[int, int, int]]:
        """Level, row and probe of the slices whose thumbnails of a kind are nearest to one of `probes` (P, T)."""
        found, rotated = NONE, thumbnails(probes, getattr(self.rotations, kind))
        for block, window in zip(self.blocks, windows, strict=True):
            of_block: Thumbnails = getattr(block, kind)
            found = of_block.nearest(rotated, window, count, found)
        return [(level, row, probe) for level, row, probe in found.keys.tolist()]

    def poses(self, probe: Probe, windows: list[Window]) -> list[Pose]:
        """The real slices with the nearest thumbnails, aligned with the probe: by their centres, and unshifted."""
        poses = []
        for _, row, mirrored in self.nearest("centred", probe.centred, windows, CANDIDATES):
            block, number = self.row(row)
            down, right = block.centres[number]
            right = probe.image.shape[1] - 1 - right if mirrored else right
            poses.append(Pose(row, bool(mirrored), round(probe.centre[0] - down), round(probe.centre[1] - right)))
        for _, row, _ in self.nearest("as_they_lie", probe.as_it_lies, windows, AS_THEY_LIE):
            poses.append(Pose(row, False, 0, 0))
        return list(dict.fromkeys(poses))

    def ssim_to(self, probe: Probe, poses: list[Pose]) -> torch.Tensor:
        """SSIM of the probe to the real slices in these poses: (len(poses),)."""
        images = self.slices.rows(np.array([pose.row for pose in poses]), "image")
        for image, pose in zip(images, poses, strict=True):
            if pose.mirrored or pose.down or pose.right:
                image[:] = shifted(image[:, ::-1] if pose.mirrored else image, pose.down, pose.right)
        return ssim_to(torch.from_numpy(probe.image), torch.from_numpy(images))


def index_in_memory(slices: Feed) -> SearchIndex:
    """The search index of slices in this process, prepared here."""
    rotated = rotations(slices)
    return SearchIndex(slices, [search_block(0, slices.pieces(), rotated)], rotated)


def load_index(split: Searchable) -> SearchIndex:
    """The search index of a prepared split, mapped into this process."""
    return SearchIndex(split.load(), split.load_blocks(), split.load_rotations())


class RealSlices:
    """The real slices that synthetic ones are compared with."""

    def __init__(self, train: SearchIndex, held_out: SearchIndex) -> None:
        self.train, self.held_out = train, held_out
        self.neighbours = max(NEIGHBOURS, (train.highest + 1) // 8)

    def compare(self, image: np.ndarray, level: int, seed: list[int], subject: str | None = None) -> Comparison:
        """Compare a slice, (H, W) uint8. `seed` draws the held-out slices; a level below 0 is unknown and is found.

        The nearest training slice and the nearest held-out slice are searched for in the same way: among those of the
        level and of the `neighbours` levels around it, as they are and mirrored, wherever in the picture they lie. To
        score the reference, a held-out slice gives its own `subject`, which is then left out.
        """
        train, held_out = self.train, self.held_out
        probe = Probe(image)
        if level < 0:
            ((level, _, _),) = train.nearest("as_they_lie", probe.as_it_lies, train.windows(0, train.highest), 1)
        window = level - self.neighbours, level + self.neighbours
        to_train_from = train.poses(probe, train.windows(*window))
        to_train = train.ssim_to(probe, to_train_from)
        block, best = train.row(to_train_from[int(to_train.argmax())].row)

        of_level = held_out.rows(held_out.windows(level, level, without=subject))
        drawn = np.random.default_rng(seed).permutation(of_level)[:HELD_OUT]
        as_they_lie = [Pose(int(row), False, 0, 0) for row in drawn]
        near = held_out.poses(probe, held_out.windows(*window, without=subject))
        to_real, to_held_out = held_out.ssim_to(probe, as_they_lie + near).split([len(as_they_lie), len(near)])
        return Comparison(
            level,
            float(to_real.mean()),
            float(to_train.max()),
            str(block.named["case"][best]),
            int(block.named["level"][best]),
            float((1 - to_train.max()) / (1 - to_held_out.max()).clamp(min=1e-6)),
        )


@cache
def _references(train: Searchable, held_out: Searchable) -> RealSlices:
    """Shared by all tasks of a process."""
    return RealSlices(load_index(train), load_index(held_out))


@dataclass(frozen=True)
class ReferenceComparer:
    """Compares batches of slices. Adds the fields of `Comparison` and keeps the other columns."""

    train: Searchable
    held_out: Searchable
    base_seed: int

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`image` (B, H, W) uint8, `level`, `id`; a batch with `subject` is of held-out slices."""
        actor.set_up()
        references = _references(self.train, self.held_out)
        subjects = batch.get("subject", [None] * len(batch["id"]))
        compared = [
            # The 1 keeps this stream apart from the one that z is drawn from.
            references.compare(image, int(level), [self.base_seed, int(number), 1], subject)
            for image, level, number, subject in zip(batch["image"], batch["level"], batch["id"], subjects, strict=True)
        ]
        columns = {
            name: np.array(values) for name, values in zip(Comparison._fields, zip(*compared, strict=True), strict=True)
        }
        return batch | columns
