"""The flags of jobs/pack.py."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from oasisgen import storage
from oasisgen.config.check import check
from oasisgen.config.columns import titles_of

PLACES = "source", "out", "preview", "strict", "dry_run"  # flags that do not change what a data set holds
ADDRESSES = "source", "out", "splits", "table"  # flags whose value is a URI
DEFAULT_SPLIT = "0.8,0.1,0.1"  # where the source names no splits


def shares_of(split: str) -> list[Fraction]:
    """`0.8,0.1,0.1` -> the exact shares of train, validate and test. Raises ValueError unless they sum to 1."""
    pieces = split.split(",")
    numbers = [Fraction(piece) for piece in pieces if re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,18}", piece)]
    ok = len(pieces) == len(numbers) == 3 and sum(numbers) == 1
    check("split", split, ok, "three shares that sum to 1: train, validate, test, like 0.8,0.1,0.1")
    return numbers


@dataclass(frozen=True)
class PackConfig:
    """Pack brain scans into a data set of Parquet shards."""

    source: str
    """URI of the folder with the images, or of an archive of it: .tar, .tar.gz or .zip; archives in it are read too."""
    out: str
    """URI of the data set, <root>/datasets/<name>."""
    layout: Literal["auto", "slices", "oasis1"] = "auto"
    """How the source is laid out: slices (image files in split folders), oasis1 (the official OASIS-1 folders
    OAS1_xxxx_MR1 with PROCESSED and FSL_SEG), or auto: recognised by the names of the files."""
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
        if self.columns is not None:
            titles_of(self.columns)

    def absolute(self) -> "PackConfig":
        """The same flags with addresses that are valid in any process."""
        uris: dict[str, Any] = {name: uri for name in ADDRESSES if (uri := getattr(self, name)) is not None}
        uris = {name: storage.absolute(uri) for name, uri in uris.items()}
        return replace(self, **uris)

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide what the data set holds; `dataset.json` records them."""
        return {name: value for name, value in vars(self).items() if name not in PLACES}
