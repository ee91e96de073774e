from itertools import pairwise

import numpy as np
import pytest

from oasisgen.quality.thumbnails import (
    COARSE,
    FINE,
    NONE,
    ROUNDING,
    Nearest,
    Thumbnails,
    Window,
    rotation,
    thumbnails,
    weights,
)

T = 300  # pixels of a thumbnail here: more than the longest short vector has


def some_thumbnails(count: int, seed: int) -> np.ndarray:
    """(count, T) float32 from 0 to 255, much alike, with copies of each other: of rows 0 to 9, and black ones."""
    random = np.random.default_rng(seed)
    shapes = random.normal(0, 30, (20, T)).cumsum(1) / 4
    pixels = 100 + random.normal(0, 1, (count, 20)) @ shapes + random.normal(0, 4, (count, T))
    pixels[10:50] = np.tile(pixels[:10], (4, 1))
    pixels[50:90] = 0
    return np.clip(pixels, 0, 255).astype(np.float32)


def every(pixels: np.ndarray, probes: np.ndarray, window: Window, count: int) -> Nearest:
    """All pairs compared, as the search once did it."""
    here = pixels[window.first : window.first + len(window.wanted)].astype(np.float64)
    distances = np.square(here[:, None] - probes).sum(2)[window.wanted]  # (M, P)
    place, probe = np.divmod(np.arange(distances.size), len(probes))
    keys = np.stack([window.levels[window.wanted][place], window.rows[window.wanted][place], probe], 1)
    order = np.argsort(distances.ravel(), kind="stable")[:count]
    return Nearest(distances.ravel()[order], keys[order])


def window_of(first: int, last: int, wanted: np.ndarray) -> Window:
    places = np.arange(first, last)
    return Window(first, wanted[first:last], places // 80, 5000 + places)


ROTATION = rotation(some_thumbnails(500, 1))


def prepared(pixels: np.ndarray) -> Thumbnails:
    return thumbnails(pixels, ROTATION)


@pytest.fixture(scope="module")
def block() -> Thumbnails:
    return prepared(some_thumbnails(800, 0))


PROBES = {
    "like the others": lambda pixels: some_thumbnails(100, 0)[90:93] + np.float32(3),
    "unlike the others": lambda pixels: np.random.default_rng(2).uniform(0, 255, (3, T)).astype(np.float32),
    "copies, which four others equal": lambda pixels: pixels[[3, 4]],
    "black": lambda pixels: np.zeros((2, T), np.float32),
    "white": lambda pixels: np.full((1, T), 255, np.float32),
}


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("count", [1, 6])
def test_the_search_finds_what_comparing_all_thumbnails_finds(name: str, count: int, block: Thumbnails) -> None:
    probes = PROBES[name](block.pixels)
    some = np.random.default_rng(3).random(800) < 0.7
    for first, last, wanted in [(0, 800, some | True), (0, 500, some), (720, 723, some | True), (40, 95, some)]:
        window = window_of(first, last, wanted)
        expected, found = every(block.pixels, probes, window, count), block.nearest(prepared(probes), window, count)
        assert np.array_equal(found.keys, expected.keys)
        assert np.array_equal(found.distances, expected.distances)


def test_blocks_are_searched_one_after_the_other(block: Thumbnails) -> None:
    """The nearest of all are found, and of equally near ones those of the lowest level and row, in whatever block."""
    probes, wanted = block.pixels[[3, 700]], np.ones(800, bool)
    expected = every(block.pixels, probes, window_of(0, 800, wanted), 6)
    cuts = [0, 17, 40, 500, 800]
    for order in (1, -1):
        found = NONE
        for first, last in list(pairwise(cuts))[::order]:
            piece = prepared(block.pixels[first:last])
            whole = window_of(first, last, wanted)
            found = piece.nearest(prepared(probes), whole._replace(first=0), 6, found)
        assert np.array_equal(found.keys, expected.keys)
        assert np.array_equal(found.distances, expected.distances)


def test_few_thumbnails_are_compared_whole(block: Thumbnails, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    compare = Thumbnails._compare

    def counted(self: Thumbnails, probes: np.ndarray, window: Window, pairs: np.ndarray) -> Nearest:
        compared.append(len(pairs))
        return compare(self, probes, window, pairs)

    monkeypatch.setattr(Thumbnails, "_compare", counted)
    block.nearest(prepared(block.pixels[[500]] + np.float32(1)), window_of(0, 800, np.ones(800, bool)), 6)
    assert sum(compared) < 100


def test_short_vectors_are_no_farther_apart_than_thumbnails(block: Thumbnails) -> None:
    true = np.square(block.pixels[:1].astype(np.float64) - block.pixels).sum(1)
    for short in (block.coarse.T, block.fine):
        bounds = short @ weights(short[:1])[0]
        assert (bounds <= true + ROUNDING * 2 * block.longest).all()


def test_of_slices_that_are_equally_near_none_is_lost(block: Thumbnails) -> None:
    """They differ from the probe in the coordinates of short vectors only, so that bounds equal distances."""
    probe = block.pixels[[500]]
    for size in (COARSE, FINE):
        ways = np.random.default_rng(size).normal(0, 1, (800, size - 2))
        pixels = (probe + 100 * ways / np.linalg.norm(ways, axis=1, keepdims=True) @ ROTATION[: size - 2]).astype("f4")
        window = window_of(0, 800, np.ones(800, bool))
        expected = every(pixels, probe, window, 6)
        assert expected.distances[0] > 9_999
        assert np.array_equal(prepared(pixels).nearest(prepared(probe), window, 6).keys, expected.keys)


def test_nothing_is_found_where_nothing_is_wanted(block: Thumbnails) -> None:
    assert block.nearest(prepared(block.pixels[:1]), window_of(0, 50, np.zeros(800, bool)), 3) is NONE
