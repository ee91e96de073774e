"""Cases: where the slices of a scan come from. `sources` finds them, `parts` reads and packs them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from oasisgen.data.description import ByReason, Covariate, LabelClass, RejectedFile


@dataclass(frozen=True)
class Member:
    """The position of a file in an archive."""

    archive: str  # path of the archive below the source's URI; "": the source itself
    method: Literal["stored", "deflated", "gzip"]  # gzip: of the whole archive, which `start` counts without
    start: int
    stored: int  # bytes that it takes there
    crc: int | None = None  # of the file, if the archive has it


@dataclass(frozen=True)
class SourceFile:
    """A file of a source."""

    path: str  # below the source's URI
    size: int  # bytes
    modified: int = 0  # nanoseconds since 1970; of a file in an archive: the archive's
    member: Member | None = None  # None: a file of its own


@dataclass(frozen=True)
class SliceFile:
    """An image file that holds one slice, and the file of its label map, if there is one."""

    level: int
    image: SourceFile
    labels: SourceFile | None = None


@dataclass(frozen=True)
class Volume:
    """The Analyze volume of a scan, and that of its labels, if there is one."""

    header: SourceFile
    image: SourceFile
    labels_header: SourceFile | None = None
    labels_image: SourceFile | None = None
    first: int | None = None  # z of level 0; None: found in the labels


@dataclass(frozen=True)
class VolumeFile:
    """A volume in any format that can be read."""

    image: SourceFile
    header: SourceFile | None = None  # of an Analyze or NIfTI pair
    series: tuple[SourceFile, ...] = ()  # all files of a DICOM series; `image` is one of them

    @property
    def files(self) -> list[SourceFile]:
        """The files that it is read from."""
        if self.series:
            return [*self.series]
        return [self.image, self.header] if self.header else [self.image]


@dataclass(frozen=True)
class Scan:
    """The volume of a scan, and that of its labels, if there is one."""

    image: VolumeFile
    labels: VolumeFile | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan of one person and the files that its slices come from."""

    case: str
    subject: str
    split: str
    slices: tuple[SliceFile, ...] = ()  # by level
    volume: Volume | None = None  # of OASIS-1, instead of slices
    scan: Scan | None = None  # any other volume, instead of slices
    levels: int = 0  # of a volume
    covariates: dict[str, float | str | None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of slices that it should have."""
        return self.levels or len(self.slices)

    @property
    def files(self) -> Iterator[SourceFile]:
        """The files that it is read from."""
        for of in self.slices:
            yield from (of.image, of.labels) if of.labels else (of.image,)
        if self.volume:
            of_volume = self.volume.header, self.volume.image, self.volume.labels_header, self.volume.labels_image
            yield from (file for file in of_volume if file)
        if self.scan:
            yield from self.scan.image.files
            yield from self.scan.labels.files if self.scan.labels else ()


class Slice(NamedTuple):
    """One slice, read."""

    level: int
    image: np.ndarray  # (H, W) uint8
    labels: np.ndarray | None = None  # (H, W) uint8, a class per pixel
    converted: tuple[str, ...] = ()  # how the file differed from a slice


class UnusedFile(NamedTuple):
    """A file of the source that is not a slice."""

    path: str
    reason: str


class Found(NamedTuple):
    """What one layout finds in a source."""

    cases: list[Case]  # by split (train, validate, test), then by case
    used: list[SourceFile]  # the files that decide what the data set holds, rejected ones too
    rejected: list[RejectedFile]
    unused: list[UnusedFile]
    image_size: tuple[int, int]  # height, width
    label_classes: tuple[LabelClass, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a source holds, before any pixel is read."""

    layout: str
    cases: tuple[Case, ...]  # by split (train, validate, test), then by case
    rejected: tuple[RejectedFile, ...]  # files that look like slices or scans, but cannot be used
    unused: tuple[ByReason, ...]  # files that are something else, by reason
    image_size: tuple[int, int]  # height, width
    label_classes: tuple[LabelClass, ...] = ()  # empty: the slices have no label maps
    covariates: tuple[Covariate, ...] = ()
    fingerprint: str  # digest of the files' names and sizes
    times: str  # digest of their modification times

    def split_cases(self) -> dict[str, list[Case]]:
        """The cases of each split that has any, in the order of `cases`."""
        splits = dict.fromkeys(case.split for case in self.cases)
        return {split: [case for case in self.cases if case.split == split] for split in splits}
