"""Compare a slice with real ones: with held-out slices of its level, and with the nearest training slice."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from oasisgen import actor
from oasisgen.data.feed import Feed, Stored
from oasisgen.metrics.ssim import ssim_to

HELD_OUT = 16  # R: `ssim_real` is the mean over so many real slices
CANDIDATES = 6  # the real slices with the nearest thumbnails, among which SSIM finds the nearest slice
AS_THEY_LIE = 3  # candidates that are compared unshifted as well: a slice that lacks a part has another centre

NEIGHBOURS = (
    4  # neighbouring levels on each side that are searched too if a case has at most 32 levels; else an eighth of them
)

THUMBNAIL = 32  # pixels of the longer side
FOREGROUND = 16  # the least grey value that counts for a slice's centre: decoders write black as 0 to 3


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


def centre(image: np.ndarray) -> tuple[float, float]:
    """(H, W) uint8 -> the mean row and column of what is not black; the middle if all is."""
    moments = cv2.moments(cv2.threshold(image, FOREGROUND - 1, 1, cv2.THRESH_BINARY)[1])
    if not moments["m00"]:
        return (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return moments["m01"] / moments["m00"], moments["m10"] / moments["m00"]


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """(H, W) -> its content shifted; pixels that enter are black."""
    H, W = image.shape
    out = np.zeros_like(image)
    target, source = (
        (slice(max(sign * down, 0), H + min(sign * down, 0)), slice(max(sign * right, 0), W + min(sign * right, 0)))
        for sign in (1, -1)
    )
    out[target] = image[source]
    return out


def thumbnail(image: np.ndarray) -> torch.Tensor:
    """(H, W) uint8 -> (T,) float32, block means; T is 1024 for square slices."""
    height, width = (max(1, round(THUMBNAIL * side / max(image.shape))) for side in image.shape)
    small = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).flatten()  # (T,)


def centred(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8, its content shifted so that its centre is in the middle."""
    down, right = centre(image)
    return shifted(image, round((image.shape[0] - 1) / 2 - down), round((image.shape[1] - 1) / 2 - right))


