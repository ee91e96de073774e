"""From a seed to a slice: a synthetic slice is a pure function of (model bundle, base seed, sample id)."""

from typing import Any

import numpy as np
import torch

from oasisgen.data.slices import to_uint8
from oasisgen.models.bundle import read_bundle

# Ids are computed in aligned groups of this many, whole even where few of them are wanted: convolutions of another
# batch size may differ in the last bit; so a slice always passes the model in the same place of the same shape.
GROUP = 16


def level_of(number: int, levels: list[int]) -> int:
    """The level of a sample id: the wanted levels in turn."""
    return levels[number % len(levels)]


def latent(base_seed: int, number: int, size: int) -> np.ndarray:
    """The noise z of a sample id: (size,) float32, standard normal."""
    return np.random.default_rng([base_seed, number]).standard_normal(size, dtype=np.float32)


class Sampler:
    """A Ray actor that samples groups of slices."""

    def __init__(self, bundle_uri: str, base_seed: int, levels: list[int]) -> None:
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bundle = read_bundle(bundle_uri)
        self.vqvae, self.prior = bundle.vqvae.to(self.device), bundle.prior.to(self.device)
        self.base_seed, self.levels = base_seed, levels

    @torch.no_grad()
    def sample(self, group: int) -> dict[str, np.ndarray]:
        """The ids of one group: `id` (16,), `level` (16,), `image` (16, 256, 256) uint8, `codes_in_use` (16,).

        The level is -1 where the model does not know levels.
        """
        ids = np.arange(group * GROUP, (group + 1) * GROUP)
        size = self.prior.noise_size
        z = torch.from_numpy(np.stack([latent(self.base_seed, number, size) for number in ids.tolist()]))
        levels = torch.tensor([level_of(number, self.levels) for number in ids.tolist()])  # (16,)
        codes = self.prior(z.to(self.device), levels.to(self.device)).codes  # (16, 64, 64)
        images = to_uint8(self.vqvae.decode(codes)).squeeze(1)  # (16, 256, 256)
        return {
            "id": ids,
            "level": levels.numpy() if self.prior.conditional else np.full(GROUP, -1),
            "image": images.cpu().numpy(),
            "codes_in_use": np.array([len(torch.unique(c)) for c in codes]),
        }

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pieces of groups, ids `first` to before `end` -> their slices."""
        pieces = []
        for first, end in zip(batch["first"].tolist(), batch["end"].tolist(), strict=True):
            group = first // GROUP
            wanted = slice(first - group * GROUP, end - group * GROUP)
            pieces.append({name: values[wanted] for name, values in self.sample(group).items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
