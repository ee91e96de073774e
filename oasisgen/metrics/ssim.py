"""Similarity of pairs of 8-bit slices."""

from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

DATA_RANGE = 255.0


WINDOW = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))  # 11 taps, sigma 1.5


TAPS = WINDOW.numpy(), WINDOW.numpy()


SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, from the finest scale to the coarsest


class Moments(NamedTuple):
    """Images (…, H, W) float32 and the moments of their windows: torch tensors, with gradients, or a NumPy image."""

    pixels: Any
    mean: Any
    power: Any  # the square of the mean
    variance: Any


@torch.no_grad()
def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of each pair: (N, H, W) uint8 twice -> (N,) float32 (Wang et al. 2004, IEEE TIP 13:600-612).

    11 x 11 Gaussian window, data range 255, reflected borders. The values are those of torchmetrics, but OpenCV's
    separable filter replaces its 121-tap convolution (`make bench` compares their speed).
    """
    return torch.cat([ssim_to(x, y[None]) for x, y in zip(a.cpu(), b.cpu(), strict=True)])


def ssim_to(a: torch.Tensor, many: torch.Tensor) -> torch.Tensor:
    """SSIM of one image, (H, W) uint8, to each of (N, H, W) uint8: (N,) float32.

    SSIM is 1 where both images are black, so only the box around the rest is computed, with a window's reach around it.
    """
    image, others = a.numpy(), many.numpy()
    x, scores = _moments(image.astype(np.float32)), np.ones(len(others), np.float32)
    for number, other in enumerate(others):
        left, top, width, height = cv2.boundingRect(image | other)  # no width if all is black
        if width:
            box = _reach(top, height), _reach(left, width)
            y = _moments(other[box].astype(np.float32))
            luminance, contrast = _similarity(Moments(*(each[box] for each in x)), y)
            scores[number] -= (luminance.size - np.vdot(luminance, contrast)) / image.size
    return torch.from_numpy(scores)


def _reach(first: int, count: int) -> slice:
    """`count` pixels of an axis from `first` on, and around them what their windows cover, reflections included."""
    return slice(max(0, first - 6), first + count + 6)


def ssim_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 - mean SSIM, with a gradient: (B, 1, H, W) in [-1, 1] twice -> () (Zhao et al. 2017, IEEE TCI 3:47-57)."""
    grey = DATA_RANGE / 2.0
    a, b = ((image.squeeze(1) + 1.0) * grey for image in (x, y))  # (B, H, W) each
    luminance, contrast = _similarity(_moments(a), _moments(b))
    return 1.0 - (luminance * contrast).mean()


@torch.no_grad()
def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """MS-SSIM of each pair: (N, H, W) uint8 twice -> (N,) float32 (Wang et al. 2003, Asilomar 37:1398-1402).

    Contrast and structure at five scales, luminance at the last; negative values of a scale count as 0. Slices of 160
    pixels or less have fewer scales (see `scale_weights`). The values are those of torchmetrics.
    """
    x, y = a.float(), b.float()
    product, weights = torch.ones(len(x)), scale_weights(min(a.shape[-2:]))
    for scale, weight in enumerate(weights):
        luminance, contrast = _similarity(_moments(x), _moments(y))  # (N, H, W) each
        last = scale == len(weights) - 1
        value = (luminance * contrast if last else contrast[..., 5:-5, 5:-5]).mean((1, 2))  # (N,): whole windows
        product = product * value.clamp(min=0) ** weight
        x, y = (F.avg_pool2d(each[:, None], 2).squeeze(1) for each in (x, y))  # (N, H/2, W/2)
    return product


def scale_weights(side: int) -> tuple[float, ...]:
    """The weights of MS-SSIM's scales for slices whose shorter side is `side`, from the finest to the coarsest.

    The window must fit into the slice at every scale: five scales need 161 pixels, four 81, three 41. The weights of
    fewer than five are divided by their sum.
    """
    count = max(n for n in range(1, len(SCALES) + 1) if n == 1 or side > (len(WINDOW) - 1) << (n - 1))
    if count == len(SCALES):
        return SCALES
    return tuple(weight / sum(SCALES[:count]) for weight in SCALES[:count])


def _moments(x: Any) -> Moments:
    mean = _blur(x)
    power, variance = mean * mean, _blur(x * x)
    variance -= power
    return Moments(x, mean, power, variance.clip(0))


def _similarity(x: Moments, y: Moments) -> tuple[Any, Any]:
    """Luminance, and contrast with structure, whose product is SSIM: maps (…, H, W). Works in place where possible."""
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance, levels = x.mean * y.mean, x.power + y.power
    contrast, spread = _blur(x.pixels * y.pixels), x.variance + y.variance
    contrast -= luminance
    for upper, lower, constant in ((luminance, levels, c1), (contrast, spread, c2)):
        upper *= 2
        upper += constant
        lower += constant
        upper /= lower
    return luminance, contrast


def _blur(x: Any) -> Any:
    """Gaussian means of windows, borders reflected: (…, H, W) -> (…, H, W)."""
    if isinstance(x, np.ndarray):  # one image fits into a core's cache: OpenCV is fastest
        return cv2.sepFilter2D(x, -1, *TAPS, borderType=cv2.BORDER_REFLECT_101)
    H, W = x.shape[-2:]
    return _window(H, x.device).t() @ (x @ _window(W, x.device))


@lru_cache
def _window(side: int, device: torch.device) -> torch.Tensor:
    """The Gaussian mean along an axis, borders reflected, as a matrix (side, side) to multiply from the right."""
    pixels = F.pad(torch.eye(side)[:, None], (5, 5), mode="reflect")  # (side, 1, side+10)
    return F.conv1d(pixels, WINDOW.view(1, 1, 11)).squeeze(1).to(device)  # (side, side)


@torch.no_grad()
def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR of each pair in dB: (N, H, W) uint8 twice -> (N,) float32.

    Equal images would score infinity, and so would every mean over them: they score as if one pixel differed by 1.
    """
    mean_square = (a.float() - b.float()).pow(2).mean((1, 2)).clamp(min=1.0 / a[0].numel())  # (N,)
    return 10.0 * torch.log10(DATA_RANGE**2 / mean_square)


WINDOW /= WINDOW.sum()
