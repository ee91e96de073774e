from pathlib import Path

import numpy as np

from oasisgen.data.phantom import subject


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
