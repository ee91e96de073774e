"""Every network takes every size of slices and every number of levels that a data set may have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from oasisgen.config.data import LEAST_SIDE, MOST_SIDE, OASIS, SIDE_STEP, Shape
from oasisgen.config.presets import BASELINE, FULL
from oasisgen.config.train import DCGANConfig
from oasisgen.data.feed import Feed
from oasisgen.data.phantom import subject
from oasisgen.data.pixels import to_unit
from oasisgen.models.codes import VectorEmbedding, make_embedding
from oasisgen.models.dcgan import DCGAN, Discriminator, halvings, ladder_start
from oasisgen.models.masked import MaskedCodePredictor, MaskedPrior
from oasisgen.models.vqvae import VQVAE
from oasisgen.training.features import PretextHeads, augment, pretext_losses
from oasisgen.training.masked import loss_of
from oasisgen.training.vqvae import cropped, losses_of

SHAPES = [
    Shape(height, width, levels)
    for (height, width), levels in zip(
        [(64, 64), (96, 128), (160, 192), (320, 320), (512, 512)], [1, 8, 20, 300, 20], strict=True
    )
]
SIDES = range(LEAST_SIDE, MOST_SIDE + 1, SIDE_STEP)
CODEBOOK = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
VQ = replace(FULL.vqvae, channels=4, residual_channels=2, residual_blocks=1, codebook_size=16, batch_size=2)
GAN = replace(FULL.dcgan, channels=2, latent_dim=4, components=2)
MASKED = replace(FULL.masked, channels=2, components=2, decoding_steps=2, redrawn=0.1)

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def maps_of(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Four code maps of the lowest and the highest level."""
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 16, (4, *shape.code_size), generator=random), torch.tensor([0, shape.levels - 1] * 2)


@each_shape
def test_the_vqvae_learns_from_crops_and_gives_back_the_size(shape: Shape) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *shape.image_size), np.uint8)
    pixels = cropped(Feed([{"image": images}]), np.arange(2), np.full((2, 2), 0.999), VQ.crop_of(shape.image_size))
    assert pixels.shape[1:] == (min(128, shape.height), min(128, shape.width))
    assert np.array_equal(pixels, images[:, -pixels.shape[1] :, -pixels.shape[2] :])
    model = VQVAE(VQ)
    losses = losses_of(model, to_unit(torch.from_numpy(pixels).unsqueeze(1)), 1.0, VQ, torch.Generator())
    losses[0].backward()
    codes = model.eval().encode(to_unit(torch.from_numpy(images).unsqueeze(1)))
    assert codes.shape[1:] == shape.code_size
    assert model.decode(codes).shape[2:] == shape.image_size


@pytest.mark.parametrize("config", [GAN, replace(BASELINE.dcgan, channels=2, latent_dim=4)], ids=["full", "baseline"])
@each_shape
def test_the_dcgan_generates_maps_of_the_size(shape: Shape, config: DCGANConfig) -> None:
    codes, levels = maps_of(shape)
    gan = DCGAN(config, make_embedding(config, CODEBOOK, torch.ones(16)), shape)
    if gan.pca_prior:
        gan.pca_prior.fit(lambda: [(codes, levels)], gan.embedding)
    made = gan(torch.randn(4, 4), levels)
    assert made.codes.shape == codes.shape
    discriminator = Discriminator(config, gan.embedding.channels, shape)
    discriminator(made.image, levels).sum().backward()
    assert all(p.grad is not None for p in gan.parameters())


def test_the_ladder_of_the_dcgan_reaches_every_size() -> None:
    for height in SIDES:
        for width in SIDES:
            shape = Shape(height, width, 1)
            start, count = ladder_start(shape), halvings(shape)
            assert (start[0] << count, start[1] << count) == shape.code_size
            assert min(start) >= 4
            assert count >= 2
            assert min(start) < 8 or any(side % 2 for side in start), "it could go on"
    for size, start in {(256, 256): (4, 4), (192, 160): (6, 5), (64, 64): (4, 4), (512, 512): (4, 4)}.items():
        assert ladder_start(Shape(*size, 1)) == start
    assert halvings(OASIS) == 4  # as bundles of older versions have it


@each_shape
def test_the_masked_prior_learns_and_generates_maps_of_the_size(shape: Shape) -> None:
    codes, levels = maps_of(shape)
    prior = MaskedPrior(MASKED, VectorEmbedding(CODEBOOK, torch.ones(16)), shape)
    low_rank = prior.low_rank_sample(prior.fit(lambda: [(codes, levels)]), levels)
    loss_of(prior.predictor, prior, codes, low_rank, levels, torch.Generator()).backward()
    assert all(p.grad is not None for p in prior.parameters())
    made = prior.eval()(torch.randn(2, prior.noise_size), levels[:2])
    assert made.codes.shape[1:] == shape.code_size
    assert MASKED.positions_of(shape) / shape.codes == pytest.approx(384 / 4096, rel=0.01)


@pytest.mark.parametrize("side", SIDES)
def test_the_masked_predictor_halves_every_side_exactly(side: int) -> None:
    for shape in (Shape(side, LEAST_SIDE, 1), Shape(LEAST_SIDE, side, 1)):
        predictor, (height, width) = MaskedCodePredictor(1, 1, 2, shape), shape.code_size
        image, masked = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width, dtype=torch.bool)
        positions = torch.arange(shape.codes)[None]
        logits = predictor(image, masked, image, torch.zeros(1, dtype=torch.int64), positions)
        assert logits.shape == (1, shape.codes, 2)


@each_shape
def test_the_feature_network_learns_from_every_size(shape: Shape) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *shape.image_size), np.uint8))
    batch = augment(images, torch.Generator().manual_seed(0))
    heads = PretextHeads(shape)
    level, damage, anatomy = heads(batch.x)
    assert level.shape == (2, shape.levels)
    assert anatomy.shape == batch.anatomy.shape == (2, 6, shape.height // 32, shape.width // 32)
    pretext_losses(level, damage, anatomy, torch.tensor([0, shape.levels - 1]), batch).sum().backward()
    assert heads.network(batch.x).shape == (2, heads.network.num_features)


@pytest.mark.parametrize("wrong", [(32, 64, 1), (544, 64, 1), (64, 100, 1), (64, 64, 0), (64, 64, 513)])
def test_a_shape_that_no_data_set_has_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"(height|width|levels) is \d+: must be"):
        Shape(*wrong)


def test_virtual_subjects_of_another_size_show_the_same_head() -> None:
    whole, small = subject(0, 1), subject(0, 1, Shape(64, 96, 8))
    assert small.shape == (8, 64, 96)
    shares = [float((image > 40).mean()) for image in (whole[15], small[3])]
    assert shares[1] == pytest.approx(shares[0] * 64 / 96, abs=0.06)
