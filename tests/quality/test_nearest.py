from collections.abc import Callable

import numpy as np
import pytest
import torch

from oasisgen.data.feed import Feed
from oasisgen.data.phantom import subject
from oasisgen.metrics.ssim import ssim
from oasisgen.quality.nearest import (
    AS_THEY_LIE,
    CANDIDATES,
    HELD_OUT,
    Pose,
    Probe,
    RealSlices,
    SearchIndex,
    index_in_memory,
)
from oasisgen.quality.searchable import rotations, search_block
from oasisgen.quality.sets import rows_of_levels
from oasisgen.quality.thumbnails import centre, centred, thumbnail

LEVELS = [0, 10, 20, 30]


def feed(numbers: range) -> Feed:
    """Four levels of some virtual subjects, a block each."""
    return Feed(
        [
            {
                "case": np.array([f"{n:03d}"] * 4, object),
                "subject": np.array([f"{n:03d}"] * 4, object),
                "level": np.array(LEVELS),
                "image": subject(0, n)[LEVELS],
            }
            for n in numbers
        ]
    )


@pytest.fixture(scope="module")
def references() -> RealSlices:
    return RealSlices(index_in_memory(feed(range(1, 13))), index_in_memory(feed(range(20, 40))))


def test_a_copy_of_a_training_slice_is_found_out(references: RealSlices) -> None:
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]  # case 007, level 20
    found = references.compare(image, 20, [0])
    assert (found.nearest_case, found.nearest_level) == ("007", 20)
    assert found.ssim_train_max == pytest.approx(1.0)
    assert found.copy_ratio == pytest.approx(0, abs=1e-4)


def test_a_model_without_levels_gets_that_of_the_nearest(references: RealSlices) -> None:
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]
    assert references.compare(image, -1, [0]).level == 20


DAMAGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {  # what becomes of the image, of the level
    "shifted by 4 pixels": (lambda image: np.roll(image, (4, 4), (0, 1)), 0),
    "shifted by 3 and 7 pixels": (lambda image: np.roll(image, (-3, 7), (0, 1)), 0),
    "mirrored": (lambda image: image[:, ::-1], 0),
    "filed four levels higher": (lambda image: image, 4),
    "filed four levels lower": (lambda image: image, -4),
    "mirrored, shifted, filed elsewhere": (lambda image: np.roll(image[:, ::-1], (4, -2), (0, 1)), 3),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_copy_is_found_out_however_it_is(name: str, references: RealSlices) -> None:
    change, levels = DAMAGES[name]
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]  # case 007, level 20
    found = references.compare(np.ascontiguousarray(change(image)), 20 + levels, [0])
    assert (found.nearest_case, found.nearest_level) == ("007", 20)
    assert found.copy_ratio < 0.1


def test_held_out_slices_are_looked_for_in_the_same_way(references: RealSlices) -> None:
    image = np.roll(subject(0, 25)[20][:, ::-1], (4, 4), (0, 1))  # case 025 of the held-out ones
    assert references.compare(image, 23, [0]).copy_ratio > 1e3  # nothing is as near to it as that
    assert references.compare(image, 23, [0], subject="025").copy_ratio < 10


def test_what_a_copy_lacks_does_not_hide_it(references: RealSlices) -> None:
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]
    image[120:, :110] = 0  # its centre moves by many pixels
    found = references.compare(image, 20, [0])
    assert (found.nearest_case, found.copy_ratio < 0.7) == ("007", True)


def test_ssim_real_is_its_definition(references: RealSlices) -> None:
    image = subject(0, 50)[10]
    found = references.compare(image, 10, [7, 3])
    pixels = torch.from_numpy(image)
    real = [block["image"][1] for block in references.held_out.slices.blocks]
    drawn = np.random.default_rng([7, 3]).permutation(np.arange(20))[:HELD_OUT]
    expected = np.mean([float(ssim(pixels[None], torch.from_numpy(real[i])[None])) for i in drawn])
    assert found.ssim_real == pytest.approx(expected, abs=1e-6)
    assert references.compare(image, 10, [7, 3]) == found
    assert references.compare(image, 10, [7, 4]).ssim_real != found.ssim_real


