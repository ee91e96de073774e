"""The flags of jobs/pack.py."""

import re
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Annotated, Any, Literal

import tyro

from oasisgen import storage
from oasisgen.config.check import check
from oasisgen.config.columns import titles_of
from oasisgen.config.data import OASIS, Shape

PLACES = "source", "out", "preview", "strict", "dry_run"  # flags that do not change what a data set holds
FLAGS_OF = {  # those that not every layout uses
    "slices": ("pattern", "size", "fit", "label_classes"),
    "oasis1": (),
    "volumes": ("pattern", "size", "label_classes", "axis", "levels", "from_mm", "to_mm", "mm", "window", "window_per"),
}
ADDRESSES = "source", "out", "splits", "table"  # flags whose value is a URI
CLASSES = 'each value once, and its name, like "0=background,1=left,2=right"'
NAMES = "different printable names, none of them empty or loss; a space is like a _"
EXAMPLE = r"one with named groups, like 'sub-(?P<case>\d+).*_z(?P<level>\d+)'"
Fit = Literal["pad", "crop", "resize"]
CUTS = {"axial": (82.0, 51.0), "coronal": (120.0, 58.0), "sagittal": (106.0, 44.0)}  # mm; of heads without skull
WINDOW = "two percentiles from 0 to 100, the lower first, like 0,99.5"
DEFAULT_SPLIT = "0.8,0.1,0.1"  # where the source names no splits


def shares_of(split: str) -> list[Fraction]:
    """`0.8,0.1,0.1` -> the exact shares of train, validate and test. Raises ValueError unless they sum to 1."""
    pieces = split.split(",")
    numbers = [Fraction(piece) for piece in pieces if re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,18}", piece)]
    ok = len(pieces) == len(numbers) == 3 and sum(numbers) == 1
    check("split", split, ok, "three shares that sum to 1: train, validate, test, like 0.8,0.1,0.1")
    return numbers


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless `pattern` is a regular expression with a group that tells the case."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"pattern is {pattern}: no regular expression ({error}); give {EXAMPLE}") from None
    check("pattern", pattern, "case" in groups or "subject" in groups, EXAMPLE)


