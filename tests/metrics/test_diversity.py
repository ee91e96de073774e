import numpy as np
import pytest
import torch

from oasisgen.data.phantom import subject
from oasisgen.metrics.diversity import pairs_of_a_level, variety
from oasisgen.metrics.ssim import ms_ssim, scale_weights


def test_ms_ssim_is_torchmetrics_value() -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    a, b = (torch.from_numpy(subject(0, number)[::6]) for number in (1, 2))
    noise = torch.randint(0, 256, (2, 256, 256), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    a, b = torch.cat([a, noise[:1]]), torch.cat([b, noise[1:]])
    expected = multiscale_structural_similarity_index_measure(
        a.unsqueeze(1).float(), b.unsqueeze(1).float(), sigma=1.5, data_range=255.0, reduction="none", normalize="relu"
    )
    assert torch.allclose(ms_ssim(a, b), expected, atol=1e-5)
    assert torch.allclose(ms_ssim(a, a), torch.ones(len(a)))


def test_pairs_are_of_one_level_and_two_cases() -> None:
    levels = np.repeat(np.arange(8), 10)
    cases = np.tile(np.repeat(np.arange(5), 2), 8)
    pairs = pairs_of_a_level(levels, cases, 80, seed=0)
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == 80
    assert (levels[pairs[:, 0]] == levels[pairs[:, 1]]).all()
    assert (cases[pairs[:, 0]] != cases[pairs[:, 1]]).all()
    assert np.bincount(levels[pairs[:, 0]]).tolist() == [10] * 8


def test_repeated_slices_have_no_variety_and_different_people_have() -> None:
    people = np.stack([subject(0, number)[20] for number in range(1, 6)])
    levels = np.full(5, 20)
    assert variety(np.repeat(people[:1], 5, 0), levels) == pytest.approx(1.0)
    assert variety(people, levels) < 0.9
    assert np.isnan(variety(people[:1], levels[:1]))


@pytest.mark.parametrize(("size", "scales"), [((64, 96), 3), ((128, 320), 4), ((160, 160), 4), ((192, 192), 5)])
def test_smaller_slices_have_fewer_scales(size: tuple[int, int], scales: int) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    random = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (2, *size), generator=random, dtype=torch.uint8)
    b = (0.8 * a + 0.2 * torch.randint(0, 256, a.shape, generator=random)).to(torch.uint8)
    weights = scale_weights(min(size))
    assert len(weights) == scales
    assert sum(weights) == pytest.approx(1.0, abs=2e-4)
    theirs = multiscale_structural_similarity_index_measure(
        a.unsqueeze(1).float(),
        b.unsqueeze(1).float(),
        sigma=1.5,
        data_range=255.0,
        reduction="none",
        normalize="relu",
        betas=weights,
    )
    assert torch.allclose(ms_ssim(a, b), theirs, atol=1e-4)
