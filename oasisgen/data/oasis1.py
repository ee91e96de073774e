"""The layout `oasis1`: OASIS-1 as its own site distributes it, an Analyze volume per scan in atlas space.

The slices are those of the PNG archive that is handed around: of each scan `PROCESSED/MPRAGE/T88_111/*_t88_gfc`,
32 axial slices 1 mm apart, and as label maps the same slices of `FSL_SEG/*_t88_masked_gfc_fseg`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from oasisgen.config.data import OASIS
from oasisgen.data.cases import Case, Found, Slice, SourceFile, UnusedFile, Volume
from oasisgen.data.description import LabelClass, RejectedFile
from oasisgen.data.volume_reader import read_analyze
from oasisgen.errors import UserError
from oasisgen.progress import say

SHAPE = 176, 208, 176  # voxels of 1 mm: left-right, back-front, bottom-top
ROW, COLUMN = 40, 24  # where a slice of 176 x 208 begins in 256 x 256
CLASSES = tuple(
    LabelClass(name, value) for value, name in enumerate(("background", "CSF", "grey matter", "white matter"))
)
# Labelled pixels of levels 0..31, measured on the 302 training cases of the PNG archive. They are those of OASIS-1's
# atlas mask, so they are the same in every scan and find level 0 in its label volume.
# fmt: off
AREAS = np.array([
    18689, 18706, 18726, 18726, 18762, 18766, 18780, 18759,
    18752, 18699, 18699, 18651, 18631, 18564, 18525, 18428,
    18393, 18310, 18252, 18131, 18087, 17996, 17927, 17791,
    17722, 17575, 17480, 17297, 17206, 17024, 16928, 16729,
])
# fmt: on
SCAN = re.compile(r"(?:^|/)(?P<case>(?P<subject>OAS1_(?P<number>\d{4}))_MR\d+)/(?P<below>.+)")
INTENSITIES = re.compile(r"PROCESSED/MPRAGE/T88_111/[^/]+_t88_gfc\.(?P<kind>img|hdr)")
LABELS = re.compile(r"FSL_SEG/[^/]+_t88_masked_gfc_fseg\.(?P<kind>img|hdr)")
IN_NO_SPLIT = *range(73, 81), *range(92, 151)  # numbers of subjects that the PNG archive leaves out
Read = Callable[[SourceFile], bytes]


def matches(files: Sequence[SourceFile]) -> bool:
    """Whether the files are those of OASIS-1's distribution."""
    return any((scan := SCAN.search(file.path)) and INTENSITIES.fullmatch(scan["below"]) for file in files)


def find_cases(source: str, files: Sequence[SourceFile], read: Read) -> Found:
    """The scans among `files`, read only if one of them has no label volume. Raises UserError if there is none."""
    scans: dict[str, dict[str, list[SourceFile]]] = defaultdict(lambda: defaultdict(list))
    unused: list[UnusedFile] = []
    for file in files:
        scan = SCAN.search(file.path)
        for role, pattern in (("image", INTENSITIES), ("labels", LABELS)):
            if scan and (match := pattern.fullmatch(scan["below"])):
                scans[scan["case"]][f"{role} {match['kind']}"].append(file)
                break
        else:
            unused.append(UnusedFile(file.path, "not the atlas-space scan or its FSL_SEG labels"))
    cases, rejected = [], []
    for name, roles in sorted(scans.items()):
        try:
            cases.append(_case(name, roles))
        except ValueError as reason:
            rejected.append(RejectedFile(name, str(reason)))
    cases, without_level = _with_level(cases, read)
    rejected += without_level
    if not cases:
        why = (
            f"{rejected[0].file}: {rejected[0].reason}"
            if rejected
            else "expected OAS1_xxxx_MR1/PROCESSED/MPRAGE/T88_111"
        )
        raise UserError(f"no OASIS-1 scans in {source}: {why}")
    used = [file for roles in scans.values() for of in roles.values() for file in of]
    return Found(cases, sorted(used, key=lambda file: file.path), rejected, unused, OASIS.image_size, CLASSES)


