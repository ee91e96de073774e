"""From a seed to a slice: a synthetic slice is a pure function of (model bundle, base seed, sample id)."""

from typing import Any, NamedTuple

import numpy as np
import torch

from oasisgen import actor
from oasisgen.config.generate import Precision
from oasisgen.data.pixels import to_uint8
from oasisgen.models.bundle import read_bundle
from oasisgen.models.quantizer import count_codes
from oasisgen.precision import autocast, has_bfloat16, repeatable
from oasisgen.sampling.ids import level_of


def latent(base_seed: int, number: int, size: int) -> np.ndarray:
    """The noise z of a sample id: (size,) float32, standard normal."""
    return np.random.default_rng([base_seed, number]).standard_normal(size, dtype=np.float32)


class Made(NamedTuple):
    """A group of slices."""

    images: torch.Tensor  # (16, H, W) uint8
    codes_in_use: torch.Tensor  # (16,): how many codes each has
    labels: torch.Tensor | None  # (16, H, W) uint8: their label maps


class Sampler:
    """A Ray actor that samples groups of slices, with their label maps if `labels` is set and the bundle can make them.

    Raises UserError if the bundle's digest is not the `expected` one.
    """

    def __init__(
        self,
        bundle_uri: str,
        base_seed: int,
        precision: Precision = "bfloat16",
        expected: str = "",
        labels: bool = False,
    ) -> None:
        self.device = actor.set_up()
        self.mixed = precision == "bfloat16" and has_bfloat16(self.device)
        # Rounding depends on the CPU's vector instructions (AVX2, AVX512).
        cpu = f"cpu {torch.backends.cpu.get_cpu_capability()}"
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else cpu
        self.device_name = f"{name}, bfloat16" if self.mixed else name
        bundle = read_bundle(bundle_uri, expected)
        self.vqvae, self.prior = bundle.vqvae.to(self.device), bundle.prior.to(self.device)
        self.labels = bundle.labels.to(self.device) if labels and bundle.labels else None
        self.base_seed, self.levels = base_seed, bundle.shape.levels

    @torch.no_grad()
    def sample(self, group: np.ndarray) -> dict[str, np.ndarray]:
        """The N ids of one group (see `ids.groups`): `id`, `level`, `codes_in_use`, `device` (N,), `image`
        (N, H, W) uint8, and `labels` (N, H, W) uint8 if it makes label maps. The level is -1 for models that do not
        know levels.
        """
        taken = group >= 0  # (16,)
        z = np.zeros((len(group), self.prior.noise_size), np.float32)  # an empty position is computed too
        for place in np.flatnonzero(taken):
            z[place] = latent(self.base_seed, int(group[place]), self.prior.noise_size)
        levels = torch.from_numpy(level_of(group, self.levels))  # (16,)
        made = self.make(torch.from_numpy(z).to(self.device), levels.to(self.device))
        return {
            "id": group[taken],
            "level": levels.numpy()[taken] if self.prior.conditional else np.full(taken.sum(), -1),
            "image": made.images.cpu().numpy()[taken],
            "codes_in_use": made.codes_in_use.cpu().numpy()[taken],
            "device": np.full(taken.sum(), self.device_name),
            **({} if made.labels is None else {"labels": made.labels.cpu().numpy()[taken]}),
        }

    @torch.no_grad()
    def make(self, noise: torch.Tensor, levels: torch.Tensor) -> Made:
        """Noise (16, Z), levels (16,) -> slices."""
        with repeatable(self.device), autocast(self.device, self.mixed):
            codes = self.prior(noise, levels).codes  # (16, H/4, W/4)
            images = to_uint8(self.vqvae.decode(codes)).squeeze(1)  # (16, H, W)
            counts = count_codes(codes.flatten(1), len(self.vqvae.quantizer.codebook))  # (16, K)
            labels = self.labels.label_map(self.vqvae.quantizer.embed(codes)) if self.labels else None  # (16, H, W)
        return Made(images, (counts > 0).sum(1), labels)

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """`group` (G, 16) of parts `part` (G,) -> their slices, with `part`."""
        pieces = []
        for group, part in zip(batch["group"], batch["part"], strict=True):
            slices = self.sample(np.asarray(group))
            pieces.append(slices | {"part": np.full(len(slices["id"]), part)})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
