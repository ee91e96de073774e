"""A few real slices that are copies, or blank, must not lower the limits for synthetic ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from oasisgen.config.pack import PackConfig
from oasisgen.data.feed import Feed
from oasisgen.data.pack import pack
from oasisgen.data.slices import file_name, open_data_set
from oasisgen.quality import gate
from oasisgen.quality.batch import mean_scores
from oasisgen.quality.nearest import ReferenceComparer
from oasisgen.quality.reference import ReferenceData, read_reference_data
from oasisgen.quality.sets import Slices, compare_slices
from tests.conftest import png, requested

COPIES = 32
TRAIN, VALIDATE = "keras_png_slices_train", "keras_png_slices_validate"


@pytest.fixture(scope="module")
def references(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> ReferenceData:
    """Of virtual subjects with case 001 of train in validate too, as 009, and with level 0 all black everywhere."""
    folder = tmp_path_factory.mktemp("degenerate")
    shutil.copytree(raw, folder / "raw")
    for level in range(32):
        shutil.copy(
            folder / "raw" / TRAIN / file_name("001", level), folder / "raw" / VALIDATE / file_name("009", level)
        )
    for file in (folder / "raw").rglob(file_name("*", 0)):
        file.write_bytes(png(np.zeros((256, 256), np.uint8)))
    pack(PackConfig(str(folder / "raw"), str(folder / "data")))
    return read_reference_data(open_data_set(str(folder / "data")), requested(reject="copies", count=COPIES))


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