def test_a_held_out_slice_is_not_compared_with_its_own_case(references: RealSlices) -> None:
    block = references.held_out.slices.blocks[0]
    alone = RealSlices(references.train, index_in_memory(Feed([block, references.held_out.slices.blocks[1]])))
    found = alone.compare(block["image"][0], 0, [0], subject="020")
    assert found.ssim_real < 0.99


def test_a_second_scan_of_the_same_person_is_left_out_too(references: RealSlices) -> None:
    first, other = references.held_out.slices.blocks[:2]
    second = first | {"case": np.array(["020_MR2"] * 4, object)}  # the very pixels, of the same subject
    for scans in ([first, other], [first, second, other]):
        found = RealSlices(references.train, index_in_memory(Feed(scans))).compare(
            first["image"][0], 0, [0], subject="020"
        )
        assert found.ssim_real < 0.99


def test_rows_are_of_the_levels_wanted_as_far_as_there_are_so_many() -> None:
    levels = np.tile(np.arange(32), 5)
    wanted = np.array([3, 30, 3, 7])
    assert sorted(levels[rows_of_levels(levels, wanted)]) == [3, 3, 7, 30]
    assert np.bincount(levels[rows_of_levels(levels, np.repeat([1, 2], 100))]).tolist() == [0, 5, 5]


def every_pose(index: SearchIndex, probe: Probe, lowest: int, highest: int) -> list[Pose]:
    """The candidates when all thumbnails of the window are compared. In float64: equal slices have equal distances."""
    levels = index.slices.column("level")
    order = np.argsort(levels, kind="stable")
    places = order[slice(*np.searchsorted(levels[order], [lowest, highest + 1]))]
    images = index.slices.rows(places, "image")

    def nearest(real: np.ndarray, probes: np.ndarray, count: int) -> list[int]:
        distances = np.square(real[:, None].astype(np.float64) - probes).sum(2)  # (M, P)
        return distances.ravel().argsort(kind="stable")[:count].tolist()

    poses = []
    for number in nearest(np.stack([thumbnail(centred(image)) for image in images]), probe.centred, CANDIDATES):
        row, mirrored = int(places[number // 2]), bool(number % 2)
        down, right = centre(images[number // 2])
        right = probe.image.shape[1] - 1 - right if mirrored else right
        poses.append(Pose(row, mirrored, round(probe.centre[0] - down), round(probe.centre[1] - right)))
    for number in nearest(np.stack([thumbnail(image) for image in images]), probe.as_it_lies, AS_THEY_LIE):
        poses.append(Pose(int(places[number]), False, 0, 0))
    return list(dict.fromkeys(poses))


def test_candidates_are_those_of_comparing_all_thumbnails(references: RealSlices) -> None:
    block = references.train.slices.blocks
    twins = [{**of, "case": of["case"] + " again"} for of in block[3:8]]  # equal pixels: the lower row comes first
    black = {**block[0], "case": block[0]["case"] + " black", "image": np.zeros_like(block[0]["image"])}
    slices = Feed([*block, *twins, black])
    rotated = rotations(slices)
    blocks = [search_block(0, slices.blocks[:7], rotated), search_block(28, slices.blocks[7:], rotated)]
    search = SearchIndex(slices, blocks, rotated)
    images = [*slices.rows(np.array([2, 26]), "image"), subject(0, 50)[10], np.zeros((256, 256), np.uint8)]
    for image in [*images, *(np.ascontiguousarray(change(images[1])) for change, _ in DAMAGES.values())]:
        probe = Probe(image)
        for lowest, highest in [(16, 24), (0, 31), (6, 14)]:
            assert search.poses(probe, search.windows(lowest, highest)) == every_pose(search, probe, lowest, highest)
