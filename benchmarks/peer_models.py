"""What `benchmarks/peers.py` trains: a preset of ours, or one of MONAI's published tutorials
(github.com/Project-MONAI/tutorials, folder `generation`), a training step at a time.

Networks, losses and learning rates of the tutorials are theirs. What differs, because a CPU has minutes and not days:
batches of 4, so that there are more steps; no perceptual loss, whose weights would have to be downloaded; no
augmentation. The adversarial loss of `2d_ldm` starts after six epochs, so after days here.
"""

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.ablation_vqvae import Foreign, quantizers
from benchmarks.models import crops, train_step
from oasisgen.config.data import Shape
from oasisgen.config.presets import FULL
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, chunks, epoch_batches
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.models.dcgan import DCGAN
from oasisgen.models.masked import MaskedPrior
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import autocast
from oasisgen.sampling.ids import GROUP, level_of
from oasisgen.sampling.sample import latent
from oasisgen.training.averaging import average
from oasisgen.training.collapse import labelled
from oasisgen.training.dcgan import adversarial_step, both_adams, discriminator_of, initial_dcgan
from oasisgen.training.masked import initial_masked_prior, loss_of
from oasisgen.training.schedule import cosine
from oasisgen.training.vqvae import error_scale

BATCH = 4  # slices in a step of MONAI's peers; published are 13 to 64
DIFFUSION_STEPS = 50  # of DDIM; published are 1,000 of DDPM, which take 20 times as long
CPU = torch.device("cpu")


