"""Per-image similarity of 8-bit slices (Wang et al. 2004, IEEE TIP 13:600-612)."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


@torch.no_grad()
def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of each pair: (N, H, W) uint8 twice -> (N,) float32; 11 x 11 Gaussian window, data range 255."""
    value = structural_similarity_index_measure(
        a.unsqueeze(1).float(), b.unsqueeze(1).float(), sigma=1.5, data_range=255.0, reduction="none"
    )
    assert isinstance(value, torch.Tensor)
    return value.reshape(len(a))  # (N,)


@torch.no_grad()
def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR of each pair in dB: (N, H, W) uint8 twice -> (N,) float32; infinite for equal images."""
    return peak_signal_noise_ratio(a.float(), b.float(), data_range=255.0, reduction="none", dim=(1, 2))
