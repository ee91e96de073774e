"""The flags of jobs/pack.py."""

from dataclasses import dataclass
from typing import Any

from oasisgen.config.check import check

PLACES = "source", "out", "preview", "strict", "dry_run"  # flags that do not change what a data set holds


@dataclass(frozen=True)
class PackConfig:
    """Pack brain scans into a data set of Parquet shards."""

    source: str
    """URI of the folder that holds the split folders."""
    out: str
    """URI of the data set, <root>/datasets/<name>."""
    preview: int = 0
    """Show this many cases, at most 100, in <out>/preview/index.html, and pack nothing."""
    strict: bool = False
    """Fail if any file is rejected, instead of listing it in dataset.json."""
    dry_run: bool = False
    """Check storage, source folders and the data set's name, print the plan, and stop."""

    def __post_init__(self) -> None:
        check("preview", self.preview, 0 <= self.preview <= 100, "from 0 to 100")

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that decide what the data set holds; `dataset.json` records them."""
        return {name: value for name, value in vars(self).items() if name not in PLACES}
