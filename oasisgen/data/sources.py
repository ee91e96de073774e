"""Sort a folder of raw PNG files by split, case and level, and decode one such file."""

import hashlib
import io
import re
import struct
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from PIL import Image

from oasisgen import storage
from oasisgen.config.data import IMAGE_SIZE, LEVELS
from oasisgen.data.description import RejectedFile
from oasisgen.data.slices import FILE_NAME, SPLITS
from oasisgen.errors import UserError

MOST_BYTES = 4_000_000  # larger files are not opened: 20 times an uncompressed slice in RGB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SPLIT_FOLDER = re.compile(r"(keras_png_slices_)?(?P<split>train|validate|test)", re.IGNORECASE)
LABEL_FOLDER = re.compile(r"keras_png_slices_seg_.*|seg", re.IGNORECASE)
Found = dict[tuple[int, int], list[tuple[str, str]]]  # (case as a number, level) -> (path, case) of each file


class Survey(NamedTuple):
    """The files of a source folder, before any is opened."""

    slices: dict[str, list[tuple[str, str, int]]]  # split -> (path, case, level), by case and level
    rejected: list[RejectedFile]
    label_maps: int
    fingerprint: str  # digest of names and sizes
    times: str  # digest of modification times


def survey(source: str) -> Survey:
    """Sort the files of a source folder by split, case and level.

    Raises UserError if the folder is missing, holds no slice, or has a case in two splits.
    """
    try:
        files = storage.list_details(source)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"no folder at {source}: give --source the folder that holds train, validate and test"
        ) from None
    found: dict[str, Found] = defaultdict(lambda: defaultdict(list))
    rejected = [RejectedFile(path, "leads nowhere") for path in storage.list_dangling(source)]
    label_maps = 0
    digest, times = hashlib.sha256(), hashlib.sha256()
    for path, size, modified in files:
        *folders, name = path.split("/")
        splits = [match["split"].lower() for folder in folders if (match := SPLIT_FOLDER.fullmatch(folder))]
        if name.startswith("seg_") or any(LABEL_FOLDER.fullmatch(folder) for folder in folders):
            label_maps += 1
            continue
        if not splits:
            continue  # not in a split's folder: a README, an archive
        digest.update(f"{path} {size}\n".encode())
        times.update(f"{modified}\n".encode())
        match = FILE_NAME.fullmatch(name)
        if not match:
            rejected.append(RejectedFile(path, "not named case_<number>_slice_<level>.nii.png"))
        elif (level := int(match["level"])) >= LEVELS:
            rejected.append(RejectedFile(path, f"level {level} is above {LEVELS - 1}"))
        elif size > MOST_BYTES:
            rejected.append(RejectedFile(path, f"{size} bytes: no slice takes more than {MOST_BYTES}"))
        else:
            found[splits[0]][int(match["case"]), level].append((path, match["case"]))  # cases 1 and 001 are the same
    slices = {split: _unique(found[split]) for split in filter(found.get, SPLITS)}
    rejected += [file for split in slices for file in _doubled(found[split])]
    if not any(slices.values()):
        why = f"expected <split>/case_<number>_slice_<level>.nii.png, splits {', '.join(SPLITS)}"
        if rejected:
            why = f"{rejected[0].file}: {rejected[0].reason}"
        raise UserError(f"no slices in {source}: {why}")
    _require_separate({split: found[split] for split in slices})
    return Survey(slices, rejected, label_maps, digest.hexdigest(), times.hexdigest())


def _unique(found: Found) -> list[tuple[str, str, int]]:
    """The slices of a split that have exactly one file, in the form of `Survey.slices`."""
    names = {number: paths[0][1] for (number, _), paths in sorted(found.items(), reverse=True)}
    chosen = [(paths[0][0], names[number], level) for (number, level), paths in found.items() if len(paths) == 1]
    return sorted(chosen, key=lambda entry: entry[1:])


def _doubled(found: Found) -> list[RejectedFile]:
    """The files of a split with the same case and level as another file."""
    rejected = []
    for (_, level), paths in found.items():
        for path, case in paths if len(paths) > 1 else []:
            other = next(other for other, _ in paths if other != path)
            rejected.append(RejectedFile(path, f"case {case}, level {level} is also {other}: remove one"))
    return rejected


def _require_separate(splits: dict[str, Found]) -> None:
    """Raise UserError if a case is in two splits."""
    homes: dict[int, str] = {}
    for split, found in splits.items():
        for number in {number for number, _ in found}:
            if homes.setdefault(number, split) != split:
                case = found[min(key for key in found if key[0] == number)][0][1]
                raise UserError(
                    f"case {case} is in {homes[number]} and in {split}: remove it from one of the two folders"
                )


def read_png(data: bytes) -> np.ndarray:
    """Decode a PNG file to (256, 256) uint8. Raises ValueError with the reason if it is not a usable slice.

    The header is checked before any pixel is decoded, and only Pillow's PNG decoder is ever tried.
    """
    if data[:8] != PNG_SIGNATURE or len(data) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"{width} x {height} pixels instead of {IMAGE_SIZE} x {IMAGE_SIZE}")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode in ("L", "RGB"):
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types: OSError, SyntaxError, IndexError, zlib.error, …
        raise ValueError(f"truncated or damaged ({' '.join(str(error).split())})") from None
    if image.mode == "RGB":
        red, green, blue = (np.asarray(channel) for channel in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise ValueError("RGB with unequal channels")
        return red
    if image.mode != "L":
        raise ValueError(f"mode {image.mode} instead of 8-bit greyscale")
    return np.asarray(image)
