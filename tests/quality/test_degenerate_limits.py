"""A few real slices that are copies, or blank, must not lower the limits for synthetic ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from oasisgen import cluster
from oasisgen.config.pack import PackConfig
from oasisgen.data.feed import Feed
from oasisgen.data.pack import pack
from oasisgen.data.slices import DataSet, file_name, open_data_set, stream_slices
from oasisgen.errors import UserError
from oasisgen.quality import gate
from oasisgen.quality.batch import mean_scores
from oasisgen.quality.nearest import ReferenceComparer
from oasisgen.quality.reference import ReferenceData, choose, read_reference_data, store_bytes
from oasisgen.quality.searchable import search_bytes, searchable
from oasisgen.quality.sets import Slices, compare_slices, select_levels
from tests.conftest import png, requested

COPIES = 32
TRAIN, VALIDATE = "keras_png_slices_train", "keras_png_slices_validate"


@pytest.fixture(scope="module")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Virtual subjects with case 001 of train in validate too, as 009, and with level 0 all black everywhere."""
    folder = tmp_path_factory.mktemp("degenerate")
    shutil.copytree(raw, folder / "raw")
    for level in range(32):
        shutil.copy(
            folder / "raw" / TRAIN / file_name("001", level), folder / "raw" / VALIDATE / file_name("009", level)
        )
    for file in (folder / "raw").rglob(file_name("*", 0)):
        file.write_bytes(png(np.zeros((256, 256), np.uint8)))
    pack(PackConfig(str(folder / "raw"), str(folder / "data")))
    return open_data_set(str(folder / "data"))


@pytest.fixture(scope="module")
def references(data: DataSet) -> ReferenceData:
    return read_reference_data(data, requested(reject="copies", count=COPIES))


def training_slices(feed: Feed, case: str) -> Slices:
    """Copies of a case's slices, but for the black one."""
    columns = {name: np.concatenate([block[name] for block in feed.blocks]) for name in ("case", "level", "image")}
    mine = (columns["case"] == case) & (columns["level"] > 0)
    return Slices(columns["image"][mine], columns["level"][mine])


@pytest.mark.parametrize("case", ["001", "002"])  # the first lies in validate too
def test_copies_are_suspected_and_refused_though_real_slices_are_degenerate(
    case: str, references: ReferenceData
) -> None:
    copies = training_slices(references.train.load(), case)
    compared = compare_slices(copies, references.train, references.held_out, 0)
    suspected = mean_scores(compared, references.scores)["suspected_copies"]
    assert (suspected.value, suspected.reference < 0.05) == (1.0, True)

    batch = {"id": np.arange(len(copies.levels)), "image": copies.images, "level": copies.levels}
    batch = ReferenceComparer(references.train, references.held_out, 0)(batch)
    refused = gate.QualityFilter(gate.limits(references.scores, "copies"))(batch)["refused"]
    assert len(refused) == 31
    assert all(reason.startswith("suspected copy") for reason in refused)


def test_levels_without_a_usable_held_out_slice_are_one_line(data: DataSet) -> None:
    with pytest.raises(UserError, match=r"no held-out slice of the requested levels that is neither blank nor a copy$"):
        read_reference_data(data, requested(levels=(0,)))


def test_two_scans_of_one_held_out_subject_are_one_line(raw: Path, tmp_path: Path) -> None:
    for split, name in ((TRAIN, "1"), (VALIDATE, "sub-2_ses-1"), (VALIDATE, "sub-2_ses-2")):
        (tmp_path / "raw" / split).mkdir(parents=True, exist_ok=True)
        for level in (0, 1):
            shutil.copy(raw / TRAIN / file_name("001", level), tmp_path / "raw" / split / f"{name}_slice_{level}.png")
    pack(PackConfig(str(tmp_path / "raw"), str(tmp_path / "data")))
    said = (
        r"validate holds slices of one subject, sub-2: measuring needs at least 2; pack more, or name another .*--data$"
    )
    with pytest.raises(UserError, match=said):
        read_reference_data(open_data_set(str(tmp_path / "data")), requested(levels=(0, 1)))


def test_training_slices_that_do_not_fit_into_memory_are_read_from_storage_with_the_same_result(
    references: ReferenceData, data: DataSet
) -> None:
    stored = searchable(stream_slices(data, "train"))
    some = select_levels(references.held_out.load(), np.arange(8))
    compared = [compare_slices(some, train, references.held_out, 0) for train in (references.train, stored)]
    assert compared[0].equals(compared[1])
    wanted = np.resize(np.arange(32), 64)
    of_both = [select_levels(train.load(), wanted) for train in (references.train, stored)]
    assert all(np.array_equal(*columns) for columns in zip(*of_both, strict=True))


def test_the_preflight_counts_what_is_searched_and_where_slices_lie(
    references: ReferenceData, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(value: object) -> int:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
        return value.nbytes if isinstance(value, np.ndarray) else sum(map(size, parts))

    for split, of in (("train", references.train), ("validate", references.held_out)):
        held = sum(map(size, [*of.load_blocks(), of.load_rotations()]))
        assert 0.5 < held / search_bytes(data, split) < 1
    all_of_it = store_bytes(data, "memory")
    assert all_of_it - store_bytes(data, "stream") == data.pixels("train")
    for store, feed in [(all_of_it, "memory"), (all_of_it - 1, "stream")]:
        monkeypatch.setattr(cluster, "too_small", lambda count, cpus, store=store: "too small" if count > store else "")
        assert choose(data) == feed