@dataclass(frozen=True)
class PackConfig:
    """Pack brain scans into a data set of Parquet shards."""

    source: str
    """URI of the folder with the images, or of an archive of it: .tar, .tar.gz or .zip; archives in it are read too."""
    out: str
    """URI of the data set, <root>/datasets/<name>."""
    layout: Literal["auto", "slices", "oasis1", "volumes"] = "auto"
    """How the source is laid out: slices (image files in split folders), oasis1 (the official OASIS-1 folders
    OAS1_xxxx_MR1 with PROCESSED and FSL_SEG), volumes (NIfTI, Analyze or MGH files, or DICOM series), or auto:
    recognised by the files."""
    pattern: str | None = None
    """Of image files and volumes: a regular expression that is searched in each path below the source, with groups
    (?P<case>…) or (?P<subject>…), of image files (?P<level>…), and perhaps (?P<session>…) and (?P<split>…). Default:
    the usual names."""
    splits: str | None = None
    """URI of a CSV or TSV file with columns subject (or case) and split: train, validate or test."""
    split: str | None = None
    """Shares of train, validate and test, such as 0.8,0.1,0.1: subjects are split by a hash of their name. Default:
    the splits of the source, or 0.8,0.1,0.1 if it names none."""
    split_seed: int = 0
    """Seed of that hash: another one gives another split."""
    table: str | None = None
    """URI of a CSV or TSV file with a row per subject or case, such as oasis_cross-sectional.csv. Default:
    participants.tsv in the source, if there is one."""
    columns: str | None = None
    """Columns of the table that become columns of the data set, such as age,sex,CDR (the default: those it has)."""
    size: str | None = None
    """Height and width of the slices in pixels, multiples of 32 from 64 to 512, such as 256x256. Default: the most
    common size of the image files, rounded up; 256x256 of volumes."""
    fit: Fit = "pad"
    """Image files of another size are centred: padded with zeros (larger ones are rejected), cropped and padded, or
    resized to fit and padded."""
    label_classes: str | None = None
    """Values of label maps and their names, such as "0=background,1=left,2=right". Default: OASIS's tissues if the
    values are theirs; else every value up to the highest one is a class."""
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Of volumes: the direction in which they are cut."""
    levels: int = OASIS.levels
    """Of volumes: slices per volume, evenly from --from to --to."""
    from_mm: Annotated[float | None, tyro.conf.arg(name="from")] = None
    """Of volumes: millimetres from the top of the head (axial), its front (coronal) or its right side (sagittal) to
    level 0. Default: 82, 120 or 106."""
    to_mm: Annotated[float | None, tyro.conf.arg(name="to")] = None
    """Of volumes: millimetres from there to the last level. Default: 51, 58 or 44."""
    mm: float = 1.0
    """Of volumes: millimetres between the centres of neighbouring pixels."""
    window: str = "0,99.5"
    """Of volumes: percentiles of the values that are not 0; they become black and white."""
    window_per: Literal["volume", "slice"] = "volume"
    """Of volumes: what the percentiles are taken of; slice makes each slice use the whole range of grey values."""
    preview: int = 0
    """Show this many cases, at most 100, in <out>/preview/index.html, and pack nothing."""
    strict: bool = False
    """Fail if any file is rejected, instead of listing it in dataset.json."""
    dry_run: bool = False
    """Check storage, source folders and the data set's name, print the plan, and stop."""

    def __post_init__(self) -> None:
        check("preview", self.preview, 0 <= self.preview <= 100, "from 0 to 100")
        if self.split is not None:
            shares_of(self.split)
            check("splits", self.splits, self.splits is None, "left out if --split is given")
        check("split-seed", self.split_seed, not (self.split_seed and self.splits), "left out if --splits is given")
        if self.columns is not None:
            titles_of(self.columns)
        if self.pattern is not None:
            check_pattern(self.pattern)
        Shape(*self.slice_size, self.levels)  # raises for one that cannot be
        if self.label_classes is not None:
            check("label-classes", self.label_classes, len(self.classes) > 1, CLASSES)
        check("mm", self.mm, 0.1 <= self.mm <= 10, "from 0.1 to 10")
        for name, value in (("from", self.from_mm), ("to", self.to_mm)):
            check(name, value, value is None or -500 <= value <= 500, "from -500 to 500 mm")
        low, high = self.window_percentiles
        check("window", self.window, 0 <= low < high <= 100, WINDOW)
        if self.layout != "auto" and (fault := self.misfit(self.layout)):
            raise ValueError(f"layout is {self.layout}, which {fault}")

    def misfit(self, layout: str) -> str:
        """What `layout` cannot do with the flags that were given, those that differ from their default; "" if nothing.

        It is the end of a sentence, such as "does not use --axis: leave it out".
        """
        elsewhere = {name for names in FLAGS_OF.values() for name in names} - set(FLAGS_OF[layout])
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if unused := [name for name in given if name in elsewhere]:
            flags = " and ".join(f"--{name.removesuffix('_mm').replace('_', '-')}" for name in unused)
            return f"does not use {flags}: leave {'it' if len(unused) == 1 else 'them'} out"
        if self.pattern is None or ("level" in re.compile(self.pattern).groupindex) == (layout == "slices"):
            return ""
        if layout == "slices":
            return f"finds no group level in --pattern {self.pattern}: give {EXAMPLE}"
        return f"has no use for the group level of --pattern {self.pattern}: give one without it"

    def absolute(self) -> "PackConfig":
        """The same flags with addresses that are valid in any process."""
        uris: dict[str, Any] = {name: uri for name in ADDRESSES if (uri := getattr(self, name)) is not None}
        uris = {name: storage.absolute(uri) for name, uri in uris.items()}
        return replace(self, **uris)

    @property
    def slice_size(self) -> tuple[int, int]:
        """`size`, or OASIS's. Raises ValueError."""
        if self.size is None:
            return OASIS.image_size
        match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", self.size)
        check("size", self.size, match is not None, "height x width in pixels, like 256x256")
        assert match
        return int(match[1]), int(match[2])

    @property
    def classes(self) -> dict[int, str]:
        """Value -> name of the label classes. Raises ValueError, also for names that metrics cannot tell apart."""
        classes: dict[int, str] = {}
        for piece in (self.label_classes or "").split(","):
            match = re.fullmatch(r" *([0-9]{1,6}) *=([^=]+)", piece)
            value = int(match[1]) if match else -1
            check("label-classes", self.label_classes, match is not None and value not in classes, CLASSES)
            assert match
            classes[value] = match[2].strip()
        check("label-classes", self.label_classes, len(classes) <= 256, "at most 256 classes")
        titles = {name.replace(" ", "_") for name in classes.values()}  # as in metrics/labels.jsonl, beside dice_loss
        ok = len(titles) == len(classes) and not titles & {"", "loss"} and "".join(titles).isprintable()
        check("label-classes", self.label_classes, ok, NAMES)
        return classes

    @property
    def window_percentiles(self) -> tuple[float, float]:
        """The percentiles that become black and white. Raises ValueError."""
        numbers = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?),([0-9]{1,3}(?:\.[0-9]+)?)", self.window)
        check("window", self.window, numbers is not None, WINDOW)
        assert numbers
        return float(numbers[1]), float(numbers[2])

    @property
    def cut_range(self) -> tuple[float, float]:
        """Millimetres from the edge of the head to the first and the last level of a volume."""
        first, last = CUTS[self.axis]
        return first if self.from_mm is None else self.from_mm, last if self.to_mm is None else self.to_mm

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide what the data set holds; `dataset.json` records them."""
        return {name: value for name, value in vars(self).items() if name not in PLACES}
