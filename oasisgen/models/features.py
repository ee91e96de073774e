"""A small network whose features describe the texture and the anatomy of a slice."""

import math

import torch
from torch import nn

from oasisgen.config.data import SIDE_STEP, Shape

TEXTURE, ANATOMY = 64, 128


class FeatureNetwork(nn.Module):
    """A slice -> 192 features: 64 channel means of an early layer for texture, 128 of a late layer for anatomy.

    Trained on real slices only (`oasisgen.training.features`); no weights pretrained on photographs are loaded.
    """

    num_features = TEXTURE + ANATOMY  # torchmetrics reads this attribute

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        # Along a side with an odd number of regions, the last pooling window covers only one.
        places = math.prod(-(-side // SIDE_STEP // 2) for side in shape.image_size)  # 4 x 4 for 256 x 256 pixels

        def halve(narrow: int, wide: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU())

        self.early = nn.Sequential(halve(1, 8), halve(8, 24), halve(24, TEXTURE))  # (B, 64, H/8, W/8)
        self.late = nn.Sequential(halve(TEXTURE, 96), halve(96, 128), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten())
        self.anatomy = nn.Linear(128 * places, ANATOMY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] -> (B, 192)."""
        h = self.early(x)  # (B, 64, H/8, W/8)
        return torch.cat([h.mean((2, 3)), self.anatomy(self.late(h))], 1)  # (B, 192)
