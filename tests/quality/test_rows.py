"""The rows of a summary, read part by part, tell the same as the whole table does."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from oasisgen import storage, tables
from oasisgen.data.feed import evenly_spaced
from oasisgen.quality import rows
from oasisgen.quality.measures import OF_SLICES
from oasisgen.quality.rows import FIRSTS, LOWEST, LOWEST_OF, MOST, Totals, gather, measured_rows, read_rows
from oasisgen.sampling.parts import SUMMARY, entry_of, part_uri

SIZES = [700, 0, 1, 2500, 33]
SUSPECT = 0.02


def summary(size: int, seed: int = 0) -> pa.Table:
    """A summary of `size` rows; its scores are so coarse that many are equal."""
    random = np.random.default_rng(seed)
    columns = {field.name: pa.array(random.integers(0, 40, size), pa.int64()).cast(field.type) for field in SUMMARY}
    columns |= {key: pa.array((random.random(size) * 300).round() / 300, pa.float32()) for key in OF_SLICES}
    columns |= {"id": pa.array(np.arange(size)), "device": pa.array(random.choice(["cpu", "gpu"], size))}
    return pa.table(columns, schema=SUMMARY)


def pieces_of(table: pa.Table, sizes: list[int]) -> list[pa.Table]:
    ends = np.cumsum([0, *sizes])
    return [table.slice(start, size) for start, size in zip(ends[:-1], sizes, strict=True)]


def test_totals_and_chosen_rows_are_those_of_the_whole_table() -> None:
    whole = pa.concat_tables(pieces_of(summary(sum(SIZES)), SIZES))
    found = gather(pieces_of(whole, SIZES), SIZES, SUSPECT)
    totals = found.totals
    assert (totals.rows, totals.devices) == (sum(SIZES), {"cpu", "gpu"})
    for key in (*OF_SLICES, "codes_in_use"):
        assert totals.mean(key) == pc.mean(whole[key]).as_py()  # to the last bit
    assert totals.means["suspected_copies"] == (whole["copy_ratio"].to_numpy() < SUSPECT).mean() > 0
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(whole["level"]).to_pylist()}
    assert list(totals.per_level.items()) == list(counted.items())  # in this order
    assert found.measured.equals(whole.take(evenly_spaced(len(whole), MOST)))
    assert found.plotted.equals(whole)
    for key in LOWEST_OF:
        assert found.lowest[key].equals(whole.take(pc.sort_indices(whole, [(key, "ascending")])[:LOWEST]))
    levels = whole["level"].to_numpy()
    firsts = np.concatenate([np.flatnonzero(levels == level)[:FIRSTS] for level in np.unique(levels)])
    assert found.firsts.equals(whole.take(firsts))


def test_a_batch_without_slices_or_without_measures_has_no_means() -> None:
    for sizes in ([], [0]):
        nothing = gather(pieces_of(summary(0), sizes), sizes, SUSPECT)
        assert (nothing.totals.rows, nothing.totals.mean("codes_in_use"), len(nothing.firsts)) == (0, None, 0)
    unmeasured = summary(9)
    for key in OF_SLICES:
        column = SUMMARY.get_field_index(key)
        unmeasured = unmeasured.set_column(column, key, pa.nulls(9, pa.float32()))
    found = gather([unmeasured], [9], None)
    assert (found.totals.mean("ssim_real"), found.lowest) == (None, {})


def test_a_huge_batch_is_measured_on_rows_of_few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_rows(SIZES).tolist() == evenly_spaced(sum(SIZES), MOST).tolist()
    monkeypatch.setattr(rows, "HUGE", 10**5)
    sizes = [0, *[1000] * 1000]
    chosen = measured_rows(sizes)
    assert (len(chosen), len(np.unique(chosen)), len(np.unique(chosen // 1000))) == (MOST, MOST, 128)
    assert (chosen[0], chosen[-1]) == (0, 999_999)
    assert (np.diff(chosen) > 0).all()


def test_parts_are_read_in_the_order_of_their_numbers(place: str) -> None:
    whole = summary(60)
    numbers = [99_999, 100_000, 100_001]  # "part-100000" is before "part-99999" in a listing
    for number, piece in zip(numbers, pieces_of(whole, [20] * 3), strict=True):
        storage.write_bytes(part_uri(place, number), tables.to_bytes(piece, 20))
    found = read_rows(place, [entry_of(place, number, 20) for number in numbers], False, SUSPECT)
    assert found.measured.equals(whole.drop_columns(["sha256"]))


def test_totals_are_of_the_columns_that_there_are() -> None:
    some = Totals(SUSPECT).add(summary(5).select(["level", *OF_SLICES]))
    assert (some.mean("codes_in_use"), some.devices, len(some.means)) == (None, set(), len(OF_SLICES) + 1)
