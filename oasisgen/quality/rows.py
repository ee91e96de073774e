"""The rows of a batch's summary, read part by part: totals of all of them, and the few that are measured and shown.

A batch may have 10^9 rows, which no driver holds.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import storage, tables
from oasisgen.data.feed import chunks, evenly_spaced
from oasisgen.quality.measures import OF_SLICES
from oasisgen.sampling.manifest import BatchPart
from oasisgen.sampling.parts import READERS, summary_schema

MOST = 2048  # slices of a batch whose fidelity and variety are measured; more would cost much and change little
PLOTTED = 100_000  # rows in the histograms of the report, at most
FIRSTS = 2  # rows of each level that the report shows
LOWEST = 10  # rows with the lowest scores that the report shows
LOWEST_OF = ("copy_ratio", "ssim_real")

# A format that keeps the slices of a part in one file reads the whole file for one of them. So those of a huge batch
# are taken from a few parts.
HUGE = 10**7  # rows
PARTS_OF_HUGE = 128


class Totals:
    """Counts and means of the rows added so far, equal to the last bit to those of the whole table."""

    def __init__(self, suspect: float = -math.inf) -> None:
        """`suspect`: slices with a lower copy_ratio are suspected copies."""
        self.suspect, self.rows, self.suspected = suspect, 0, 0
        self.sums: dict[str, float] = {}
        self.values: dict[str, int] = {}  # how many were added up
        self.per_level: dict[int, int] = {}  # in the order in which the levels first occur
        self.devices: set[str] = set()

    def add(self, rows: pa.Table) -> "Totals":
        """Add the rows of a summary, or of a table that has only `level` and the measures."""
        self.rows += len(rows)
        for name in (*OF_SLICES, "codes_in_use"):
            for chunk in rows[name].chunks if name in rows.column_names else []:
                self.sums[name] = self.sums.get(name, 0) + (pc.sum(chunk).as_py() or 0)
                self.values[name] = self.values.get(name, 0) + len(chunk) - chunk.null_count
        if self.suspect > -math.inf:
            self.suspected += int((rows["copy_ratio"].to_numpy() < self.suspect).sum())
        for entry in pc.value_counts(rows["level"]).to_pylist():
            self.per_level[entry["values"]] = self.per_level.get(entry["values"], 0) + entry["counts"]
        if "device" in rows.column_names:
            self.devices |= set(pc.unique(rows["device"]).to_pylist())
        return self

    def mean(self, column: str) -> float | None:
        """The mean of a column; None if it has no values."""
        return self.sums[column] / self.values[column] if self.values.get(column) else None

    @property
    def means(self) -> dict[str, float]:
        """Means of the measures that each slice has, and the share of suspected copies."""
        means = {key: mean for key in OF_SLICES if (mean := self.mean(key)) is not None}
        return means | {"suspected_copies": self.suspected / max(1, self.rows)}


@dataclass(frozen=True)
class BatchRows:
    """What is known of a batch's rows after all of them were read. The tables have the columns of a summary."""

    totals: Totals
    measured: pa.Table  # those whose images are measured, evenly spaced
    plotted: pa.Table  # evenly spaced too
    firsts: pa.Table  # the first FIRSTS of each level, by level
    lowest: dict[str, pa.Table]  # the LOWEST rows by each measure of LOWEST_OF, if the batch was measured


def read_rows(out: str, parts: Sequence[BatchPart], labels: bool, suspect: float | None) -> BatchRows:
    """Read the summary of a finished batch at `out`, part by part; `labels`: it has label maps.

    `suspect` is the threshold of suspected copies, None if the batch was not measured.
    """
    schema = summary_schema(labels)
    names = [name for name in schema.names if name not in ("sha256", "labels_sha256")]
    return gather(_read(out, parts, schema, names), [part.slices for part in parts], suspect)


def gather(pieces: Iterable[pa.Table], sizes: Sequence[int], suspect: float | None) -> BatchRows:
    """The rows of consecutive `pieces` with `sizes` rows each. As `read_rows`."""
    totals = Totals(-math.inf if suspect is None else suspect)
    empty, first = summary_schema(False).empty_table(), 0
    count = sum(sizes)
    wanted = {"measured": measured_rows(sizes), "plotted": evenly_spaced(count, PLOTTED)}
    taken: dict[str, list[pa.Table]] = {name: [] for name in wanted}
    firsts: dict[int, list[pa.Table]] = {}
    lowest: dict[str, pa.Table] = {}
    for piece in pieces:
        empty = piece.slice(0, 0)
        totals.add(piece)
        for name, rows in wanted.items():
            mine = rows[slice(*np.searchsorted(rows, [first, first + len(piece)]))] - first
            taken[name].append(piece.take(mine))
        _add_firsts(firsts, piece, totals)
        for key in () if suspect is None else LOWEST_OF:
            both = pa.concat_tables([lowest.get(key, empty), piece])
            lowest[key] = both.take(pc.sort_indices(both, [(key, "ascending")])[:LOWEST])  # a stable sort
        first += len(piece)
    measured, plotted = (pa.concat_tables([empty, *tables_]) for tables_ in taken.values())
    by_level = [table for level in sorted(firsts) for table in firsts[level]]
    return BatchRows(totals, measured, plotted, pa.concat_tables([empty, *by_level]), lowest)


def measured_rows(sizes: Sequence[int]) -> np.ndarray:
    """The numbers of the rows to measure, ascending, of a batch whose parts have `sizes` rows: at most MOST."""
    ends = np.cumsum(np.array([0, *sizes], np.int64))
    if ends[-1] <= HUGE:
        return evenly_spaced(int(ends[-1]), MOST)
    there = np.flatnonzero(np.diff(ends))
    some = there[evenly_spaced(len(there), PARTS_OF_HUGE)]
    return np.concatenate([ends[part] + evenly_spaced(sizes[part], max(1, MOST // len(some))) for part in some])


def _add_firsts(firsts: dict[int, list[pa.Table]], piece: pa.Table, totals: Totals) -> None:
    """Add the first rows of each level that are still lacking."""
    lacking = {level: FIRSTS - sum(map(len, firsts.get(level, []))) for level in totals.per_level}
    levels = piece["level"].to_numpy() if any(lacking.values()) else np.empty(0)
    for level, count in lacking.items():
        if count and len(rows := np.flatnonzero(levels == level)[:count]):
            firsts.setdefault(level, []).append(piece.take(rows))


def _read(out: str, parts: Sequence[BatchPart], schema: pa.Schema, names: list[str]) -> Iterator[pa.Table]:
    """The parts in their order. Only READERS of them are in memory."""
    with ThreadPoolExecutor(READERS) as pool:
        for some in chunks(parts, READERS):
            yield from pool.map(lambda part: tables.read(storage.join(out, part.name), schema, names), some)
