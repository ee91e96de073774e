"""uint8 <-> [-1, 1]. Separate from `slices`, so that processes that need no torch start faster."""

import torch


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1], any shape."""
    return image.float() / 127.5 - 1.0


def to_share(image: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] -> float32 in [0, 1], any shape."""
    return image.float() / 255.0


def share_to_unit(x: torch.Tensor) -> torch.Tensor:
    """float in [0, 1] -> float32 in [-1, 1], any shape."""
    return to_unit(x * 255.0)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] (clipped) -> uint8 in [0, 255], any shape; the exact inverse of `to_unit`."""
    return ((x.float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