def rows_in_order(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Row numbers (B,) of each step, epoch after epoch."""
    assert count >= batch_size, f"{count} slices are too few for steps of {batch_size}"
    for epoch in itertools.count():
        for numbers, _ in epoch_batches(count, batch_size, 0, epoch, 0, 1):
            yield numbers


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) about [0, 1] -> (B, H, W) uint8."""
    return to_uint8(x.float() * 2.0 - 1.0).squeeze(1)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of an optimizer."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class Peer:
    """What is trained: `stage_1` and `stage_2` are one training step each.

    `step` counts from 0, and `steps` is how many there will be, at the speed so far.
    """

    conditional = False  # whether a slice is asked for by its level

    def __init__(self, images: Feed, shape: Shape) -> None:
        self.images, self.shape = images, shape
        self.rows = rows_in_order(len(images), BATCH)

    def batch(self) -> torch.Tensor:
        """Whole slices of the next step, (B, 1, H, W) in [0, 1]."""
        return torch.from_numpy(self.images.rows(next(self.rows), "image")).unsqueeze(1) / 255.0

    def stage_1(self, step: int, steps: int) -> None:
        raise NotImplementedError

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W) uint8 -> the same, encoded and decoded."""
        raise NotImplementedError

    def stage_2(self, step: int, steps: int) -> None:
        """The first step also prepares stage 2; its time counts."""
        raise NotImplementedError

    def sample(self, ids: np.ndarray) -> torch.Tensor:
        """Sample ids (B,) -> (B, H, W) uint8."""
        raise NotImplementedError


class Ours(Peer):
    """Stage 1 of a preset of this project; `quantizer` names one of vector-quantize-pytorch in the place of its own."""

    sampled: MaskedPrior | DCGAN  # the prior, with averaged weights

    def __init__(self, images: Feed, shape: Shape, preset: TrainConfig = FULL, quantizer: str = "") -> None:
        super().__init__(images, shape)
        self.preset, c = preset, preset.vqvae
        self.model = VQVAE(c)
        if quantizer:
            self.model.quantizer = Foreign(quantizers(c.code_dim)[quantizer]())
        self.model = self.model.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.adam = torch.optim.Adam(self.model.parameters(), lr=c.learning_rate, fused=True)
        self.crops, self.scale = crops(images, c), error_scale(images, c)

    def stage_1(self, step: int, steps: int) -> None:
        x = to_unit(torch.from_numpy(next(self.crops)).unsqueeze(1))  # (B, 1, h, w)
        train_step(self.model, self.averaged, self.adam, x, self.preset.vqvae, self.scale, step, steps)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        return to_uint8(self.averaged(to_unit(images.unsqueeze(1))).image).squeeze(1)

    def encode(self) -> tuple[Feed, torch.Tensor]:
        """The code maps of the training slices, and the codebook (K, D)."""
        found = []
        for rows in chunks(np.arange(len(self.images)), GROUP):
            x = to_unit(torch.from_numpy(self.images.rows(rows, "image")).unsqueeze(1))  # (16, 1, H, W)
            with torch.no_grad():
                found.append(self.averaged.encode(x))  # (16, H/4, W/4)
        maps = Feed([{"codes": torch.cat(found).numpy(), "level": self.images.column("level")}])
        self.rows = rows_in_order(len(maps), getattr(self.preset, self.preset.prior).batch_size)
        return maps, self.averaged.quantizer.codebook.detach()

    def sample(self, ids: np.ndarray) -> torch.Tensor:
        z = torch.from_numpy(np.stack([latent(0, number, self.sampled.noise_size) for number in ids.tolist()]))
        codes = self.sampled(z, torch.from_numpy(level_of(ids, self.shape.levels))).codes  # (B, H/4, W/4)
        return to_uint8(self.averaged.decode(codes)).squeeze(1)


class WithMasked(Ours):
    """A preset with the masked prior."""

    conditional = True
    sampled: MaskedPrior

    def prepare(self) -> None:
        """The prior before its first step."""
        self.maps, codebook = self.encode()
        self.prior, self.coefficients = initial_masked_prior(self.preset, self.maps, codebook, self.shape)
        self.sampled = copy.deepcopy(self.prior).requires_grad_(False).eval()
        network, rate = self.prior.predictor.to(memory_format=torch.channels_last), self.preset.masked.learning_rate
        self.adam_of_prior = torch.optim.Adam(network.parameters(), rate, betas=(0.9, 0.98), fused=True)

    def stage_2(self, step: int, steps: int) -> None:
        if not step:
            self.prepare()
        c, network = self.preset.masked, self.prior.predictor
        real, levels, rows = (torch.from_numpy(of) for of in labelled(self.maps, next(self.rows)))
        low_rank = self.prior.low_rank_sample(self.coefficients[rows], levels)  # (B, D, h, w)
        loss = loss_of(network, self.prior, real, low_rank, levels, torch.Generator().manual_seed(step))
        self.adam_of_prior.param_groups[0]["lr"] = cosine(c.learning_rate, step, steps)
        self.adam_of_prior.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), c.max_grad_norm)
        self.adam_of_prior.step()
        average(self.sampled.predictor, network, c.weight_ema_decay, step)


class WithDCGAN(Ours):
    """A preset with the DCGAN."""

    sampled: DCGAN

    def prepare(self) -> None:
        """The DCGAN before its first step."""
        self.maps, codebook = self.encode()
        self.prior = initial_dcgan(self.preset, self.maps, codebook, self.shape)
        self.conditional = self.prior.conditional
        self.sampled = copy.deepcopy(self.prior).requires_grad_(False).eval()
        both = self.prior.generator, discriminator_of(self.prior, self.shape)
        self.networks = both[0].to(memory_format=torch.channels_last), both[1].to(memory_format=torch.channels_last)
        self.adams = both_adams(self.preset.dcgan, self.networks)

    def stage_2(self, step: int, steps: int) -> None:
        if not step:
            self.prepare()
        codes, levels, _ = (torch.from_numpy(of) for of in labelled(self.maps, next(self.rows)))
        real = self.prior.embedding.embed(codes)  # (B, C, h, w)
        with autocast(CPU):
            random = torch.Generator().manual_seed(step)
            adversarial_step(self.prior, self.networks, self.adams, real, levels, step, random)
        average(self.sampled.generator, self.prior.generator, self.preset.dcgan.weight_ema_decay, step)


class Transformer(Peer):
    """`2d_vqvae_transformer`: a VQ-VAE and an autoregressive transformer.

    As published, the VQ-VAE halves twice, and slices have 64 x 64 pixels: 256 codes. Of 256 x 256 pixels there would be
    4,096 codes, each sampled by a pass over all before it: too slow here. With `halvings` 4 there are 256 again.
    """

    def __init__(self, images: Feed, shape: Shape, halvings: int = 4) -> None:
        from monai.inferers.inferer import VQVAETransformerInferer
        from monai.networks.nets.transformer import DecoderOnlyTransformer
        from monai.networks.nets.vqvae import VQVAE as MonaiVQVAE
        from monai.utils.ordering import Ordering

        super().__init__(images, shape)
        channels, down, up = (256,) * halvings, ((2, 4, 1, 1),) * halvings, ((2, 4, 1, 1, 0),) * halvings
        self.model = MonaiVQVAE(2, 1, 1, channels, 2, channels, down, up, num_embeddings=256, embedding_dim=32)
        self.adam = torch.optim.Adam(self.model.parameters(), 1e-4)
        self.size = shape.height >> halvings, shape.width >> halvings
        codes = self.size[0] * self.size[1]
        self.transformer = DecoderOnlyTransformer(256 + 1, codes, 96, 12, 8)  # a token more, to begin with
        self.adam_of_transformer = torch.optim.Adam(self.transformer.parameters(), 5e-4)
        self.inferer, self.ordering = VQVAETransformerInferer(), Ordering("raster_scan", 2, (1, *self.size))

    def stage_1(self, step: int, steps: int) -> None:
        x = self.batch()
        with autocast(CPU):
            image, quantizer_loss = self.model.train()(x)
        descend(self.adam, F.l1_loss(image.float(), x) + quantizer_loss)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        return to_bytes(self.model.eval()(images.unsqueeze(1) / 255.0)[0])

    def stage_2(self, step: int, steps: int) -> None:
        with autocast(CPU):
            logits, codes, _ = self.inferer(
                self.batch(), self.model.eval(), self.transformer.train(), self.ordering, return_latent=True
            )
        descend(self.adam_of_transformer, F.cross_entropy(logits.float().transpose(1, 2), codes.long()))

    def sample(self, ids: np.ndarray) -> torch.Tensor:
        start = torch.full((len(ids), 1), self.model.num_embeddings)
        networks = self.model.eval(), self.transformer.eval()
        return to_bytes(self.inferer.sample(self.size, start, *networks, self.ordering, verbose=False))


class Diffusion(Peer):
    """`2d_ldm`, whose example is axial brain MRI: AutoencoderKL, and a diffusion model of its latents."""

    def __init__(self, images: Feed, shape: Shape, steps: int = DIFFUSION_STEPS) -> None:
        from monai.networks.nets.autoencoderkl import AutoencoderKL
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
        from monai.networks.schedulers.ddim import DDIMScheduler

        super().__init__(images, shape)
        self.model = AutoencoderKL(
            2, 1, 1, (2, 2, 2), (64, 128, 256), (False, False, False), 1, use_flash_attention=True
        )
        self.adam = torch.optim.Adam(self.model.parameters(), 2.5e-5)
        self.unet = DiffusionModelUNet(
            2,
            1,
            1,
            (2, 2, 2, 2),
            (32, 64, 128, 256),
            attention_levels=(False, True, True, True),
            num_head_channels=(0, 32, 32, 32),
            use_flash_attention=True,
        )
        self.adam_of_unet = torch.optim.Adam(self.unet.parameters(), 1e-5)
        self.scheduler = DDIMScheduler(
            1000, "scaled_linear_beta", clip_sample=False, beta_start=0.0015, beta_end=0.0195
        )
        self.scheduler.set_timesteps(steps)
        self.scale = 0.0  # of the latents, so that they have variance 1

    def stage_1(self, step: int, steps: int) -> None:
        x = self.batch()
        with autocast(CPU):
            image, mean, deviation = self.model.train()(x)
        mean, deviation = mean.float(), deviation.float()
        divergence = 0.5 * (mean**2 + deviation**2 - (deviation**2).log() - 1).sum((1, 2, 3)).mean()
        descend(self.adam, F.l1_loss(image.float(), x) + 1e-6 * divergence)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        return to_bytes(self.model.eval().reconstruct(images.unsqueeze(1) / 255.0))

    def stage_2(self, step: int, steps: int) -> None:
        with torch.no_grad(), autocast(CPU):
            latents = self.model.eval().encode_stage_2_inputs(self.batch()).float()  # (B, 1, H/4, W/4)
        self.scale = self.scale or float(1 / latents.std())
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
        noisy = self.scheduler.add_noise(latents * self.scale, noise, times)
        with autocast(CPU):
            predicted = self.unet.train()(noisy, times)
        descend(self.adam_of_unet, F.mse_loss(predicted.float(), noise))

    def sample(self, ids: np.ndarray) -> torch.Tensor:
        latents, unet = torch.randn(len(ids), 1, *self.shape.code_size), self.unet.eval()
        for at in self.scheduler.timesteps:
            latents, _ = self.scheduler.step(unet(latents, at[None]).float(), at, latents)
        return to_bytes(self.model.eval().decode_stage_2_outputs(latents / self.scale))
