"""The layout `slices`: image files, one per slice, perhaps in a folder per split, and those of their label maps."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from oasisgen.config.data import LEAST_SIDE, MOST_SIDE, OASIS, SIDE_STEP
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case, Found, SliceFile, SourceFile, UnusedFile
from oasisgen.data.description import LabelClass, RejectedFile
from oasisgen.data.feed import evenly_spaced
from oasisgen.data.images import MOST_BYTES, decode_labels, size_of
from oasisgen.data.labels import unnamed_classes
from oasisgen.data.names import EXPECTED, Named, is_image, parse_name, split_of_folders
from oasisgen.data.oasis1 import CLASSES
from oasisgen.data.slices import SPLITS
from oasisgen.data.text_tables import canonical_number
from oasisgen.errors import UserError

PROBED_SIZES, PROBED_LABELS = 64, 16  # files that are opened to find the size of slices, and the label classes
OASIS_VALUES = 0, 85, 170, 255  # of the label maps in the PNG archive; their classes are those of the volumes
Read = Callable[[SourceFile], bytes]
Key = tuple[str, int]  # case with one spelling of its number, level


class _File(NamedTuple):
    file: SourceFile
    named: Named

    @property
    def key(self) -> Key:
        return canonical_number(self.named.case), self.named.level


class _Sorted(NamedTuple):
    """The files of a source, by what their names say."""

    images: list[_File]
    labels: list[_File]
    rejected: list[RejectedFile]
    unused: list[UnusedFile]


def matches(files: Sequence[SourceFile]) -> bool:
    """Whether any image file is in the folder of a split."""
    return any(is_image(file.path) and split_of_folders(file.path.split("/")[:-1]) for file in files)


def find_cases(config: PackConfig, files: Sequence[SourceFile], read: Read) -> Found:
    """The cases whose slices are among `files`; some files are read to find their size and the label classes.

    Raises UserError if there are none.
    """
    images, labels, rejected, unused = _sort(config, files)
    groups: dict[tuple[str, Key], list[_File]] = defaultdict(list)
    for each in images:
        groups[each.named.split, each.key].append(each)
    rejected += [file for group in groups.values() for file in _doubled(group)]
    single = {key: group[0] for key, group in groups.items() if len(group) == 1}
    if not single:
        why = f"{rejected[0].file}: {rejected[0].reason}" if rejected else EXPECTED
        raise UserError(f"no slices in {config.source}: {why}")
    maps, without_slice, doubled = _label_maps(labels, {key for _, key in single})
    rejected += doubled
    classes = _classes(config, [each.file for each in maps.values()], read)
    names = {each.file.path for each in (*images, *maps.values())} | {each.file for each in rejected}
    used = [file for file in files if file.path in names]
    return Found(
        _cases(single, maps),
        used,
        rejected,
        [*unused, *without_slice],
        _image_size(config, [each.file for each in images], read),
        classes,
    )


def _sort(config: PackConfig, files: Sequence[SourceFile]) -> _Sorted:
    """Sort the files by what their names say. An image that no rule knows is rejected, anything else is unused."""
    pattern = re.compile(config.pattern) if config.pattern else None
    found = _Sorted([], [], [], [])
    for file in files:
        if not is_image(file.path):
            found.unused.append(UnusedFile(file.path, "not an image"))
            continue
        try:
            named = parse_name(file.path, pattern)
            if file.size > MOST_BYTES:
                raise ValueError(f"{file.size} bytes: no slice takes more than {MOST_BYTES}")
        except ValueError as reason:
            found.rejected.append(RejectedFile(file.path, str(reason)))
            continue
        (found.labels if named.labels else found.images).append(_File(file, named))
    if any(each.named.split for each in found.images):
        outside = [each for each in found.images if not each.named.split]
        why = "not in the folder of a split (train, validate, test), as other images are"
        found.rejected.extend(RejectedFile(each.file.path, why) for each in outside)
        return found._replace(images=[each for each in found.images if each.named.split])
    return found


def _doubled(group: Sequence[_File]) -> list[RejectedFile]:
    """The files of one case and level, if there are several."""
    rejected = []
    for each in group if len(group) > 1 else []:
        other = next(other for other in group if other != each)
        what = f"case {each.named.case}, level {each.named.level} is also {other.file.path}: remove one"
        rejected.append(RejectedFile(each.file.path, what))
    return rejected


def _label_maps(
    labels: Sequence[_File], slices: set[Key]
) -> tuple[dict[Key, _File], list[UnusedFile], list[RejectedFile]]:
    """The label map of each slice, those without a slice, and those of which there are several."""
    groups: dict[Key, list[_File]] = defaultdict(list)
    for each in labels:
        groups[each.key].append(each)
    unused = [
        UnusedFile(each.file.path, "a label map without its slice")
        for key, group in groups.items()
        for each in group
        if key not in slices
    ]
    wanted = {key: group for key, group in groups.items() if key in slices}
    doubled = [file for group in wanted.values() for file in _doubled(group)]
    return {key: group[0] for key, group in wanted.items() if len(group) == 1}, unused, doubled


def _cases(single: dict[tuple[str, Key], _File], maps: dict[Key, _File]) -> list[Case]:
    """The cases, by split and name, with their slices by level. Raises UserError if a case has two subjects."""
    slices: dict[tuple[str, str], list[SliceFile]] = defaultdict(list)
    names: dict[tuple[str, str], Named] = {}
    for (split, key), each in sorted(single.items(), key=lambda item: item[0]):
        labels = maps[key].file if key in maps else None
        slices[split, key[0]].append(SliceFile(each.named.level, each.file, labels))
        first, named = names.setdefault((split, key[0]), each.named), each.named
        if canonical_number(first.subject) != canonical_number(named.subject):
            raise UserError(
                f"subjects {first.subject} and {named.subject} both have a case {first.case}: give --pattern a group "
                "session, or a group case that tells them apart"
            )
    cases = [
        Case(case=names[key].case, subject=names[key].subject, split=key[0], slices=tuple(of))
        for key, of in slices.items()
    ]
    return sorted(cases, key=lambda case: (("", *SPLITS).index(case.split), case.case))


def _image_size(config: PackConfig, files: Sequence[SourceFile], read: Read) -> tuple[int, int]:
    """Height and width of the data set: `--size`, or the most common size of the files, rounded up to what models take.

    Raises UserError if that is too large.
    """
    if config.size:
        return config.slice_size
    sizes: Counter[tuple[int, int]] = Counter()
    with ThreadPoolExecutor(PROBED_SIZES) as pool:
        for data in pool.map(read, [files[number] for number in evenly_spaced(len(files), PROBED_SIZES)]):
            with suppress(ValueError):
                sizes[size_of(data)] += 1
    height, width = min(sizes, key=lambda size: (-sizes[size], size)) if sizes else OASIS.image_size
    if max(height, width) > MOST_SIDE:
        raise UserError(
            f"most slices in {config.source} have {width} x {height} pixels, and models take at most {MOST_SIDE} x "
            f"{MOST_SIDE}: give --size {MOST_SIDE}x{MOST_SIDE} --fit resize"
        )
    height, width = (max(LEAST_SIDE, -(-side // SIDE_STEP) * SIDE_STEP) for side in (height, width))
    return height, width


def _classes(config: PackConfig, maps: Sequence[SourceFile], read: Read) -> tuple[LabelClass, ...]:
    """The classes of the label maps: as `--label-classes` names them, those of OASIS, or those of their values."""
    if not maps:
        return ()
    if config.label_classes:
        return tuple(LabelClass(name, value) for value, name in config.classes.items())
    values: set[int] = set()
    for number in evenly_spaced(len(maps), PROBED_LABELS):
        with suppress(ValueError):
            values |= set(np.unique(decode_labels(read(maps[number]))).tolist())
    if values & {85, 170} and values <= set(OASIS_VALUES):
        return tuple(LabelClass(of.name, value) for of, value in zip(CLASSES, OASIS_VALUES, strict=True))
    return unnamed_classes(values)
