"""Features of Inception v3, trained on photographs, for users who have its weights: FID and KID as usually reported."""

import hashlib
import io
import pickle

import torch
import torch.nn.functional as F
from torch import nn

from oasisgen import storage
from oasisgen.errors import UserError

SIDE = 299  # pixels of the images it was trained on


class Inception(nn.Module):
    """A slice -> its features in Inception v3 (Szegedy et al. 2015, arXiv:1512.00567), the input of the classifier."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3  # here: it takes seconds to import

        self.network = inception_v3(weights=None, init_weights=False, transform_input=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] -> (B, 2048)."""
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)  # (B, 1, 299, 299)
        return self.network(x.expand(-1, 3, -1, -1))  # (B, 2048)


def digest(uri: str) -> str:
    """The digest of the weights at `uri`. Raises UserError if these are not weights of torchvision's `inception_v3`."""
    data = _read(uri)
    _build(data, uri)
    return hashlib.sha256(data).hexdigest()


def read_inception(uri: str, expected: str = "") -> Inception:
    """The network in evaluation mode, with the weights for torchvision's `inception_v3` at `uri`.

    Raises UserError if their digest is not the `expected` one.
    """
    data = _read(uri)
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise UserError(f"weights {uri} were replaced while the job ran: put the old ones back, or use another --out")
    return _build(data, uri)


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise UserError(f"no weights at {uri}: name a file with --inception, or leave it out") from None


def _build(data: bytes, uri: str) -> Inception:
    inception = Inception()
    try:
        inception.network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        raise UserError(f"{uri} does not hold the weights of torchvision's inception_v3: name another file") from None
    inception.network.fc = nn.Identity()
    return inception.eval().requires_grad_(False)