def _case(name: str, roles: dict[str, list[SourceFile]]) -> Case:
    """The case of a scan. Raises ValueError with the reason if its files are incomplete."""
    for files in roles.values():
        if len(files) > 1:
            raise ValueError(f"{files[0].path} and {files[1].path} are the same volume: remove one")
    for role in ("image", "labels"):
        kinds = [kind for kind in ("hdr", "img") if roles.get(f"{role} {kind}")]
        if len(kinds) == 1 or (not kinds and role == "image"):
            missing = "t88_gfc" if role == "image" else "t88_masked_gfc_fseg"
            raise ValueError(f"no {missing}.{'img' if kinds == ['hdr'] else 'hdr'}: copy the scan again")
    header, image = (roles[f"image {kind}"][0] for kind in ("hdr", "img"))
    labels = [roles[f"labels {kind}"][0] if roles.get(f"labels {kind}") else None for kind in ("hdr", "img")]
    volume = Volume(header, image, labels[0], labels[1])
    subject = name.rpartition("_")[0]
    return Case(case=name, subject=subject, split=split_of(int(subject[-4:])), levels=OASIS.levels, volume=volume)


def split_of(number: int) -> str:
    """The split of a subject in the PNG archive; "" for those that it leaves out."""
    if number in IN_NO_SPLIT or not 1 <= number <= 457:
        return ""
    return "train" if number <= 401 else "validate" if number <= 440 else "test"


def _with_level(cases: list[Case], read: Read) -> tuple[list[Case], list[RejectedFile]]:
    """The cases, those without label volume with the level 0 on which the label volumes of all others agree."""
    bare = [case for case in cases if case.volume and case.volume.labels_image is None]
    if not bare:
        return cases, []
    firsts = set()
    for case in cases:
        if case.volume and case.volume.labels_image:
            try:
                firsts.add(first_level(_labels(case.volume, read)))
            except ValueError:
                continue  # packing rejects it, with the reason
    if len(firsts) != 1:
        why = f"no FSL_SEG volume, and those of the other scans give {len(firsts)} places of level 0 instead of one"
        return [case for case in cases if case not in bare], [RejectedFile(case.case, why) for case in bare]
    (first,) = firsts
    say("pack", f"{len(bare)} scans without FSL_SEG labels: their level 0 is plane {first}, as in all other scans")
    return [
        replace(case, volume=replace(case.volume, first=first)) if case in bare and case.volume else case
        for case in cases
    ], []


def read_scan(volume: Volume, read: Read) -> list[Slice]:
    """The slices of a scan. Raises ValueError with the reason if its volumes cannot be used."""
    scan = read_analyze(read(volume.header), read(volume.image), SHAPE)
    labels = _labels(volume, read) if volume.labels_image else None
    first = first_level(labels) if labels is not None else volume.first
    assert first is not None
    return [
        Slice(level, scaled(placed(scan[..., z])), None if labels is None else placed(labels[..., z]).astype(np.uint8))
        for level, z in enumerate(range(first, first + OASIS.levels))
    ]


def _labels(volume: Volume, read: Read) -> np.ndarray:
    """The label volume of a scan."""
    assert volume.labels_header
    assert volume.labels_image
    labels = read_analyze(read(volume.labels_header), read(volume.labels_image), SHAPE)
    if not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} instead of 0 to {len(CLASSES) - 1}")
    return labels


def first_level(labels: np.ndarray) -> int:
    """The z of level 0 in a label volume of SHAPE. Raises ValueError if the labels are not those of OASIS-1's atlas."""
    areas = np.count_nonzero(labels, axis=(0, 1))  # (176,)
    windows = np.lib.stride_tricks.sliding_window_view(areas, len(AREAS))  # (145, 32)
    found = np.flatnonzero((windows == AREAS).all(1))
    if len(found) != 1:
        raise ValueError("the areas of its FSL_SEG labels are not those of OASIS-1's atlas: level 0 cannot be found")
    return int(found[0])


def placed(plane: np.ndarray) -> np.ndarray:
    """A plane of 176 x 208 in the middle of 256 x 256 zeros: left-right down the rows, back-front along the columns."""
    height, width = plane.shape
    whole = np.zeros(OASIS.image_size, np.int64)  # (256, 256)
    whole[ROW : ROW + height, COLUMN : COLUMN + width] = plane
    return whole


def scaled(plane: np.ndarray) -> np.ndarray:
    """A plane as uint8, divided by its maximum and rounded down, as the PNG archive was: of 125 of its slices, 124 have
    exactly one pixel of 255, and rounding to the nearest would give more."""
    most = int(plane.max())
    if most <= 0:
        return np.zeros(plane.shape, np.uint8)
    return (np.clip(plane, 0, None) * 255 // most).astype(np.uint8)
