"""Per-image similarity of 8-bit slices."""

from functools import lru_cache

import torch
import torch.nn.functional as F

DATA_RANGE = 255.0
WINDOW = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))  # 11 taps, sigma 1.5
WINDOW /= WINDOW.sum()
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, from the finest down


@torch.no_grad()
def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of each pair: (N, H, W) uint8 twice -> (N,) float32 (Wang et al. 2004, IEEE TIP 13:600-612).

    11 x 11 Gaussian window, data range 255, reflected borders: the definition and the value of torchmetrics, whose
    121-tap convolution is replaced by a product with a banded matrix from each side (`make bench` compares them).
    """
    return _similarity(a.float(), b.float())[0]


def ssim_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 - mean SSIM, with a gradient: (B, 1, H, W) in [-1, 1] twice -> () (Zhao et al. 2017, IEEE TCI 3:47-57)."""
    grey = DATA_RANGE / 2.0
    return 1.0 - _similarity(((x + 1.0) * grey).squeeze(1), ((y + 1.0) * grey).squeeze(1))[0].mean()


@torch.no_grad()
def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """MS-SSIM of each pair: (N, H, W) uint8 twice -> (N,) float32 (Wang et al. 2003, Asilomar 37:1398-1402).

    Contrast and structure at five scales, luminance at the last; negative values of a scale count as 0. The value of
    torchmetrics.
    """
    x, y = a.float(), b.float()
    product = torch.ones(len(x))
    for scale, weight in enumerate(SCALES):
        whole, contrast = _similarity(x, y)  # (N,) each
        product = product * (whole if scale == len(SCALES) - 1 else contrast).clamp(min=0) ** weight
        x, y = (F.avg_pool2d(each[:, None], 2).squeeze(1) for each in (x, y))  # (N, H/2, W/2)
    return product


def _similarity(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM, and its part without luminance, of each pair: (N, H, W) float32 twice -> (N,) twice."""
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)  # (N, H, W) each
    variances = (xx - mean_x**2).clamp_(min=0) + (yy - mean_y**2).clamp_(min=0)
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean((1, 2)), contrast[:, 5:-5, 5:-5].mean((1, 2))  # whole windows, as torchmetrics


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian means, (N, H, W) -> (N, H, W), along one axis and then the other."""
    _, H, W = x.shape
    return _window(H, x.device).t() @ (x @ _window(W, x.device))


@lru_cache
def _window(side: int, device: torch.device) -> torch.Tensor:
    """The Gaussian mean along an axis, its borders reflected, as a matrix (side, side) to multiply from the right."""
    pixels = F.pad(torch.eye(side)[:, None], (5, 5), mode="reflect")  # (side, 1, side+10)
    return F.conv1d(pixels, WINDOW.view(1, 1, 11)).squeeze(1).to(device)  # (side, side)


@torch.no_grad()
def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR of each pair in dB: (N, H, W) uint8 twice -> (N,) float32.

    Equal images would score infinity and take every mean with them: they score as if one pixel were off by one.
    """
    mean_square = (a.float() - b.float()).pow(2).mean((1, 2)).clamp(min=1.0 / a[0].numel())  # (N,)
    return 10.0 * torch.log10(DATA_RANGE**2 / mean_square)