class Probe:
    """A slice to compare, with the thumbnails that its neighbours are searched by."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = np.array(image)  # (H, W) uint8
        self.centre = centre(self.image)
        mirror = np.ascontiguousarray(self.image[:, ::-1])
        self.as_it_lies = thumbnail(self.image)[None]  # (1, T)
        self.centred = torch.stack([thumbnail(centred(self.image)), thumbnail(centred(mirror))])  # (2, T)


class Thumbnails(NamedTuple):
    """The thumbnails of all slices of a split."""

    pixels: torch.Tensor  # (N, T)
    norms: torch.Tensor  # (N,), squared

    def nearest(self, probes: torch.Tensor, places: np.ndarray, count: int) -> list[int]:
        """The `count` pairs of `places` (M,), which rise, and `probes` (P, T) with the least distance.

        A pair is numbered place by place: P x its number in `places` + that of its probe.
        """
        first, last = places[0], places[-1] + 1
        window = self.pixels[first:last]  # not copied
        distances = self.norms[first:last, None] - 2 * (window @ probes.t())  # (last - first, P)
        distances += probes.pow(2).sum(1)
        return [int(n) for n in distances[torch.from_numpy(places - first)].flatten().argsort()[:count]]


def thumbnails(images: Iterable[np.ndarray]) -> Thumbnails:
    """Those of N slices."""
    pixels = torch.stack([thumbnail(image) for image in images])  # (N, T)
    return Thumbnails(pixels, pixels.pow(2).sum(1))


class SearchIndex:
    """Real slices in the order of their levels, so that a search reads only some levels."""

    def __init__(self, slices: Feed) -> None:
        self.slices = slices
        names = "level", "case", "subject"
        levels, cases, subjects = (np.concatenate([block[name] for block in slices.blocks]) for name in names)
        self.rows = np.argsort(levels, kind="stable")  # (N,): places, by level -> row numbers
        self.levels, self.cases, self.subjects = (of[self.rows] for of in (levels, cases, subjects))
        images = [image for block in slices.blocks for image in block["image"]]
        self.centres = np.array([centre(images[row]) for row in self.rows])  # (N, 2)
        self.as_they_lie = thumbnails(images[row] for row in self.rows)
        self.centred = thumbnails(centred(images[row]) for row in self.rows)

    def places(self, lowest: int, highest: int, without: str | None = None) -> np.ndarray:
        """Places of the slices of some levels, without those of one subject; of all levels if there is none."""
        first, last = np.searchsorted(self.levels, [lowest, highest + 1])
        for places in (np.arange(first, last), np.arange(len(self.levels))):
            places = places[self.subjects[places] != without]
            if len(places):
                break
        return places

    def poses(self, probe: Probe, places: np.ndarray) -> list[Pose]:
        """The real slices with the nearest thumbnails, aligned with the probe: by their centres, and unshifted."""
        poses = []
        for number in self.centred.nearest(probe.centred, places, CANDIDATES):
            row, mirrored = int(places[number // 2]), bool(number % 2)
            down, right = self.centres[row]
            right = probe.image.shape[1] - 1 - right if mirrored else right
            poses.append(Pose(row, mirrored, round(probe.centre[0] - down), round(probe.centre[1] - right)))
        for number in self.as_they_lie.nearest(probe.as_it_lies, places, AS_THEY_LIE):
            poses.append(Pose(int(places[number]), False, 0, 0))
        return list(dict.fromkeys(poses))

    def ssim_to(self, probe: Probe, poses: list[Pose]) -> torch.Tensor:
        """SSIM of the probe to the real slices in these poses: (len(poses),)."""
        images = self.slices.rows(self.rows[[pose.row for pose in poses]], "image")
        for image, pose in zip(images, poses, strict=True):
            if pose.mirrored or pose.down or pose.right:
                image[:] = shifted(image[:, ::-1] if pose.mirrored else image, pose.down, pose.right)
        return ssim_to(torch.from_numpy(probe.image), torch.from_numpy(images))


class RealSlices:
    """The real slices that synthetic ones are compared with."""

    def __init__(self, train: Feed, held_out: Feed) -> None:
        self.train, self.held_out = SearchIndex(train), SearchIndex(held_out)
        self.neighbours = max(NEIGHBOURS, (int(self.train.levels[-1]) + 1) // 8)

    def compare(self, image: np.ndarray, level: int, seed: list[int], subject: str | None = None) -> Comparison:
        """Compare a slice, (H, W) uint8. `seed` draws the held-out slices; a level below 0 is unknown and is found.

        The nearest training slice and the nearest held-out slice are searched for in the same way: among those of the
        level and of the `neighbours` levels around it, as they are and mirrored, wherever in the picture they lie. To
        score the reference, a held-out slice gives its own `subject`, which is then left out.
        """
        train, held_out = self.train, self.held_out
        probe = Probe(image)
        if level < 0:
            (place,) = train.as_they_lie.nearest(probe.as_it_lies, np.arange(len(train.levels)), 1)
            level = int(train.levels[place])
        window = level - self.neighbours, level + self.neighbours
        to_train_from = train.poses(probe, train.places(*window))
        to_train = train.ssim_to(probe, to_train_from)
        best = to_train_from[int(to_train.argmax())].row

        drawn = np.random.default_rng(seed).permutation(held_out.places(level, level, without=subject))[:HELD_OUT]
        as_they_lie = [Pose(int(row), False, 0, 0) for row in drawn]
        near = held_out.poses(probe, held_out.places(*window, without=subject))
        to_real, to_held_out = held_out.ssim_to(probe, as_they_lie + near).split([len(as_they_lie), len(near)])
        return Comparison(
            level,
            float(to_real.mean()),
            float(to_train.max()),
            str(train.cases[best]),
            int(train.levels[best]),
            float((1 - to_train.max()) / (1 - to_held_out.max()).clamp(min=1e-6)),
        )


@cache
def _references(train: Stored, held_out: Stored) -> RealSlices:
    """Shared by all tasks of a process, because it takes seconds to prepare."""
    return RealSlices(train.load(), held_out.load())


@dataclass(frozen=True)
class ReferenceComparer:
    """Compares batches of slices. Adds the fields of `Comparison` and keeps the other columns."""

    train: Stored
    held_out: Stored
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
