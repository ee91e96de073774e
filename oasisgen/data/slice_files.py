"""The layout `slices`: image files, one per slice, in a folder per split."""

import re
from collections import defaultdict
from collections.abc import Sequence

from oasisgen.config.data import IMAGE_SIZE, LEVELS
from oasisgen.data.cases import Case, Found, SliceFile, SourceFile, UnusedFile
from oasisgen.data.description import RejectedFile
from oasisgen.data.images import MOST_BYTES
from oasisgen.data.slices import SPLITS
from oasisgen.errors import UserError

FILE_NAME = re.compile(r"case_(?P<case>\d+)_slice_(?P<level>\d+)(\.nii)?\.png", re.IGNORECASE)
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "validation"), "validate")
SPLIT_FOLDER = re.compile(rf"(.*[_-])?(?P<split>{'|'.join(SPLIT_NAMES)})([_-].*)?", re.IGNORECASE)
LABEL_FOLDER = re.compile(
    r"(.*[_-])?seg([_-].*)?|(labels?|masks?)[_-].*|.*[_-](labels?|masks?)([_-].*)?", re.IGNORECASE
)
Files = dict[tuple[int, int], list[tuple[SourceFile, str]]]  # (case as a number, level) -> each file, and its case


def matches(files: Sequence[SourceFile]) -> bool:
    """Whether any file is named like a slice and stands in the folder of a split."""
    for file in files:
        *folders, name = file.path.split("/")
        if FILE_NAME.fullmatch(name) and any(SPLIT_FOLDER.fullmatch(folder) for folder in folders):
            return True
    return False


def find_cases(source: str, files: Sequence[SourceFile]) -> Found:
    """The cases whose slices are among `files`. Raises UserError if there are none."""
    found: dict[str, Files] = defaultdict(lambda: defaultdict(list))
    used: list[SourceFile] = []
    rejected: list[RejectedFile] = []
    unused: list[UnusedFile] = []
    for file in files:
        *folders, name = file.path.split("/")
        splits = [
            SPLIT_NAMES[match["split"].lower()] for folder in folders if (match := SPLIT_FOLDER.fullmatch(folder))
        ]
        if name.startswith("seg_") or any(LABEL_FOLDER.fullmatch(folder) for folder in folders):
            unused.append(UnusedFile(file.path, "a label map"))
            continue
        if not splits:
            unused.append(UnusedFile(file.path, "not in the folder of a split"))
            continue
        used.append(file)
        match = FILE_NAME.fullmatch(name)
        if not match:
            rejected.append(RejectedFile(file.path, "not named case_<number>_slice_<level>.nii.png"))
        elif (level := int(match["level"])) >= LEVELS:
            rejected.append(RejectedFile(file.path, f"level {level} is above {LEVELS - 1}"))
        elif file.size > MOST_BYTES:
            rejected.append(RejectedFile(file.path, f"{file.size} bytes: no slice takes more than {MOST_BYTES}"))
        else:
            found[splits[0]][int(match["case"]), level].append((file, match["case"]))  # cases 1 and 001 are the same
    splits_found = [split for split in SPLITS if found.get(split)]
    rejected += [file for split in splits_found for file in _doubled(found[split])]
    cases = [case for split in splits_found for case in _unique(found[split], split)]
    if not cases:
        why = f"expected <split>/case_<number>_slice_<level>.nii.png, splits {', '.join(SPLITS)}"
        if rejected:
            why = f"{rejected[0].file}: {rejected[0].reason}"
        raise UserError(f"no slices in {source}: {why}")
    return Found(cases, used, rejected, unused, (IMAGE_SIZE, IMAGE_SIZE))


def _unique(found: Files, split: str) -> list[Case]:
    """The cases of a split, with the slices that have exactly one file."""
    names = {number: files[0][1] for (number, _), files in sorted(found.items(), reverse=True)}
    slices: dict[int, list[SliceFile]] = defaultdict(list)
    for (number, level), files in sorted(found.items(), key=lambda item: item[0]):
        if len(files) == 1:
            slices[number].append(SliceFile(level, files[0][0]))
    named = sorted((names[number], tuple(of)) for number, of in slices.items())
    return [Case(case=name, subject=name, split=split, slices=of) for name, of in named]


def _doubled(found: Files) -> list[RejectedFile]:
    """The files of a split with the same case and level as another file."""
    rejected = []
    for (_, level), files in found.items():
        for file, case in files if len(files) > 1 else []:
            other = next(other for other, _ in files if other != file)
            rejected.append(RejectedFile(file.path, f"case {case}, level {level} is also {other.path}: remove one"))
    return rejected
