"""The segmenter: a slice -> the class of each pixel, such as its tissue. It judges pairs, and is in no bundle."""

from importlib.util import find_spec

import torch
from torch import nn

from oasisgen.config.segmenter import SegmenterConfig
from oasisgen.data.pixels import to_unit
from oasisgen.errors import UserError
from oasisgen.precision import autocast

HALVINGS = 3
MISSING = (
    "the segmenter is MONAI's U-Net, and monai is not installed: install requirements.lock, or the extra `probe`, on "
    "every node"
)


def require_monai() -> None:
    """Raise UserError if MONAI is not installed."""
    if not find_spec("monai"):
        raise UserError(MISSING)


class Segmenter(nn.Module):
    """MONAI's U-Net. Instance normalisation, so that the result does not depend on the number of workers."""

    def __init__(self, config: SegmenterConfig, classes: int) -> None:
        """`classes` is the number of classes. Raises as `require_monai`."""
        super().__init__()
        require_monai()
        from monai.networks.nets.unet import UNet  # here: it takes seconds to import

        self.layers = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=classes,
            channels=[config.channels * 2**halving for halving in range(1 + HALVINGS)],
            strides=[2] * HALVINGS,
            norm="instance",
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Slices (B, H, W) uint8 -> logits (B, K, H, W) of K classes."""
        return self.layers(to_unit(images.unsqueeze(1)).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def label_map(self, images: torch.Tensor) -> torch.Tensor:
        """Slices (B, H, W) uint8 -> the class of each pixel (B, H, W) uint8."""
        with autocast(images.device):
            return self(images).argmax(1).to(torch.uint8)  # (B, H, W)
