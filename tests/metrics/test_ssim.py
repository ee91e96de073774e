from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from oasisgen.data.phantom import subject
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.ssim import psnr, ssim, ssim_loss, ssim_to


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Slices of two subjects, noise on one of them, and noise alone."""
    a, b = subject(0, 1)[::8], subject(0, 2)[::8]
    noise = np.random.default_rng(0).integers(0, 256, (2, 256, 256), np.uint8)
    noisy = np.clip(a + np.random.default_rng(1).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    return torch.from_numpy(np.concatenate([a, a, noise[:1]])), torch.from_numpy(np.concatenate([b, noisy, noise[1:]]))


def test_ssim_is_torchmetrics_value(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pairs
    expected = structural_similarity_index_measure(
        a.unsqueeze(1).float(), b.unsqueeze(1).float(), sigma=1.5, data_range=255.0, reduction="none"
    )
    assert torch.allclose(ssim(a, b), expected, atol=2e-6)  # type: ignore[arg-type]


def test_ssim_agrees_with_scikit_image(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Over its whole map: it leaves the border out of the mean, and reflects it in another way."""
    a, b = pairs
    for mine, x, y in zip(ssim(a, b), a.numpy(), b.numpy(), strict=True):
        _, theirs = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
        )
        assert float(mine) == pytest.approx(theirs.mean(), abs=1e-3)


def test_what_both_have_black_changes_nothing(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    black = torch.zeros(256, 256, dtype=torch.uint8)
    corner, middle = black.clone(), black.clone()
    corner[0, :3], middle[100:120, 90:150] = 200, 50
    many = torch.stack([*pairs[0], *pairs[1], black, corner, middle])
    for image in (pairs[0][0], black, corner, middle):
        assert torch.allclose(ssim_to(image, many), ssim(image.expand_as(many), many), atol=1e-6)


def test_the_loss_is_one_minus_ssim_and_following_its_gradient_raises_it(
    pairs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, b = pairs
    x, y = to_unit(a.unsqueeze(1)), to_unit(b.unsqueeze(1)).requires_grad_()  # (N, 1, 256, 256)
    loss = ssim_loss(x, y)
    assert loss.item() == pytest.approx(1.0 - float(ssim(a, b).mean()), abs=1e-5)
    loss.backward()
    assert y.grad is not None
    better = y.detach() - 1e-3 * y.grad / y.grad.norm()
    assert ssim_loss(x, better) < loss
    same = x.clone().requires_grad_()
    ssim_loss(x, same).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_psnr_agrees_with_scikit_image(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    for mine, x, y in zip(psnr(*pairs), pairs[0].numpy(), pairs[1].numpy(), strict=True):
        assert float(mine) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-3)


def test_equal_slices_score_one_and_the_least_difference_there_can_be(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, _ = pairs
    assert torch.allclose(ssim(a, a), torch.ones(len(a)))
    almost = a.clone()
    almost[:, 9, 9] ^= 1
    assert torch.allclose(psnr(a, a), psnr(a, almost))
    assert psnr(a, a).isfinite().all()


def test_on_real_slices_too(oasis: Path) -> None:
    from PIL import Image

    files = sorted((oasis / "keras_png_slices_validate").iterdir())[::300]
    images = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    a, b = images[:-1], images[1:]
    expected = structural_similarity_index_measure(
        a.unsqueeze(1).float(), b.unsqueeze(1).float(), sigma=1.5, data_range=255.0, reduction="none"
    )
    assert torch.allclose(ssim(a, b), expected, atol=2e-6)  # type: ignore[arg-type]
