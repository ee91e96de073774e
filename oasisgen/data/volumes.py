"""The layout `volumes`: NIfTI, Analyze and MGH files of one scan each, in any folders; BIDS is recognised."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from oasisgen.config.pack import PackConfig
from oasisgen.data import dicom
from oasisgen.data.cases import Case, Found, Scan, Slice, SourceFile, UnusedFile, VolumeFile
from oasisgen.data.cut import cut
from oasisgen.data.description import LabelClass, RejectedFile
from oasisgen.data.feed import evenly_spaced
from oasisgen.data.labels import classes_of, unnamed_classes
from oasisgen.data.names import T1, Named, by_pattern, is_split, split_of_folders, subject_of
from oasisgen.data.volume_reader import FILE_NAME, MOST_BYTES, VolumeData, read_volume
from oasisgen.errors import UserError

BIDS = re.compile(r"(?:^|.*/)sub-[^/]+/(?:ses-[^/]+/)?anat/[^/]+_T1w\.[^/]+")
BIDS_NAME = re.compile(r"(?P<subject>sub-[A-Za-z0-9]+)(?P<session>_ses-[A-Za-z0-9]+)?(?:_.*)?")
DERIVATIVES = re.compile(r"(?:^|.*/)derivatives/.+")
OTHER_SPACE = re.compile(r"(?:^|.*_)space-(?!(?:T1w|orig|native)(?:_|$)).*", re.IGNORECASE)
LABEL_KINDS = "dseg", "fseg", "aseg", "segmentation", "seg", "labels", "label", "brainmask", "mask"  # the best first
LABELS = re.compile(rf"(?:(?P<before>.*)[_.-])?(?P<kind>{'|'.join(LABEL_KINDS)})(?:[_.-].*)?", re.IGNORECASE)
LABELS_LOOKED_AT = 8  # label volumes that are read to find the classes
MOST_VALUE = 255
Read = Callable[[SourceFile], bytes]
Placed = tuple[VolumeFile, str]  # a volume, and its path without the ending


def matches(files: Sequence[SourceFile]) -> bool:
    """Whether any file is named like a volume."""
    return any(FILE_NAME.fullmatch(posixpath.basename(file.path)) for file in files)


def find_cases(config: PackConfig, files: Sequence[SourceFile], read: Read) -> Found:
    """The scans among `files`, of which a few label volumes are read. Raises UserError if there is no scan."""
    volumes, rejected, unused = _volumes(files)
    scans, labels = [], []
    bids = [placed for placed in volumes if BIDS.fullmatch(placed[0].image.path) and not _is_derived(placed)]
    for placed in volumes:
        stem = posixpath.basename(placed[1])
        if LABELS.fullmatch(stem):
            labels.append(placed)
        elif _is_derived(placed):
            unused.append(UnusedFile(placed[0].image.path, "a derivative, not a scan"))
        elif bids and placed not in bids:
            unused.append(UnusedFile(placed[0].image.path, "not the T1w scan of a BIDS subject"))
        else:
            scans.append(placed)
    name_of = _naming(scans, config.pattern)
    by_case: dict[str, list[tuple[VolumeFile, Named]]] = defaultdict(list)
    for volume, _ in scans:
        try:
            named = name_of(volume.image.path)
        except ValueError as reason:
            rejected.append(RejectedFile(volume.image.path, str(reason)))
        else:
            by_case[named.case].append((volume, named))
    labels_of, more_rejected, more_unused = _labels(labels, by_case, name_of)
    rejected += more_rejected
    cases = []
    for name, of in sorted(by_case.items()):
        (volume, named), *others = of
        if others:
            both = f"{volume.image.path} and {others[0][0].image.path}"
            why = f"{both} are {len(of)} scans of case {name}: keep one, or pack from a folder that holds only one"
            rejected.append(RejectedFile(volume.image.path, why))
        else:
            scan = Scan(volume, labels_of.get(name))
            cases.append(Case(case=name, subject=named.subject, split=named.split, levels=config.levels, scan=scan))
    if not cases:
        why = f"{rejected[0].file}: {rejected[0].reason}" if rejected else "expected .nii, .nii.gz, .img and .hdr, .mgz"
        raise UserError(f"no volumes in {config.source}: {why}")
    classes = _classes(config, cases, read)
    used = [file for volume, _ in volumes for file in volume.files]
    return Found(cases, used, rejected, [*unused, *more_unused], config.slice_size, classes)


def _is_derived(placed: Placed) -> bool:
    return DERIVATIVES.fullmatch(placed[0].image.path) is not None


def _volumes(files: Sequence[SourceFile]) -> tuple[list[Placed], list[RejectedFile], list[UnusedFile]]:
    """The volumes among `files`, what cannot be one, and the other files."""
    volumes, rejected, unused = [], [], []
    pairs: dict[str, dict[str, SourceFile]] = defaultdict(dict)
    for file in files:
        match = FILE_NAME.fullmatch(posixpath.basename(file.path))
        if not match:
            unused.append(UnusedFile(file.path, "not a volume"))
            continue
        stem, kind = posixpath.join(posixpath.dirname(file.path), match["stem"]), match["kind"].lower()
        if file.size > MOST_BYTES:
            rejected.append(RejectedFile(file.path, f"{file.size} bytes: no volume takes more than {MOST_BYTES}"))
        elif kind in ("img", "hdr"):
            pairs[stem][kind] = file
        else:
            volumes.append((VolumeFile(file), stem))
    for stem, pair in pairs.items():
        if len(pair) == 2:
            volumes.append((VolumeFile(pair["img"], pair["hdr"]), stem))
        else:
            (kind,), (file,) = pair, pair.values()
            other = "hdr" if kind == "img" else "img"
            why = f"no {posixpath.basename(stem)}.{other} beside it: copy both files of the pair"
            rejected.append(RejectedFile(file.path, why))
    return sorted(volumes, key=lambda placed: placed[0].image.path), rejected, unused


def _naming(scans: Sequence[Placed], pattern: str | None) -> Callable[[str], Named]:
    """A function from a path to the case that it names: by --pattern, or as sub-X or sub-X_ses-Y, or by the name of the
    file, or by its folders if all files have the same name. It raises ValueError if the pattern does not find a case.
    """
    if pattern is not None:
        return partial(by_pattern, pattern=re.compile(pattern))
    stems = {posixpath.basename(stem) for _, stem in scans}
    folders = [posixpath.dirname(stem).split("/") for _, stem in scans]
    depth = min(map(len, folders), default=0)
    differ = [at for at in range(depth) if len({of[at] for of in folders if not is_split(of[at])}) > 1]
    by_folder = len(stems) == 1 and len(scans) > 1 and bool(differ)

    def name_of(path: str) -> Named:
        *parents, file = path.split("/")
        found = FILE_NAME.fullmatch(file)
        assert found
        if match := BIDS_NAME.fullmatch(found["stem"]):
            case = match["subject"] + (match["session"] or "")
        else:
            case = "_".join(parents[at] for at in differ if at < len(parents)) if by_folder else found["stem"]
        return Named(case, subject_of(case), level=0, split=split_of_folders(parents), labels=False)

    return name_of


def _labels(
    labels: Sequence[Placed], cases: Iterable[str], name_of: Callable[[str], Named]
) -> tuple[dict[str, VolumeFile], list[RejectedFile], list[UnusedFile]]:
    """The label volume of each case, what cannot be used, and the others."""
    names = {T1.sub("", case): case for case in cases} | {case: case for case in cases}
    found: dict[str, dict[str, list[VolumeFile]]] = defaultdict(lambda: defaultdict(list))
    rejected, unused = [], []
    for volume, stem in labels:
        match = LABELS.fullmatch(posixpath.basename(stem))
        assert match
        ending = volume.image.path.removeprefix(stem)
        alone = posixpath.join(posixpath.dirname(stem), match["before"] or "labels") + ending
        case = None
        with suppress(ValueError):  # the pattern does not find a case
            name = name_of(alone).case
            case = names.get(name, names.get(T1.sub("", name)))
        if OTHER_SPACE.fullmatch(posixpath.basename(stem)):
            unused.append(UnusedFile(volume.image.path, "a label map in another space than its scan"))
        elif case is None:
            unused.append(UnusedFile(volume.image.path, "a label map of no scan"))
        else:
            found[case][match["kind"].lower()].append(volume)
    chosen = {}
    for case, kinds in found.items():
        (best, first), *others = sorted(kinds.items(), key=lambda item: LABEL_KINDS.index(item[0]))
        unused += [UnusedFile(of.image.path, f"not needed beside a {best}") for _, more in others for of in more]
        if len(first) == 1:
            chosen[case] = first[0]
        else:
            why = f"{first[0].image.path} and {first[1].image.path} are both label maps of case {case}: remove one"
            rejected.append(RejectedFile(first[0].image.path, why))
    return chosen, rejected, unused


def _classes(config: PackConfig, cases: Sequence[Case], read: Read) -> tuple[LabelClass, ...]:
    """The classes of the label volumes: those of --label-classes, or those of the values of a few volumes."""
    labelled = [case.scan.labels for case in cases if case.scan and case.scan.labels]
    if labelled and config.label_classes is not None:
        return tuple(LabelClass(name, value) for value, name in config.classes.items())
    values: set[int] = set()
    for number in evenly_spaced(len(labelled), LABELS_LOOKED_AT):
        try:
            values |= set(np.unique(_values(_read(labelled[number], read))).astype(int).tolist())
        except ValueError:
            continue  # packing rejects it, with the reason
    return unnamed_classes(values)


def _read(volume: VolumeFile, read: Read) -> VolumeData:
    if volume.series:
        return dicom.read(volume, read)
    return read_volume(volume.image.path, read(volume.image), read(volume.header) if volume.header else None)


def _values(labels: VolumeData) -> np.ndarray:
    """The values of a label volume. Raises ValueError unless they are small whole numbers."""
    values = labels.voxels
    if (values != np.rint(values)).any():
        raise ValueError("a label map with values that are not whole numbers: pack the discrete one")
    if not (values.min() >= 0 and values.max() <= MOST_VALUE):
        raise ValueError(
            f"labels from {values.min():g} to {values.max():g}: must be from 0 to {MOST_VALUE}; name those to pack "
            "with --label-classes"
        )
    return values


def read_scan(scan: Scan, config: PackConfig, classes: Sequence[LabelClass], read: Read) -> list[Slice | RejectedFile]:
    """The slices of a scan; if its label volume cannot be used, the reason, and the slices without labels."""
    rejected: list[RejectedFile] = []
    labels = None
    try:
        volume = _read(scan.image, read)
        if scan.labels:
            try:
                labels = _read(scan.labels, read)
            except ValueError as reason:
                rejected = [RejectedFile(scan.labels.image.path, str(reason))]
        images, values = cut(volume, labels, config)
    except ValueError as reason:
        return [*rejected, RejectedFile(scan.image.image.path, str(reason))]
    maps: Sequence[np.ndarray | None] = [None] * len(images)
    if scan.labels and labels and values is not None:
        try:
            if not classes:  # for the same reason, most likely, as those that were looked at
                _values(labels)
            maps = list(classes_of(values, classes))
        except ValueError as reason:
            rejected = [RejectedFile(scan.labels.image.path, str(reason))]
    return [*rejected, *(Slice(level, *of, volume.notes) for level, of in enumerate(zip(images, maps, strict=True)))]
