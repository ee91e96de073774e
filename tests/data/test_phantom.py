from pathlib import Path

import numpy as np

from oasisgen.data.phantom import COMPLETE, subject, virtual_subject, write_phantoms
from oasisgen.data.slices import DataSet
from tests.conftest import digests


def test_a_subject_is_a_pure_function_of_its_seed_and_number() -> None:
    a = subject(3, 5)
    assert a.shape == (32, 256, 256)
    assert a.dtype == np.uint8
    assert np.array_equal(a, subject(3, 5))
    assert not np.array_equal(a, subject(4, 5))


def test_subjects_are_different_people_with_a_brain_in_the_middle() -> None:
    people = [subject(0, number).astype(float) for number in range(1, 5)]
    brains = [person[16] > 30 for person in people]
    areas = [brain.mean() for brain in brains]
    assert all(0.2 < area < 0.6 for area in areas)
    assert max(areas) > 1.03 * min(areas)
    for person in people:
        assert (person[:, :8] == 0).all()  # the head does not touch the border
        assert person.max(axis=(1, 2)).min() == 255  # every slice uses the whole range
    for i, a in enumerate(people):
        for b in people[i + 1 :]:
            assert np.corrcoef(a[16].ravel(), b[16].ravel())[0, 1] < 0.97


def test_the_layout_is_that_of_oasis(raw: Path) -> None:
    names = sorted(file.name for file in (raw / "keras_png_slices_validate").iterdir())
    assert len(names) == 64
    assert names[0] == "case_004_slice_0.nii.png"
    maps = {file.name for file in (raw / "keras_png_slices_seg_validate").iterdir()}
    assert maps == {name.replace("case_", "seg_") for name in names}


def test_every_virtual_slice_has_a_map_of_its_tissues(data: DataSet) -> None:
    assert [of.name for of in data.description.label_classes] == ["background", "CSF", "grey matter", "white matter"]
    assert data.description.slices_without_labels == 0
    images, tissues = virtual_subject(0, 1)
    brightness = [images[tissues == tissue].mean() for tissue in range(4)]
    assert brightness == sorted(brightness)  # as in T1-weighted scans
    assert brightness[0] == 0
    shares = [(tissues == tissue).mean() for tissue in range(4)]
    assert min(shares) > 0.02


def test_a_finished_folder_is_left_as_it_is_and_an_unfinished_one_is_finished(connected: str, tmp_path: Path) -> None:
    def write() -> dict[str, int]:
        write_phantoms(str(tmp_path), {"train": 1}, seed=0)
        return {str(file): file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}

    first = write()
    assert len(digests(tmp_path, "*.png")) == 2 * 32
    assert write() == first
    (tmp_path / COMPLETE).unlink()
    for file in tmp_path.rglob("*_slice_7.nii.png"):
        file.unlink()
    again = write()
    assert again.keys() == first.keys()
    assert again != first
