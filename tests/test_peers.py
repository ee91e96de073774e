"""The peers of benchmarks/peers.py on a few slices of noise."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.peer_models import Diffusion
from benchmarks.peers import PEERS, STAGE_1_ONLY, measures, reconstruction_ssim, sampled, train
from oasisgen.config.data import Shape
from oasisgen.data.feed import Feed
from oasisgen.models.features import FeatureNetwork
from oasisgen.quality.sets import Slices

SHAPE = Shape(64, 64, 4)


def slices(count: int) -> Feed:
    """Slices of noise, those of four levels of each case."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE.image_size), np.uint8)
    cases = np.array([f"case-{number // 4}" for number in range(count)])
    return Feed([{"image": images, "level": np.arange(count) % 4, "case": cases, "subject": cases}])


@pytest.mark.slow  # 20 s
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_in_both_stages_and_samples(name: str) -> None:
    torch.manual_seed(0)
    images = slices(32)
    make = partial(Diffusion, steps=2) if name == "ldm" else PEERS[name][1]
    peer = make(images, SHAPE)
    untrained = reconstruction_ssim(peer, images.rows(np.arange(2), "image"))
    for step in range(2):
        peer.stage_1(step, 2)
    assert reconstruction_ssim(peer, images.rows(np.arange(2), "image")) != untrained
    if name in STAGE_1_ONLY:
        return
    for step in range(2):
        peer.stage_2(step, 2)
    made, rate = sampled(peer, 2)
    assert made.shape == (2, 64, 64)
    assert made.dtype == np.uint8
    assert not np.array_equal(*made)
    assert rate > 0


@pytest.mark.parametrize("cpu_threads", [0, 1])
def test_training_stops_where_it_is_scored(cpu_threads: int) -> None:
    numbers: list[tuple[int, int]] = []
    spent = list(train(lambda step, steps: numbers.append((step, steps)), [2e-6, 1e-6], cpu_threads))  # minutes
    assert [each.minutes for each in spent] == [1e-6, 2e-6]
    assert spent[-1].steps == len(numbers) >= spent[0].steps > 0
    assert [step for step, _ in numbers] == list(range(len(numbers)))
    assert all(steps > step for step, steps in numbers)


def test_copies_are_suspected_though_their_levels_are_unknown() -> None:
    training, held_out = slices(48), slices(32)
    held_out.blocks[0]["image"] = 255 - held_out.blocks[0]["image"]
    copies = Slices(training.rows(np.arange(16), "image"), np.full(16, -1))
    found = measures(copies, training, held_out, FeatureNetwork(SHAPE).eval())
    assert found["value"]["suspected_copies"] == 1.0
    assert found["reference"]["suspected_copies"] < 0.1
